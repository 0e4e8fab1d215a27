"""The guest payload's ioctl numbers and layouts, against the kernel's and the device's own."""

from __future__ import annotations

import pytest

from guest_tests.payload import accel, vfio
from vdev.wire import accelerator as wire

# As a C program prints them from the kernel header <linux/vfio.h>; DEVICE_INFO has had its padding since Linux 6.6.
IOCTLS = {
    "GET_API_VERSION": 0x3B64,
    "CHECK_EXTENSION": 0x3B65,
    "SET_IOMMU": 0x3B66,
    "GROUP_GET_STATUS": 0x3B67,
    "GROUP_SET_CONTAINER": 0x3B68,
    "GROUP_GET_DEVICE_FD": 0x3B6A,
    "DEVICE_GET_INFO": 0x3B6B,
    "DEVICE_GET_REGION_INFO": 0x3B6C,
    "DEVICE_GET_IRQ_INFO": 0x3B6D,
    "DEVICE_SET_IRQS": 0x3B6E,
    "DEVICE_RESET": 0x3B6F,
    "IOMMU_MAP_DMA": 0x3B71,
    "IOMMU_UNMAP_DMA": 0x3B72,
}
SIZES = {
    "GROUP_STATUS": 8,
    "DEVICE_INFO": 24,
    "REGION_INFO": 32,
    "IRQ_INFO": 16,
    "IRQ_SET": 20,
    "DMA_MAP": 32,
    "DMA_UNMAP": 24,
}


@pytest.mark.parametrize("name", IOCTLS)
def test_vfio_ioctl_numbers_are_the_kernels(name: str) -> None:
    assert getattr(vfio, name) == IOCTLS[name]


@pytest.mark.parametrize("name", SIZES)
def test_vfio_structures_have_the_kernels_sizes(name: str) -> None:
    assert getattr(vfio, name).size == SIZES[name]


def test_descriptors_are_what_the_device_reads() -> None:
    raw = accel.DESCRIPTOR.pack(accel.FILL, accel.FLAG_IRQ, 7, 0, 0x1000, 0x2000, 0x3000, 0x55)

    parsed = wire.Descriptor.parse(raw)

    assert parsed == wire.Descriptor(wire.Op.FILL, wire.Flag.IRQ, 7, 0, 0x1000, 0x2000, 0x3000, 0x55, bytes(24))


def test_completions_are_what_the_device_writes() -> None:
    raw = wire.Completion(9, wire.CompletionStatus.TRANSLATION_FAULT, 0, 0, 5, 0x7000, wire.Access.WRITE, 0).pack()

    assert accel.COMPLETION.unpack(raw) == (9, accel.TRANSLATION_FAULT, 0, 0, 5, 0x7000, accel.WRITE, 0)
    assert raw[accel.STATUS_OFFSET] == accel.TRANSLATION_FAULT


@pytest.mark.parametrize("register", list(wire.Register), ids=lambda register: register.name)
def test_registers_are_where_the_device_has_them(register: wire.Register) -> None:
    if hasattr(accel, register.name):
        assert getattr(accel, register.name) == register
    else:
        assert register in (wire.Register.CAPS,), f"the payload does not know {register.name}"


@pytest.mark.parametrize("name", [*wire.Op.__members__, *wire.Status.__members__])
def test_operation_and_status_numbers_are_the_devices(name: str) -> None:
    theirs = wire.Op[name] if name in wire.Op.__members__ else wire.Status[name]
    assert getattr(accel, name) == theirs


@pytest.mark.parametrize("status", list(wire.CompletionStatus), ids=lambda status: status.name)
def test_completion_statuses_are_the_devices_and_have_words(status: wire.CompletionStatus) -> None:
    assert getattr(accel, status.name) == status
    assert accel.STATUS_NAMES[status]


def test_ring_and_completions_fit_their_memory() -> None:
    assert accel.RING_NENTRIES * accel.DESCRIPTOR.size <= accel.COMPLETIONS_OFFSET
    assert accel.COMPLETIONS_OFFSET + accel.RING_NENTRIES * accel.COMPLETION.size <= accel.MEMORY_NBYTES
