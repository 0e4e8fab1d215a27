"""Which guest kernel to boot: a stock Debian one by flavour, or the person's own bzImage or build tree."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path

from vdev.errors import PartsError
from vdev.parts.apt import BACKPORTS, STABLE
from vdev.parts.cache import Cache, Manifest, digests
from vdev.parts.fetch import GUEST_ARCH, Recipe, fetch_packages
from vdev.parts.paths import own_path
from vdev.parts.progress import Say

# flavour -> (suite, meta package that depends on the newest kernel of that flavour)
FLAVOURS = {
    "cloud": (STABLE, "linux-image-cloud-amd64"),
    "generic": (STABLE, "linux-image-amd64"),
    "cloud-backports": (BACKPORTS, "linux-image-cloud-amd64"),
    "generic-backports": (BACKPORTS, "linux-image-amd64"),
}
DEFAULT_FLAVOUR = "cloud"
# Stable has all in linux-image-VERSION; backports splits it into linux-binary-VERSION and linux-modules-VERSION.
_PACKAGES = tuple(f"linux-{kind}-{digit}" for kind in ("image", "binary", "modules") for digit in "123456789")
TREE_IMAGE = Path("arch/x86/boot/bzImage")  # where a build of Linux leaves it
# Linux/x86 boot protocol (Documentation/arch/x86/boot.rst): magic, and the pointer to the version text.
_BOOT_MAGIC_OFFSET = 0x202
_BOOT_VERSION_OFFSET = 0x20E
_BOOT_SECTOR_NBYTES = 0x200
_BOOT_PROTOCOL_OFFSET = 0x206
_BOOT_PROTOCOL_WITH_FLAGS = 0x20C
_BOOT_FLAGS_OFFSET = 0x236
_BOOT_FLAG_64_BIT = 1
# What people name instead of a bzImage: offset, magic, what it is, cure.
_OTHER_IMAGES = (
    (0, b"\x7fELF", "an ELF file such as vmlinux", f"name its bzImage: {TREE_IMAGE} of the same tree"),
    (0x38, b"ARM\x64", "a kernel for arm64", "vdev's machine is x86-64: build with ARCH=x86_64"),
    (0x38, b"RSC\x05", "a kernel for riscv", "vdev's machine is x86-64: build with ARCH=x86_64"),
    (0, b"\x1f\x8b", "compressed by gzip", "an x86 bzImage is given as it is built"),
)


@dataclass(frozen=True)
class Kernel:
    """A bootable kernel. `modules_dir` holds its .ko files in any depth; None: only what is built in."""

    image: Path
    modules_dir: Path | None
    version: str  # as `uname -r` prints it


def find_kernel(spec: str, say: Say, cache: Cache | None = None) -> Kernel:
    """The kernel named by `vm.kernel`: a flavour, the path of a bzImage, or that of a kernel build tree.

    :raise PartsError: not a kernel, or the flavour cannot be had.
    """
    if spec in FLAVOURS:
        return _debian(spec, cache or Cache(), say)
    path = own_path("vm.kernel", spec)
    if path.is_dir():
        return _built_tree(path)
    if path.parts[-len(TREE_IMAGE.parts) :] == TREE_IMAGE.parts and path.is_file():
        return _built_tree(path.parents[len(TREE_IMAGE.parts) - 1])  # its modules are around it
    if not path.is_file():
        raise PartsError("vm.kernel", f"{spec} is neither a flavour nor a path", f"use one of {', '.join(FLAVOURS)}")
    version = image_version(path)
    return Kernel(path, installed_modules(version), version)


def _built_tree(tree: Path) -> Kernel:
    image = tree / TREE_IMAGE
    if image.is_file():
        return Kernel(image, tree, image_version(image))
    if others := sorted({found.relative_to(tree).parts[1] for found in tree.glob("arch/*/boot/*Image")} - {"x86"}):
        problem = f"{tree} is built for {', '.join(others)}, and vdev's machine is x86-64"
        raise PartsError("vm.kernel", problem, "build it with `make ARCH=x86_64 bzImage modules`")
    problem = f"{tree} is not a built kernel tree (no {TREE_IMAGE})"
    raise PartsError("vm.kernel", problem, "build it with `make bzImage modules`, or name a bzImage")


def installed_modules(version: str, root: Path = Path("/lib/modules")) -> Path | None:
    """The host's modules of that very kernel, for a bzImage given by path."""
    return root / version if (root / version / "kernel").is_dir() else None


def image_version(image: Path) -> str:
    """The `uname -r` of a bzImage, from its boot header.

    :raise PartsError: not an x86 bzImage.
    """
    try:
        with image.open("rb") as file:
            head = file.read(_BOOT_SECTOR_NBYTES + 0xFFFF + 256)
    except OSError as error:
        raise PartsError("vm.kernel", f"{image}: {error.strerror}") from error
    if head[_BOOT_MAGIC_OFFSET : _BOOT_MAGIC_OFFSET + 4] != b"HdrS":
        for offset, magic, what, cure in _OTHER_IMAGES:
            if head[offset : offset + len(magic)] == magic:
                raise PartsError("vm.kernel", f"{image} is {what}, not an x86 bzImage", cure)
        raise PartsError(
            "vm.kernel", f"{image} is not an x86 bzImage", f"name a bzImage, or one of {', '.join(FLAVOURS)}"
        )
    protocol, flags = (struct.unpack_from("<H", head, at)[0] for at in (_BOOT_PROTOCOL_OFFSET, _BOOT_FLAGS_OFFSET))
    if protocol >= _BOOT_PROTOCOL_WITH_FLAGS and not flags & _BOOT_FLAG_64_BIT:
        raise PartsError("vm.kernel", f"{image} is a 32-bit kernel", "build it with CONFIG_64BIT=y")
    offset = struct.unpack_from("<H", head, _BOOT_VERSION_OFFSET)[0] + _BOOT_SECTOR_NBYTES
    text = head[offset : offset + 256].split(b"\0")[0].decode("ascii", "replace").strip()
    if not text:
        raise PartsError("vm.kernel", f"{image} has no version in its boot header")
    return text.split()[0]


def _debian(flavour: str, cache: Cache, say: Say) -> Kernel:
    suite, meta = FLAVOURS[flavour]
    part = f"kernel/{flavour}"
    recipe = Recipe(part, GUEST_ARCH, suite, (meta,), "linux-image-", keep=lambda name: name.startswith(_PACKAGES))

    def fetch(directory: Path) -> Manifest:
        manifest = fetch_packages(recipe, cache, directory, say)
        kernel = locate(directory / "root")
        image = str(kernel.image.relative_to(directory))
        return replace(manifest, version=kernel.version, files=digests(directory, image))

    return locate(cache.get(part, fetch, say) / "root")


def locate(root: Path) -> Kernel:
    """The one kernel of unpacked packages: /boot/vmlinuz-VERSION or /usr/lib/modules/VERSION/vmlinuz.

    :raise PartsError: there is not exactly one.
    """
    images = sorted(root.glob("boot/vmlinuz-*")) or sorted(root.glob("usr/lib/modules/*/vmlinuz"))
    modules = sorted((*root.glob("usr/lib/modules/*/kernel"), *root.glob("lib/modules/*/kernel")))
    if len(images) != 1 or len(modules) != 1:
        raise PartsError("kernel", f"{root} has {len(images)} kernels and {len(modules)} module trees, not one of each")
    return Kernel(images[0], modules[0].parent, modules[0].parent.name)
