"""`vdev doctor`: what this host has, what is missing, and what to do about it. Downloads nothing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from vdev.errors import PartsError
from vdev.parts import accel, kernel, qemu, userland
from vdev.parts.apt import host_mirror
from vdev.parts.cache import Cache
from vdev.parts.progress import Say, quiet

MEMORY_NBYTES = 2 << 30  # a 512 MiB guest, QEMU's translation buffer, vdev
DISK_NBYTES = 2 << 30  # QEMU 170 MB, kernels 40..500 MB, userland, initramfs; eight saved guests 1.2 GB
SOCKET_PATH_NBYTES = 108  # sizeof(sun_path), unix(7)
SOCKET_NAME_NBYTES = 57  # what vdev may add below the runtime directory
PIP_WHEELS = Path("/usr/share/python-wheels")


@dataclass(frozen=True)
class Finding:
    """One line of the report. level: "ok", "note" (works all the same) or "missing" (something will fail)."""

    level: str
    what: str
    cure: str = ""


def doctor(say: Say, cache: Cache | None = None) -> int:
    """Say everything found, one line each; 0 if nothing is missing, else 1."""
    cache = cache or Cache()
    missing = 0
    for check in CHECKS:
        for finding in check(cache):
            say(f"{finding.level:>7}  {finding.what}")
            if finding.cure:
                say(f"         -> {finding.cure}")
            missing += finding.level == "missing"
    say("all that vdev needs is here or will be fetched" if not missing else f"{missing} thing(s) missing")
    return 1 if missing else 0


def _python(cache: Cache) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Finding("ok" if good else "missing", f"Python {version}", "" if good else "install Python 3.11 or newer")
    absent = [name for name in ("msgspec", "yaml", "qemu.qmp") if not _importable(name)]
    if not absent:
        yield Finding("ok", f"environment {sys.prefix}")
        return
    if sys.prefix != sys.base_prefix:
        yield Finding("missing", f"environment {sys.prefix} lacks {', '.join(absent)}", "remove it, then: make setup")
    else:
        yield Finding("note", "no environment in .venv yet", "make demo makes it (needs network)")
    if not (_importable("ensurepip") or any(PIP_WHEELS.glob("pip-*.whl")) or shutil.which("apt-get")):
        yield Finding("missing", f"no pip for {sys.executable}", "install it (on Debian: apt install python3-venv)")


def _importable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a parent package is absent
        return False


def _apt(cache: Cache) -> Iterator[Finding]:
    try:
        mirror = host_mirror()
    except PartsError as error:
        # With all parts in the cache, or named in the config, apt is not needed.
        yield Finding("note", error.problem, error.cure)
    else:
        yield Finding("ok", f"apt: Debian archive at {mirror.uri}")
        key = "the key embedded in apt's sources" if "BEGIN PGP" in mirror.signed_by else mirror.signed_by
        yield Finding("ok", f"apt: signatures checked with {key}")


def _qemu(cache: Cache) -> Iterator[Finding]:
    if path := shutil.which(qemu.BINARY):
        try:
            found = qemu.probe(qemu.Qemu([path], {}, "", "system", Path(path)))
            yield Finding("ok", f"QEMU {found.version} at {path}, with vfio-user-pci")
            return
        except qemu.Unfit as why:
            yield Finding("note", f"{path}: {why.problem}", "nothing to do: vdev uses its own QEMU")
    yield _part(cache, qemu.PART, "packaged QEMU", "make demo fetches it (38 MB)", "vm.qemu")


def _kernels(cache: Cache) -> Iterator[Finding]:
    for flavour in kernel.FLAVOURS:
        default = flavour == kernel.DEFAULT_FLAVOUR
        cure = "make demo fetches it (34 MB)" if default else f"only needed for vm.kernel: {flavour}"
        yield _part(cache, f"kernel/{flavour}", f"guest kernel {flavour}", cure, "vm.kernel" if default else "")
    yield _part(cache, userland.PART, "guest userland (busybox, Python)", "make demo fetches it (7 MB)", "vm.initrd")


def _part(cache: Cache, part: str, what: str, cure: str, key: str) -> Finding:
    # `key` of the config names one's own; "" for a part that nobody needs unless asked for.
    damaged: list[str] = []
    directory = cache.current(part, damaged.append)
    if directory is not None:
        return Finding("ok", f"{what}: {directory}")
    problem = f"{what}: {damaged[0] if damaged else 'not in the cache'}"
    try:
        host_mirror()
    except PartsError:
        return Finding("missing", problem, f"set {key} in the config to your own") if key else Finding("note", problem)
    return Finding("note", problem, cure)


def _kvm(cache: Cache) -> Iterator[Finding]:
    problem = accel.device_problem(accel.DEVICE)
    directories = cache.current(qemu.PART), cache.current(f"kernel/{kernel.DEFAULT_FLAVOUR}")
    if not problem and None not in directories:
        try:
            found = qemu.find_qemu(None, quiet, cache)
            chosen = accel.choose_accel(
                found, kernel.find_kernel(kernel.DEFAULT_FLAVOUR, quiet, cache), "auto", cache, quiet
            )
            problem = "" if chosen.name == "kvm" else chosen.reason
        except PartsError as error:
            problem = error.problem
    elif not problem:
        problem = f"{accel.DEVICE} is there; whether it can run a guest shows once QEMU and a kernel are"
    yield Finding(
        "note" if problem else "ok",
        problem or "KVM runs the default kernel",
        "nothing to do: TCG works" * bool(problem),
    )


def _memory(cache: Cache) -> Iterator[Finding]:
    nbytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield _at_least("memory", nbytes, MEMORY_NBYTES, "set vm.memory lower")


def _disk(cache: Cache) -> Iterator[Finding]:
    directory = cache.root
    while not directory.exists():
        directory = directory.parent
    if not os.access(directory, os.W_OK):
        yield Finding("missing", f"cache {cache.root} cannot be written", "set VDEV_CACHE to a directory of yours")
    yield _at_least(
        f"disk for the cache {cache.root}", shutil.disk_usage(directory).free, DISK_NBYTES, "set VDEV_CACHE"
    )


def _at_least(what: str, nbytes: int, wanted: int, cure: str) -> Finding:
    text = f"{what}: {nbytes / (1 << 30):.1f} GiB"
    return Finding("ok", text) if nbytes >= wanted else Finding("note", f"{text}, little", cure)


def _sockets(cache: Cache) -> Iterator[Finding]:
    # The launcher's rule: the user's own directory where its path is short and it can be written, else /tmp.
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    for directory in filter(None, (own, "/tmp")):
        room = SOCKET_PATH_NBYTES - 1 - len(os.fsencode(directory))
        if room >= SOCKET_NAME_NBYTES and os.access(directory, os.W_OK | os.X_OK):
            yield Finding("ok", f"sockets: in {directory}")
            return
    yield Finding("missing", "sockets: /tmp cannot be written", "set XDG_RUNTIME_DIR to a short path of yours")


CHECKS: tuple[Callable[[Cache], Iterator[Finding]], ...] = (
    _python, _apt, _disk, _memory, _sockets, _qemu, _kernels, _kvm,
)  # fmt: skip
