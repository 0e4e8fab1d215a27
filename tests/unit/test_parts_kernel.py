"""Kernels by path, and their modules in load order."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

import pytest

from vdev.errors import PartsError
from vdev.parts.kernel import TREE_IMAGE, Kernel, find_kernel, installed_modules, locate
from vdev.parts.modules import load_order, modinfo
from vdev.parts.progress import quiet

VERSION = "6.12.1-test"


def bz_image(version: str) -> bytes:
    """The start of a bzImage as far as the boot protocol needs it."""
    image = bytearray(0x1000)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x400)
    text = f"{version} (builder@host) #1 SMP".encode()
    image[0x600 : 0x600 + len(text)] = text
    return bytes(image)


def module(info: dict[str, str]) -> bytes:
    """A minimal ELF-64 object whose one real section is .modinfo."""
    raw = b"".join(f"{key}={value}".encode() + b"\0" for key, value in info.items())
    names = b"\0.modinfo\0.shstrtab\0"
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    table = 64 + len(raw) + len(names)
    struct.pack_into("<Q", header, 0x28, table)
    struct.pack_into("<HHH", header, 0x3A, 64, 3, 2)

    def section(name: int, offset: int, nbytes: int) -> bytes:
        return struct.pack("<IIQQQQ", name, 1, 0, 0, offset, nbytes).ljust(64, b"\0")

    sections = bytes(64) + section(1, 64, len(raw)) + section(10, 64 + len(raw), len(names))
    return bytes(header) + raw + names + sections


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    directory = tmp_path / VERSION
    (directory / "kernel").mkdir(parents=True)
    (directory / "modules.builtin").write_text("kernel/drivers/virtio/virtio-pci.ko\n")
    for name, depends in {
        "vfio": "",
        "vfio-pci-core": "vfio",
        "vfio-pci": "vfio-pci-core,vfio",
        "rng": "virtio_pci",
    }.items():
        content = lzma.compress(module({"license": "GPL", "depends": depends}))
        (directory / "kernel" / f"{name}.ko.xz").write_bytes(content)
    return Kernel(tmp_path / "bzImage", directory, VERSION)


def test_the_modinfo_section_is_read() -> None:
    info = modinfo(module({"license": "GPL", "depends": "a,b", "alias": "x"}), Path("m.ko"))

    assert (info["license"], info["depends"], info["alias"]) == ("GPL", "a,b", "x")


@pytest.mark.parametrize("content", [b"\x7fELF\x02\x01", module({})[:200].ljust(300, b"\xff")])
def test_a_damaged_module_is_refused(content: bytes) -> None:
    with pytest.raises(PartsError):
        modinfo(content, Path("m.ko"))


def test_dependencies_come_first_and_once(kernel: Kernel) -> None:
    order = [found.name for found in load_order(kernel, ["vfio_pci", "vfio-pci", "vfio"])]

    assert order == ["vfio", "vfio_pci_core", "vfio_pci"]


def test_modules_dep_is_believed_where_there_is_one(kernel: Kernel) -> None:
    assert kernel.modules_dir is not None
    (kernel.modules_dir / "modules.dep").write_text("kernel/vfio-pci.ko.xz: kernel/vfio.ko.xz kernel/rng.ko.xz\n")

    order = [found.name for found in load_order(kernel, ["vfio-pci"])]

    assert set(order[:2]) == {"vfio", "rng"}
    assert order[2:] == ["vfio_pci"]


def test_what_is_built_in_is_not_loaded(kernel: Kernel) -> None:
    assert [found.name for found in load_order(kernel, ["virtio_pci", "rng"])] == ["rng"]


def test_a_missing_module_is_refused_unless_it_is_optional(kernel: Kernel) -> None:
    assert load_order(kernel, ["virtio-iommu?"]) == []
    with pytest.raises(PartsError, match="no module virtio_iommu"):
        load_order(kernel, ["virtio-iommu"])


def test_a_module_compressed_by_zstd_is_refused(kernel: Kernel) -> None:
    assert kernel.modules_dir is not None
    (kernel.modules_dir / "kernel" / "odd.ko.zst").write_bytes(b"\x28\xb5\x2f\xfd")

    with pytest.raises(PartsError, match=r"only plain \.ko and \.ko\.xz"):
        load_order(kernel, ["odd"])


def test_a_kernel_without_a_module_tree_is_taken_to_have_all_built_in(kernel: Kernel) -> None:
    assert load_order(Kernel(kernel.image, None, VERSION), ["virtio-iommu"]) == []


def test_a_bzimage_by_path_is_known_by_its_boot_header(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bz_image(VERSION))

    kernel = find_kernel(str(tmp_path / "image"), quiet)

    assert kernel == Kernel(tmp_path / "image", None, VERSION)


def test_a_build_tree_by_path_gives_its_image_and_modules(tmp_path: Path) -> None:
    (tmp_path / "arch/x86/boot").mkdir(parents=True)
    (tmp_path / "arch/x86/boot/bzImage").write_bytes(bz_image(VERSION))

    kernel = find_kernel(str(tmp_path), quiet)

    assert kernel == Kernel(tmp_path / "arch/x86/boot/bzImage", tmp_path, VERSION)


def test_the_hosts_modules_go_with_the_hosts_kernel(tmp_path: Path) -> None:
    (tmp_path / VERSION / "kernel").mkdir(parents=True)

    assert installed_modules(VERSION, tmp_path) == tmp_path / VERSION
    assert installed_modules("6.1", tmp_path) is None


def test_what_is_no_kernel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"not a kernel")

    for spec, problem in (("cloudy", "neither a flavour nor a path"), (str(tmp_path / "file"), "not an x86 bzImage")):
        with pytest.raises(PartsError, match=problem):
            find_kernel(spec, quiet)
    with pytest.raises(PartsError, match="not a built kernel tree"):
        find_kernel(str(tmp_path), quiet)


@pytest.mark.parametrize("image", ["boot/vmlinuz-6.12", "usr/lib/modules/6.12/vmlinuz"])
def test_both_package_layouts_are_located(tmp_path: Path, image: str) -> None:
    (tmp_path / "usr/lib/modules/6.12/kernel").mkdir(parents=True)
    (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / image).touch()

    assert locate(tmp_path) == Kernel(tmp_path / image, tmp_path / "usr/lib/modules/6.12", "6.12")


def test_packages_without_a_kernel_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PartsError, match="0 kernels"):
        locate(tmp_path)


def build_tree(tree: Path, config: str = "", order: str = "") -> Path:
    """A tree in which `make bzImage` was run; the modules are up to the test."""
    (tree / TREE_IMAGE).parent.mkdir(parents=True)
    (tree / TREE_IMAGE).write_bytes(bz_image(VERSION))
    (tree / ".config").write_text(config)
    (tree / "modules.order").write_text(order)
    return tree


def test_an_image_named_in_its_tree_comes_with_the_modules_around_it(tmp_path: Path) -> None:
    tree = build_tree(tmp_path / "linux")

    assert find_kernel(str(tree / TREE_IMAGE), quiet) == Kernel(tree / TREE_IMAGE, tree, VERSION)


@pytest.mark.parametrize("line", ["drivers/virtio-iommu.o", "kernel/drivers/virtio-iommu.ko"])
def test_the_modules_of_a_tree_are_where_its_list_says(tmp_path: Path, line: str) -> None:
    tree = build_tree(tmp_path / "linux", order=f"{line}\n")
    (tree / "drivers").mkdir()
    (tree / "drivers/virtio-iommu.ko").write_bytes(module({"depends": "", "vermagic": f"{VERSION} SMP "}))
    (tree / "drivers/stale.ko").write_bytes(module({"depends": ""}))
    kernel = find_kernel(str(tree), quiet)

    assert [found.name for found in load_order(kernel, ["virtio_iommu"])] == ["virtio_iommu"]
    assert load_order(kernel, ["stale?"]) == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("CONFIG_VIRTIO_IOMMU=m", "CONFIG_VIRTIO_IOMMU=m, and it is not built\n  cure: make -C {tree} modules"),
        (
            "# CONFIG_VIRTIO_IOMMU is not set",
            "CONFIG_VIRTIO_IOMMU is not set\n  cure: set CONFIG_VIRTIO_IOMMU=y in {tree}/.config and build again",
        ),
    ],
)
def test_a_tree_without_the_module_says_which_option_brings_it(tmp_path: Path, line: str, problem: str) -> None:
    tree = build_tree(tmp_path / "linux", config=f"CONFIG_VFIO=y\n{line}\n")

    with pytest.raises(PartsError) as caught:
        load_order(find_kernel(str(tree), quiet), ["virtio_iommu"])
    assert problem.format(tree=tree) in str(caught.value)


def test_what_a_trees_configuration_builds_in_is_not_looked_for(tmp_path: Path) -> None:
    tree = build_tree(tmp_path / "linux", config="CONFIG_VIRTIO_IOMMU=y\n")

    assert load_order(find_kernel(str(tree), quiet), ["virtio_iommu"]) == []


def test_a_module_of_another_build_is_refused(kernel: Kernel) -> None:
    assert kernel.modules_dir is not None
    (kernel.modules_dir / "kernel/old.ko").write_bytes(module({"vermagic": "6.11.0 SMP preempt"}))

    with pytest.raises(PartsError, match=f"was built for kernel 6.11.0, the image is {VERSION}"):
        load_order(kernel, ["old"])


def test_a_tree_of_another_architecture_is_named(tmp_path: Path) -> None:
    (tmp_path / "arch/arm64/boot").mkdir(parents=True)
    (tmp_path / "arch/arm64/boot/Image").touch()

    with pytest.raises(PartsError, match=r"is built for arm64, and vdev's machine is x86-64"):
        find_kernel(str(tmp_path), quiet)


@pytest.mark.parametrize(
    ("head", "what"),
    [(b"\x7fELF\x02\x01", "an ELF file such as vmlinux"), (bytes(0x38) + b"ARM\x64", "a kernel for arm64")],
)
def test_other_kinds_of_kernel_images_are_named(tmp_path: Path, head: bytes, what: str) -> None:
    (tmp_path / "image").write_bytes(head)

    with pytest.raises(PartsError, match=f"is {what}, not an x86 bzImage"):
        find_kernel(str(tmp_path / "image"), quiet)


def test_a_32_bit_kernel_is_refused(tmp_path: Path) -> None:
    image = bytearray(bz_image(VERSION))
    struct.pack_into("<HH", image, 0x206, 0x20F, 0)
    struct.pack_into("<H", image, 0x236, 0)
    (tmp_path / "image").write_bytes(image)

    with pytest.raises(PartsError, match="is a 32-bit kernel"):
        find_kernel(str(tmp_path / "image"), quiet)
