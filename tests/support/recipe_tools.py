"""The tools of docs/recipes, unpacked from Debian's packages and run where they are: libvirt, virtme-ng, systemd.

They run in namespaces whose root is that tree. Nothing is installed, and of the host nothing is needed but user
namespaces.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from guest_tests.disk_image import NAMESPACES
from vdev.parts.apt import STABLE
from vdev.parts.cache import Cache, Manifest, digests
from vdev.parts.fetch import Recipe, fetch_packages, host_arch
from vdev.parts.progress import Say

ENTER = Path(__file__).parent / "tools_enter.sh"
_PACKAGES = (
    "?essential", "libvirt-daemon-driver-qemu", "libxml2-utils", "systemd", "systemd-sysv",
    "virtme-ng", "virtiofsd", "udev", "kmod", "mount", "procps", "iproute2", "busybox-static",
)  # fmt: skip
_NOT_NEEDED = ("qemu-", "ipxe-", "seabios")  # they run vdev's own QEMU
_RUN = ("root/usr/bin/virt-qemu-run", "root/usr/bin/vng", "root/usr/bin/systemd-analyze")
# What Debian's packages make when they are installed.
_MADE = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n",
    "group": "root:x:0:\ntty:x:5:\nuser:x:1000:\n",
    "hosts": "127.0.0.1 localhost\n",
}


def recipe_tools(cache: Cache, say: Say) -> Path:
    """The tree, from the cache once it was fetched (some 45 MB).

    :raise PartsError: the packages cannot be had.
    """
    digest = hashlib.sha256(" ".join((STABLE, *_PACKAGES)).encode()).hexdigest()[:12]
    part = f"recipe-tools/{digest}"
    recipe = Recipe(
        part,
        host_arch(),
        STABLE,
        _PACKAGES,
        "libvirt-daemon-driver-qemu",
        lambda name: not name.startswith(_NOT_NEEDED),
    )

    def make(directory: Path) -> Manifest:
        manifest = fetch_packages(recipe, cache, directory, say)
        _dress(directory / "root")
        return replace(manifest, files=digests(directory, *_RUN))

    return cache.get(part, make, say) / "root"


def inside(tree: Path, places: Mapping[Path, str], command: Sequence[str]) -> list[str]:
    """`command` as one that runs it in `tree` as an ordinary user; each of `places` is seen at the path it maps to.

    Places are given in this order; /tmp, /run and /var are empty otherwise. It stays one process.
    """
    pairs = [word for place, path in places.items() for word in (str(place), path)]
    environ = ["env", "-i", "PATH=/usr/sbin:/usr/bin", "HOME=/tmp", "XDG_RUNTIME_DIR=/run", "LC_ALL=C.UTF-8"]
    return [*NAMESPACES, "sh", str(ENTER), str(tree), *pairs, "--", *environ, *command]


def qemu_script(path: Path, argv: Sequence[str], environ: Mapping[str, str]) -> Path:
    """Write `path` as a program that is QEMU: for who takes one path for it, and no arguments beside."""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environ.items())
    path.write_text(f'#!/bin/sh\n{exports}exec {shlex.join(argv)} "$@"\n')
    path.chmod(0o755)
    return path


def _dress(root: Path) -> None:
    for name, text in _MADE.items():
        (root / "etc" / name).write_text(text)
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_text("".join(path.read_text() for path in certificates))  # python3-requests does not start without
    for name in ("mnt", "usr/lib/modules"):
        (root / name).mkdir(exist_ok=True)
    for directory, _, names in os.walk(root):
        for path in (Path(directory) / name for name in names):
            mode = path.lstat().st_mode
            # Their owner is not root, and in virtme-ng's guest they would make root an ordinary user.
            if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
                path.chmod(stat.S_IMODE(mode) & ~(stat.S_ISUID | stat.S_ISGID))
