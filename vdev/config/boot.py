"""What a VM boots from: a kernel QEMU loads itself, or a disk image whose own boot loader the firmware starts."""

from __future__ import annotations

from vdev.config.schema import KERNEL_NAMES, VmConfig
from vdev.config.text import closest
from vdev.errors import ConfigError

NONE = "none"  # a word no path and no flavour is
FIRMWARE_NAMES = ["seabios", "ovmf"]


def boot_kernel(vm: VmConfig) -> str | None:
    """The kernel QEMU is to load; None when the firmware boots the disk. A disk without a kernel boots itself."""
    if vm.kernel is None:
        return None if vm.disk is not None else KERNEL_NAMES[0]
    return None if vm.kernel == NONE else vm.kernel


def check_boot(vm: VmConfig) -> None:
    """Raise ConfigError for the first combination of keys that makes no sense."""
    kernel, disk = boot_kernel(vm), vm.disk is not None
    if kernel is not None and kernel not in KERNEL_NAMES and "/" not in kernel:
        cure = closest(kernel, [*KERNEL_NAMES, NONE]) + "; a path has a / in it"
        raise ConfigError("vm.kernel", f"{kernel!r} is neither a flavour nor a path", cure)
    if vm.firmware not in FIRMWARE_NAMES and "/" not in vm.firmware:
        cure = closest(vm.firmware, FIRMWARE_NAMES) + "; a path has a / in it"
        raise ConfigError("vm.firmware", f"{vm.firmware!r} is neither a firmware's name nor a path", cure)
    own_loader = "the disk's own boot loader brings its own"
    with_kernel = "set vm.kernel (such as cloud) to have QEMU load kernel and initrd, or leave it out"
    rules = (
        (vm.disk != "", "vm.disk", "is empty", "name a raw or qcow2 image, or leave it out"),
        (vm.initrd != "", "vm.initrd", "is empty", "name a file, say none, or leave it out for vdev's own"),
        (kernel or disk, "vm.kernel", "none, and there is no disk to boot", "set vm.disk, or leave vm.kernel out"),
        (kernel or vm.initrd is None, "vm.initrd", f"there is no kernel for it: {own_loader}", with_kernel),
        (kernel or not vm.append, "vm.append", f"there is no kernel to take it: {own_loader}", with_kernel),
        (disk or not vm.disk_writable, "vm.disk_writable", "there is no disk", "set vm.disk"),
        (disk or vm.disk_format == "auto", "vm.disk_format", "there is no disk", "set vm.disk"),
        (
            not vm.disk_writable or vm.disk_format != "auto",
            "vm.disk_format",
            "a guest that may write could make a raw image look like a qcow2 that names files of this host",
            "with disk_writable say disk_format: raw or qcow2",
        ),
    )
    for holds, key, problem, cure in rules:
        if not holds:
            raise ConfigError(key, problem, cure)
