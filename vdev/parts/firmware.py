"""The firmware that boots a disk: QEMU's SeaBIOS, Debian's OVMF, or the person's own image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vdev.errors import PartsError
from vdev.parts.apt import STABLE
from vdev.parts.cache import Cache, Manifest, digests
from vdev.parts.fetch import Recipe, fetch_packages, host_arch, only
from vdev.parts.paths import own_path
from vdev.parts.progress import Say

PART = "ovmf"
# Code and variables in one image: variables live in RAM, so that no run leaves anything behind for the next.
IMAGE = "root/usr/share/ovmf/OVMF.fd"


def find_firmware(spec: str, say: Say, cache: Cache) -> Path | None:
    """The image for QEMU's -bios that `vm.firmware` names; None for seabios, which QEMU brings itself.

    :raise PartsError: no such file, or OVMF cannot be had.
    """
    if spec == "seabios":
        return None
    if spec == "ovmf":
        recipe = Recipe(PART, host_arch(), STABLE, (PART,), PART, keep=only((PART,)))

        def fetch(directory: Path) -> Manifest:
            manifest = fetch_packages(recipe, cache, directory, say)
            return replace(manifest, files=digests(directory, IMAGE))

        return cache.get(PART, fetch, say) / IMAGE
    path = own_path("vm.firmware", spec)
    if not path.is_file():
        raise PartsError(
            "vm.firmware", f"{spec} is not a file", "use seabios or ovmf, or name an image for QEMU's -bios"
        )
    return path
