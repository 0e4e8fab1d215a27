"""The device configuration: its fields, its size, access widths, and the one field a driver may write.

virtio 1.4, "Device configuration layout".
"""

from __future__ import annotations

from typing import Any

import pytest
from asking import INPUT_STOP, MSI_START

from guest_tests.payload.direct import Viommu
from guest_tests.payload.direct.wire import BYPASS_OFFSET
from guest_tests.payload.fixtures import OpenViommu

NBYTES = 64
FIELDS = {  # name: offset, width
    "page_size_mask": (0, 8), "input_range.start": (8, 8), "input_range.end": (16, 8), "domain_range.start": (24, 4),
    "domain_range.end": (28, 4), "probe_size": (32, 4), "reserved-37": (37, 1), "reserved-38": (38, 1),
    "reserved-39": (39, 1), "extension-start": (40, 4), "extension-end": (60, 4),
}  # fmt: skip


def content(viommu: Viommu, width: int) -> bytes:
    """All of the configuration, read in accesses of `width` bytes."""
    read = viommu.transport.read_config
    return b"".join(read(at, width).to_bytes(width, "little") for at in range(0, NBYTES, width))


def test_the_ranges_are_those_the_unit_was_given(viommu: Viommu) -> None:
    """Both ends are inclusive on the wire."""
    assert viommu.config.input_range == (0, INPUT_STOP)
    assert viommu.config.domain_range == (0, 2**32)


def test_another_unit_has_a_configuration_of_its_own(open_viommu: OpenViommu) -> None:
    """machine.yaml gives the second unit 32 address bits."""
    other = open_viommu(1)

    assert other.config.input_range == (0, 2**32)
    assert other.config.input_range.stop > MSI_START


def test_reserved_bytes_and_the_rest_of_64_bytes_are_zero(viommu: Viommu) -> None:
    """The specification has 40 bytes; the structure here has 64, the rest kept for extensions."""
    assert content(viommu, 1)[BYPASS_OFFSET + 1 :] == bytes(NBYTES - BYPASS_OFFSET - 1)


def test_the_structure_is_64_bytes_long(viommu: Viommu, machine: dict[str, Any]) -> None:
    """Its capability says so where the PCI function is ours; QEMU's has a page, and reads as ones behind the end."""
    if machine["attach"] == "vfio-user":
        assert viommu.transport.config_nbytes == NBYTES
    else:
        assert viommu.transport.read_config(NBYTES - 4, 4) == 0
        assert viommu.transport.read_config(NBYTES, 4) == 0xFFFFFFFF


@pytest.mark.parametrize("width", [2, 4, 8])
def test_every_access_width_reads_the_same_bytes(viommu: Viommu, width: int) -> None:
    """A driver reads fields by their width; the device has no opinion."""
    assert content(viommu, width) == content(viommu, 1)


def test_reading_does_not_change_the_generation(viommu: Viommu) -> None:
    """The generation tells of changes by the device only."""
    before = viommu.transport.generation
    content(viommu, 4)

    assert viommu.transport.generation == before


def test_a_driver_s_own_write_does_not_change_the_generation(viommu: Viommu) -> None:
    """Likewise."""
    before = viommu.transport.generation
    viommu.bypass = 0

    assert viommu.transport.generation == before
