"""The contenders: one machine, and in it one of four IOMMUs in front of two devices. Pure.

What every contender's guest shares: QEMU, machine, RAM, CPU model, kernel and its command line, initramfs, and where
things sit: the IOMMU in slot 10, the device VFIO holds behind one root port, a virtio-rng behind the next. vdev's has a
second unit, with nothing behind it, which the guest drives itself: for PASIDs, which no kernel knows.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from guest_tests.payload import accel, checks_hwrng
from vdev.config import Attach, Config, EndpointConfig, PasidsConfig, UnitConfig, VmConfig

MEMORY = "1G"
NHUGE = 132  # pages of 2 MiB: the 256 MiB, and a few
# Strict unmapping said aloud, whatever a kernel's default is; the words for Intel's IOMMU mean nothing without one.
APPEND = f"iommu.strict=1 iommu.passthrough=0 intel_iommu=on hugepages={NHUGE}"
EDU = (0x1234, 0x11E8)  # docs/specs/edu.rst of QEMU: a plain PCI device, here it only has to carry a container
RNG = (checks_hwrng.VENDOR_ID, checks_hwrng.DEVICE_ID)


@dataclass(frozen=True)
class Contender:
    """An IOMMU to measure. `attach` is how vdev's unit reaches QEMU; without it `device` is QEMU's own."""

    name: str
    title: str
    attach: Attach | None = None
    device: str = ""

    @property
    def ours(self) -> bool:
        """Whether the IOMMU is vdev's."""
        return self.attach is not None

    @property
    def vfio_ids(self) -> tuple[int, int]:
        """Vendor and device of what the guest gives to VFIO."""
        return (accel.VENDOR_ID, accel.DEVICE_ID) if self.ours else EDU


CONTENDERS = (
    Contender("vdev-vfio-user", "vdev, vfio-user", attach="vfio-user"),
    Contender("vdev-vhost-user", "vdev, vhost-user", attach="vhost-user"),
    Contender("virtio-iommu-pci", "QEMU virtio-iommu", device="virtio-iommu-pci,bus=pcie.0,addr=10.0"),
    # No interrupt remapping: none of the others has it. It has no address of its own: it is part of the chipset.
    Contender("intel-iommu", "QEMU intel-iommu", device="intel-iommu,caching-mode=on,intremap=off"),
)


def machine(contender: Contender, cpus: int, kernel: str | None = None) -> Config:
    """The configuration of the contender's machine; one of QEMU's has no unit, and its devices are arguments."""
    vm = VmConfig(
        name=f"bench-{contender.name}", memory=MEMORY, cpus=cpus, append=APPEND, kernel=kernel,
        extra_args=() if contender.ours else _native(contender),
    )  # fmt: skip
    if contender.attach is None:
        return Config(vm=vm, units=())
    endpoints = (
        EndpointConfig(name="accel0", model="accelerator", bdf="01:00.0"),
        EndpointConfig(name="rng0", model="rng", bdf="02:00.0"),
    )
    unit = UnitConfig(name="iommu0", bdf="00:10.0", attach=contender.attach)
    apart = UnitConfig(name="iommu1", bdf="00:11.0", attach=contender.attach)
    vm = msgspec.structs.replace(vm, pasids=PasidsConfig(authority="pasids"))  # the authority is this VM's own
    return Config(vm=vm, units=(unit, apart), endpoints=endpoints)


def _native(contender: Contender) -> tuple[str, ...]:
    """QEMU's own IOMMU and devices, where vdev's would sit."""
    devices = (
        contender.device,
        *(f"pcie-root-port,id=port{n},bus=pcie.0,addr={n + 1:02x}.0,chassis={n},slot={n},io-reserve=0" for n in (1, 2)),
        "edu,bus=port1,addr=00.0",
        "virtio-rng-pci,bus=port2,addr=00.0,disable-legacy=on,iommu_platform=on",
    )
    return tuple(word for device in devices for word in ("-device", device))
