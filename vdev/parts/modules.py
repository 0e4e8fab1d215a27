"""Kernel modules: find them by name, in the order in which they must be loaded, as plain ELF bytes."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vdev.errors import PartsError
from vdev.parts.kernel import TREE_IMAGE, Kernel

# VFIO over virtio-iommu needs `vfio_iommu_type1.allow_unsafe_interrupts=1` on the guest's command line.
DEFAULT_MODULES = ("virtio-iommu", "vfio", "vfio_iommu_type1", "vfio-pci", "virtio_rng?")
# The option of the kernel's configuration that brings a module, where we can say something better than "missing".
_OPTIONS = {
    "virtio_pci": "CONFIG_VIRTIO_PCI",
    "virtio_console": "CONFIG_VIRTIO_CONSOLE",
    "virtio_iommu": "CONFIG_VIRTIO_IOMMU",
    "vfio_pci": "CONFIG_VFIO_PCI",
    "vfio_iommu_type1": "CONFIG_VFIO_IOMMU_TYPE1",
    "virtio_rng": "CONFIG_HW_RANDOM_VIRTIO",
}
_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
_ELF64_LITTLE = b"\x7fELF\x02\x01"


@dataclass(frozen=True)
class Module:
    """One module file; `name` is the normalised one (underscores)."""

    name: str
    content: bytes


def normal(name: str) -> str:
    """The name with underscores, as the running kernel knows it."""
    return name.replace("-", "_")


def load_order(kernel: Kernel, names: Iterable[str]) -> list[Module]:
    """`names` and what they depend on, dependencies first. A name ending in `?` may be absent; built-in ones drop out.

    :raise PartsError: a module is neither there nor built in, or is compressed in a way we cannot read.
    """
    tree = _Tree(kernel)
    for name in names:
        tree.add(name.removesuffix("?"), optional=name.endswith("?"))
    return tree.order


class _Tree:
    def __init__(self, kernel: Kernel) -> None:
        self.order: list[Module] = []
        self._kernel = kernel
        self._seen: set[str] = set()
        self._paths: dict[str, Path] = {}
        self._builtin: set[str] = set()
        self._options: dict[str, str] = {}
        if (directory := kernel.modules_dir) is not None:
            self._paths = {normal(path.name.split(".ko")[0]): path for path in _module_files(directory)}
            if (listing := directory / "modules.builtin").is_file():
                self._builtin = {normal(Path(line).stem) for line in listing.read_text().split()}
            self._options = _read_configuration(directory)
            self._builtin |= {name for name, option in _OPTIONS.items() if self._options.get(option) == "y"}
        self._dep = _read_modules_dep(directory)

    def add(self, name: str, *, optional: bool = False) -> None:
        name = normal(name)
        if name in self._seen or name in self._builtin:
            return
        self._seen.add(name)
        path = self._paths.get(name)
        if path is None:
            # A kernel given as a bare image says nothing of its modules: what it needs must be built in.
            if optional or self._kernel.modules_dir is None:
                return
            raise self._missing(name)
        content = read_module(path)
        info = modinfo(content, path)
        self._check_release(info, path)
        depends = self._dep.get(name)
        for other in info.get("depends", "").split(",") if depends is None else depends:
            if other:
                self.add(other)
        self.order.append(Module(name, content))

    def _missing(self, name: str) -> PartsError:
        tree, option = self._kernel.modules_dir, _OPTIONS.get(name, "")
        problem = f"kernel {self._kernel.version} has no module {name}, built in or in {tree}"
        if not self._options:
            return PartsError("kernel", problem, "use another kernel flavour (vm.kernel), or build the module")
        if self._options.get(option) == "m":
            return PartsError("kernel", f"{problem}: {option}=m, and it is not built", f"make -C {tree} modules")
        problem += f": {option} is not set" if option else ""
        return PartsError("kernel", problem, f"set {option or 'its option'}=y in {tree}/.config and build again")

    def _check_release(self, info: dict[str, str], path: Path) -> None:
        release = info.get("vermagic", "").split(" ")[0]
        if release and release != self._kernel.version:
            problem = f"{path} was built for kernel {release}, the image is {self._kernel.version}"
            raise PartsError("kernel", problem, "build both of the same tree: make bzImage modules")


def _module_files(directory: Path) -> Iterator[Path]:
    """Every module below `directory`. A build tree says where; looking through its sources would take long."""
    listing = directory / "modules.order"
    if (directory / TREE_IMAGE).is_file() and listing.is_file():
        for line in listing.read_text().split():
            path = (directory / line.removeprefix("kernel/")).with_suffix(".ko")  # kernels since 6.4 list objects
            if path.is_file():
                yield path
        return
    yield from (path for path in directory.rglob("*.ko*") if path.name.endswith(_SUFFIXES))


def _read_configuration(directory: Path) -> dict[str, str]:
    """A build tree's `.config`: option -> "y", "m" or a value. What is not set is not there."""
    path = directory / ".config"
    if not path.is_file():
        return {}
    lines = (line.partition("=") for line in path.read_text(errors="replace").splitlines() if line.startswith("CONFIG"))
    return {option: value for option, _, value in lines}


def _read_modules_dep(directory: Path | None) -> dict[str, list[str]]:
    # modules.dep lists the whole closure, nearest first; reversed it is a load order.
    if directory is None or not (directory / "modules.dep").is_file():
        return {}
    found = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        path, _, depends = line.partition(":")
        names = [normal(Path(item).name.split(".ko")[0]) for item in depends.split()]
        found[normal(Path(path).name.split(".ko")[0])] = names[::-1]
    return found


def read_module(path: Path) -> bytes:
    """The ELF bytes of a module file.

    :raise PartsError: compressed by something other than xz, or damaged.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".xz":
            content = lzma.decompress(content)
    except (OSError, lzma.LZMAError) as error:
        raise PartsError(
            "kernel", f"{path}: {error}", "if it is in vdev's cache, remove its kernel's directory there"
        ) from error
    if not content.startswith(_ELF64_LITTLE):
        raise PartsError(
            "kernel", f"{path} is no 64-bit module vdev can read", "only plain .ko and .ko.xz are supported"
        )
    return content


def modinfo(content: bytes, path: Path) -> dict[str, str]:
    """The `.modinfo` section (NUL-separated `key=value`; the first of a repeated key wins).

    :raise PartsError: the ELF file has no such section.
    """
    try:
        raw = _section(content, b".modinfo")
    except (struct.error, IndexError) as error:
        raise PartsError("kernel", f"{path} is damaged ({error})") from error
    if raw is None:
        raise PartsError("kernel", f"{path} has no .modinfo section: not a kernel module")
    found: dict[str, str] = {}
    for item in raw.split(b"\0"):
        key, _, value = item.decode("utf-8", "replace").partition("=")
        found.setdefault(key, value)
    return found


def _section(content: bytes, wanted: bytes) -> bytes | None:
    # ELF-64 header: e_shoff at 0x28; e_shentsize, e_shnum, e_shstrndx at 0x3a.
    (table,) = struct.unpack_from("<Q", content, 0x28)
    entry_nbytes, count, names_index = struct.unpack_from("<HHH", content, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", content, table + i * entry_nbytes) for i in range(count)]
    names_start = headers[names_index][4]
    for name, _type, _flags, _addr, offset, nbytes in headers:
        start = names_start + name
        if content[start : content.find(b"\0", start)] == wanted:
            return content[offset : offset + nbytes]
    return None
