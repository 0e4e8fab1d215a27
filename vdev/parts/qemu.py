"""Which QEMU to run: the configured one, the system's where it is fit, else a packaged one unpacked into the cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from vdev.errors import PartsError
from vdev.parts.apt import BACKPORTS
from vdev.parts.cache import Cache, Manifest, digests
from vdev.parts.fetch import Recipe, fetch_packages, host_arch
from vdev.parts.paths import own_path
from vdev.parts.progress import Say

BINARY = "qemu-system-x86_64"
NEEDED = (10, 2)  # design: the first QEMU whose vfio-user client does all we need
NEEDED_TEXT = "10.2"
PROBE_SECONDS = 30
PART = "qemu"
# Debian's library directory and dynamic loader by architecture.
_TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
_LOADERS = {"amd64": "ld-linux-x86-64.so.2", "arm64": "ld-linux-aarch64.so.1"}


@dataclass(frozen=True)
class Qemu:
    """A usable QEMU: `argv_prefix` + arguments is the command; `env` is added to the environment."""

    argv_prefix: list[str]
    env: Mapping[str, str]
    version: str
    origin: str  # "configured", "system" or "packaged"
    binary: Path = field(default=Path(BINARY))


class Unfit(PartsError):
    """A QEMU was found and cannot be used; `problem` says why."""

    def __init__(self, problem: str) -> None:
        super().__init__("qemu", problem)


def find_qemu(configured: str | None, say: Say, cache: Cache | None = None) -> Qemu:
    """The QEMU to use; `configured` is `vm.qemu` of the config.

    :raise PartsError: the configured one is unfit (one line), or the packaged one cannot be had.
    """
    if configured is not None:
        path = shutil.which(str(own_path("vm.qemu", configured)) if "/" in configured else configured)
        if path is None:
            raise PartsError("vm.qemu", f"{configured} is not a program; name another or remove the key")
        try:
            return probe(Qemu([path], {}, "", "configured", Path(path)))
        except Unfit as why:
            raise PartsError("vm.qemu", f"{configured}: {why.problem}; name another or remove the key") from why
    if path := shutil.which(BINARY):
        try:
            return probe(Qemu([path], {}, "", "system", Path(path)))
        except Unfit as why:
            say(f"not using {path}: {why.problem}; using vdev's own QEMU")
    return packaged_qemu(cache or Cache(), say)


def probe(qemu: Qemu) -> Qemu:
    """`qemu` with its version filled in.

    :raise Unfit: it does not run, is older than 10.2, or lacks vfio-user-pci.
    """
    status, output = _ask(qemu, "--version")
    match = re.search(r"version (\d+)\.(\d+)(\S*)", output)
    if status != 0 or match is None:
        raise Unfit(f"does not run ({_first_line(output) or f'status {status}'})")
    version = f"{match[1]}.{match[2]}{match[3]}"
    if (int(match[1]), int(match[2])) < NEEDED:
        raise Unfit(f"QEMU {version} is older than {NEEDED_TEXT} and has no usable vfio-user-pci")
    status, output = _ask(qemu, "-device", "vfio-user-pci,help")
    if status != 0 or "vfio-user-pci" not in output:
        raise Unfit(f"QEMU {version} was built without vfio-user-pci")
    return replace(qemu, version=version)


def _ask(qemu: Qemu, *arguments: str) -> tuple[int, str]:
    command = [*qemu.argv_prefix, *arguments]
    try:
        done = subprocess.run(
            command, env={**os.environ, **qemu.env},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=PROBE_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return -1, f"no answer in {PROBE_SECONDS} s"
    except OSError as error:
        return -1, str(error)
    return done.returncode, done.stdout


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""


def packaged_qemu(cache: Cache, say: Say) -> Qemu:
    """Debian's newest, unpacked in the cache with the libraries it needs, whatever the system has.

    :raise PartsError: it cannot be had.
    """
    arch = host_arch()
    check_path(cache.root)  # before minutes of downloading
    recipe = Recipe(PART, arch, BACKPORTS, ("qemu-system-x86",), "qemu-system-x86")

    def fetch(directory: Path) -> Manifest:
        manifest = fetch_packages(recipe, cache, directory, say)
        return replace(manifest, files=digests(directory, f"root/usr/bin/{BINARY}"))

    root = cache.get(PART, fetch, say) / "root"
    try:
        return probe(unpacked_qemu(root, arch))
    except Unfit as why:
        cure = f"remove {root.parent} and try again, or set vm.qemu in the config"
        raise PartsError("qemu", f"the packaged QEMU in {root}: {why.problem}", cure) from why


def check_path(path: Path) -> None:
    """Refuse what separates the entries of a library path.

    :raise PartsError: `path` contains it.
    """
    if set(str(path)) & set(":;"):
        raise PartsError("cache", f"{path} contains ':' or ';'", "set VDEV_CACHE to a path without them")


def unpacked_qemu(root: Path, arch: str) -> Qemu:
    """How to start the QEMU unpacked in `root`: through that tree's own dynamic loader and libraries.

    :raise PartsError: the path cannot stand in a library path.
    """
    check_path(root)
    libraries = root / "usr/lib" / _TRIPLETS[arch]
    firmware = [root / "usr/share" / name for name in ("qemu", "seabios")] + [root / "usr/lib/ipxe/qemu"]
    binary = root / "usr/bin" / BINARY
    prefix = [str(libraries / _LOADERS[arch]), "--library-path", str(libraries), str(binary)]
    for directory in firmware:
        prefix += ["-L", str(directory)]
    return Qemu(prefix, {"QEMU_MODULE_DIR": str(libraries / "qemu")}, "", "packaged", binary)
