"""A small Debian on a disk with boot loaders of its own, made of packages, without root and without mounting the disk.

Of the host it takes apt, dpkg-deb and user namespaces; everything else (dpkg itself, the maker of file systems, the
partitioner) comes with the packages and runs among them. `python -m guest_tests.disk_image` makes it and prints its
path.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

from vdev.errors import PartsError
from vdev.parts.apt import STABLE
from vdev.parts.cache import Cache, Manifest, digests
from vdev.parts.fetch import GUEST_ARCH, Recipe, download_packages
from vdev.parts.progress import Say, to_stderr

SCRIPTS = Path(__file__).parent / "image"
IMAGE = "disk.img"
PAYLOAD = Path(__file__).parent / "payload"
MAIN = b"""\
import sys

from guest_payload.main import main

sys.argv[1:] = []
sys.exit(main())
"""
BUILD_SECONDS = 600
NLINES_QUOTED = 6
_PACKAGES = (
    "?essential", "login", "passwd", "mount", "systemd-sysv", "udev", "kmod", "linux-image-cloud-amd64",
    "initramfs-tools", "busybox", "zstd", "python3-minimal", "libpython3-stdlib",
    "systemd-boot-efi", "syslinux", "syslinux-common", "mtools", "fdisk", "e2fsprogs", "fakeroot",
)  # fmt: skip
NAMESPACES = ("unshare", "--map-root-user", "--mount")
_ALLOW = "allow them: sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0"


def why_not() -> str:
    """Why this host cannot make the image; empty if it can."""
    try:
        done = subprocess.run([*NAMESPACES, "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"unshare does not run ({error.strerror})"
    return f"no user namespaces ({done.stderr.strip()})" if done.returncode else ""


def debian_image(cache: Cache, say: Say) -> Path:
    """The raw image, from the cache once it was made: then no network is needed.

    :raise PartsError: the packages cannot be had, or the image cannot be made of them here.
    """
    recipe = Recipe(image_part(), GUEST_ARCH, STABLE, _PACKAGES, "linux-image-")

    def make(directory: Path) -> Manifest:
        if problem := why_not():
            raise PartsError("disk image", problem, _ALLOW)
        work = directory / "work"
        (work / "debs").mkdir(parents=True)
        manifest = download_packages(recipe, cache, work / "debs", say)
        say("installing Debian into a disk image (half a minute)")
        shutil.copy(SCRIPTS / "inside.sh", work)
        _run([*NAMESPACES, "sh", str(SCRIPTS / "outside.sh"), str(work)], work / "log")
        (work / "out" / IMAGE).rename(directory / IMAGE)
        # Directories of packages may deny their owner what root may do. The mounts went with their namespace.
        _run(["unshare", "--map-root-user", "rm", "-rf", str(work / "root")], work / "log")
        shutil.rmtree(work)
        return replace(manifest, files=digests(directory, IMAGE))

    return cache.get(recipe.part, make, say) / IMAGE


def payload_disk(path: Path) -> Path:
    """Write vdev's checks to `path` as the tar archive that the image runs when it comes on a disk of its own."""
    with tarfile.open(path, "w") as archive:
        main = tarfile.TarInfo("main.py")
        main.size = len(MAIN)
        archive.addfile(main, io.BytesIO(MAIN))
        archive.add(PAYLOAD, "guest_payload", filter=lambda item: None if "__pycache__" in item.name else item)
    return path


def payload_disk_arguments(path: Path) -> list[str]:
    """QEMU's arguments for that disk."""
    drive = f"file={path},if=none,id=payload,format=raw,readonly=on"
    return ["-drive", drive, "-device", "virtio-blk-pci,drive=payload,serial=vdev-payload"]


def image_part() -> str:
    """The name of the image in the cache of parts: another recipe is another part."""
    digest = hashlib.sha256(" ".join((STABLE, *_PACKAGES)).encode())
    for name in ("outside.sh", "inside.sh"):
        digest.update((SCRIPTS / name).read_bytes())
    return f"debian-image/{digest.hexdigest()[:12]}"


def _run(command: list[str], log: Path) -> None:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        status = process.wait(BUILD_SECONDS)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # with all it started
        process.wait()
        raise
    if status != 0:
        words = "\n    ".join(log.read_text(errors="replace").splitlines()[-NLINES_QUOTED:])
        raise PartsError("disk image", f"{command[-2]} failed with status {status}:\n    {words}")


if __name__ == "__main__":
    sys.stdout.write(f"{debian_image(Cache(), to_stderr)}\n")
