"""The first checks: the stock driver is bound, the groups are right, the accelerator opens through VFIO."""

from __future__ import annotations

import os

from . import accel, guest, vfio
from .lab import RING_IOVA, Finding, Lab, expect

DRIVER = guest.SYS / "bus/virtio/drivers/virtio_iommu"
GROUPS = guest.SYS / "kernel/iommu_groups"
VFIO_MODULES = ("vfio", "vfio_iommu_type1", "vfio-pci")
POWER_ON_ZERO = {
    "CONTROL": accel.CONTROL,
    "RING_SIZE": accel.RING_SIZE,
    "RING_HEAD": accel.RING_HEAD,
    "RING_TAIL": accel.RING_TAIL,
    "ERROR": accel.ERROR,
    "COMPLETED": accel.COMPLETED,
    "FAULTED": accel.FAULTED,
}
POWER_ON_ZERO_64 = {
    "RING_BASE": accel.RING_BASE,
    "COMPLETION_BASE": accel.COMPLETION_BASE,
    "ERROR_IOVA": accel.ERROR_IOVA,
}


def driver_bound(lab: Lab) -> Finding:
    """virtio_iommu holds a device, and the kernel's log says so."""
    guest.load_module("virtio-iommu")
    expect(DRIVER.is_dir(), "the kernel has no driver virtio_iommu (module not loaded?)")
    bound = sorted(entry.name for entry in DRIVER.iterdir() if entry.name.startswith("virtio"))
    expect(bool(bound), "the driver virtio_iommu is loaded but holds no device")
    lines = lab.log.find("virtio_iommu")
    expect(bool(lines), "the kernel's log has no line of virtio_iommu")
    function = (DRIVER / bound[0]).resolve().parent.name
    detail = f"virtio_iommu holds {', '.join(bound)} on PCI function {function}"
    return Finding(detail, {"devices": bound, "function": function, "kernel": lines})


def own_group(lab: Lab) -> Finding:
    """The accelerator, and any other there is, bound to vfio-pci, is alone in its IOMMU group."""
    found = guest.find_pci(accel.VENDOR_ID, accel.DEVICE_ID)
    expect(bool(found), f"no PCI function {accel.VENDOR_ID:04x}:{accel.DEVICE_ID:04x}")
    lab.bdf = found[0]
    # Before a driver asks for a function, kernels up to at least 6.12 do not look it up in VIOT: it has no group.
    for bdf in found:
        bind_to_vfio(bdf)
        group = guest.link_name(guest.SYS / "bus/pci/devices" / bdf / "iommu_group")
        expect(group is not None, f"{bdf} is in no IOMMU group: the kernel does not put it behind the IOMMU")
        lab.accelerators[bdf] = int(group or -1)
    groups = {entry.name: sorted(os.listdir(entry / "devices")) for entry in GROUPS.iterdir()}
    for bdf, number in lab.accelerators.items():
        members = groups[str(number)]
        expect(members == [bdf], f"group {number} holds more than accelerator {bdf}: {members}")
    lab.group = lab.accelerators[lab.bdf]
    reserved = {bdf: _reserved_regions(number) for bdf, number in lab.accelerators.items()}
    alone = ", ".join(f"{bdf} in group {number}" for bdf, number in lab.accelerators.items())
    detail = f"bound to vfio-pci and alone: {alone}; the guest has {len(groups)} group(s)"
    return Finding(detail, {"bdf": lab.bdf, "group": lab.group, "groups": groups, "reserved": reserved})


def _reserved_regions(group: int) -> list[str]:
    """What the kernel will not map there, as it prints it: inclusive ends, and a word for the kind."""
    return guest.read_text(GROUPS / str(group) / "reserved_regions").splitlines()


def bind_to_vfio(bdf: str) -> None:
    """Give function `bdf` to vfio-pci, modules loaded. Raises CheckFailed and OSError."""
    for module in VFIO_MODULES:
        guest.load_module(module)
    unsafe = guest.SYS / "module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
    if unsafe.exists() and guest.read_text(unsafe) != "Y":
        unsafe.write_text("1")  # no interrupt remapping here, and VFIO insists on it unless told
    guest.bind_driver(bdf, "vfio-pci")
    driver = guest.link_name(guest.SYS / "bus/pci/devices" / bdf / "driver")
    expect(driver == "vfio-pci", f"{bdf} is held by driver {driver}, not by vfio-pci")


def opens_through_vfio(lab: Lab) -> Finding:
    """Container, group and device open; the BARs are mapped, the ID register matches, the engine runs."""
    expect(lab.group >= 0, "not run: the accelerator was not found behind the IOMMU")
    container = vfio.Container(lab.group)
    device = vfio.Device(container, lab.bdf)
    lab.opened(container, device)
    on = vfio.COMMAND_MEMORY | vfio.COMMAND_BUS_MASTER
    expect(
        device.set_command(on=on) & on == on, f"command register holds {device.command():#x} after switching on {on:#x}"
    )
    registers, devmem = device.bar(0), device.bar(2)
    identity = registers.read32(accel.ID)
    expect(identity == accel.ID_VALUE, f"ID register reads {identity:#010x}, expected {accel.ID_VALUE:#010x}")
    lab.power_on = read_registers(registers)
    container.map(RING_IOVA, lab.ring, vfio.READ | vfio.WRITE)
    engine = accel.Accelerator(registers, lab.ring.memory, RING_IOVA)
    engine.start()
    status = registers.read32(accel.STATUS)
    expect(bool(status & accel.RUNNING), f"the engine does not run: STATUS {status:#x}")
    lab.started(engine, registers, devmem)
    version, nvectors = registers.read32(accel.VERSION), device.nvectors()
    detail = f"ID {identity:#010x}, version {version}, {nvectors} MSI-X vectors, engine running"
    return Finding(detail, {"id": identity, "version": version, "vectors": nvectors, "power_on": lab.power_on})


def read_registers(registers: accel.Registers) -> dict[str, int]:
    """The registers a reset must put back, by name."""
    values = {name: registers.read32(offset) for name, offset in POWER_ON_ZERO.items()}
    values.update({name: registers.read64(offset) for name, offset in POWER_ON_ZERO_64.items()})
    return values


def gives_everything_back(lab: Lab) -> Finding:
    """The device is closed and unbound; nothing stays mapped."""
    lab.engine.reset()
    lab.container.unmap(RING_IOVA, lab.ring.nbytes)
    lab.close()
    for bdf in lab.accelerators:
        guest.unbind_driver(bdf)
        driver = guest.link_name(guest.SYS / "bus/pci/devices" / bdf / "driver")
        expect(driver is None, f"{bdf} is still held by {driver}")
    return Finding("device closed, driver unbound, no mapping left")
