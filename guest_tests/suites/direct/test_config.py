"""The device configuration: its fields, its size, access widths, and the one field a driver may write.

virtio 1.4, "Device configuration layout".
"""

from __future__ import annotations

from typing import Any

import pytest
from asking import INPUT_STOP, MSI_START, PAGE, unit_state

from guest_tests.payload.direct import Feature, Viommu
from guest_tests.payload.direct.wire import BYPASS_OFFSET
from guest_tests.payload.fixtures import OpenViommu
from guest_tests.payload.host import Host

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


def test_page_size_mask_has_the_granule_as_its_lowest_bit(viommu: Viommu) -> None:
    """D4: the device MUST set at least one bit."""
    assert viommu.config.page_size_mask == 2**64 - PAGE


def test_the_ranges_are_those_the_unit_was_given(viommu: Viommu) -> None:
    """Both ends are inclusive on the wire."""
    assert viommu.config.input_range == (0, INPUT_STOP)
    assert viommu.config.domain_range == (0, 2**32)


def test_another_unit_has_a_configuration_of_its_own(open_viommu: OpenViommu) -> None:
    """machine.yaml gives the second unit 32 address bits."""
    other = open_viommu(1)

    assert other.config.input_range == (0, 2**32)
    assert other.config.input_range.stop > MSI_START


def test_probe_size_and_the_boot_value_of_bypass_can_be_read(viommu: Viommu) -> None:
    """D5: bypass may start as 1, which it does here."""
    assert viommu.config.probe_size == 512
    assert viommu.config.raw[BYPASS_OFFSET] == 1


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


def test_no_field_but_bypass_can_be_written(viommu: Viommu) -> None:
    """R2: a driver MUST NOT; the device ignores it."""
    before = content(viommu, 4)

    for name, (offset, width) in FIELDS.items():
        for value in ((1 << 8 * width) - 1, 0, 0x5A):
            viommu.transport.write_config(offset, width, value)
            assert content(viommu, 4) == before, f"{name} took {value:#x}"


@pytest.mark.parametrize("value", [0, 1])
def test_bypass_keeps_what_was_written(viommu: Viommu, host: Host, value: int) -> None:
    """R3: a driver writes 0 or 1. The unit agrees with what is read."""
    viommu.bypass = 1 - value
    viommu.bypass = value

    assert viommu.transport.read_config(BYPASS_OFFSET, 1) == value
    assert unit_state(host)["bypass"] is bool(value)


@pytest.mark.parametrize("value", [2, 3, 0x80, 0xFF])
def test_bypass_never_shows_another_value_than_0_and_1(viommu: Viommu, value: int) -> None:
    """D8: the device MUST NOT. Such a write is ignored."""
    for before in (0, 1):
        viommu.bypass = before

        viommu.bypass = value

        assert viommu.transport.read_config(BYPASS_OFFSET, 1) == before


@pytest.mark.parametrize("value", [0, 1])
def test_bypass_can_be_written_by_a_wider_access_that_covers_it(viommu: Viommu, value: int) -> None:
    """The specification asks drivers for the field's width; the device takes the byte out of what comes."""
    viommu.bypass = 1 - value

    viommu.transport.write_config(BYPASS_OFFSET, 4, 0xFFFFFF00 | value)

    assert viommu.transport.read_config(BYPASS_OFFSET, 4) == value


def test_bypass_cannot_be_written_by_a_driver_that_did_not_accept_bypass_config(open_viommu: OpenViommu) -> None:
    """R2: only after BYPASS_CONFIG was negotiated; otherwise the write is ignored."""
    viommu = open_viommu()
    viommu.bypass = 1
    viommu = open_viommu(without=Feature.BYPASS_CONFIG)

    viommu.bypass = 0

    assert viommu.bypass is True


def test_bypass_survives_a_device_reset(open_viommu: OpenViommu) -> None:
    """D6: SHOULD survive."""
    viommu = open_viommu()
    viommu.bypass = 0

    viommu = open_viommu()

    assert viommu.bypass is False


@pytest.fixture(autouse=True)
def _bypass_as_it_was(open_viommu: OpenViommu) -> Any:
    """Bypass outlives a reset, so every test here gives it back."""
    yield
    open_viommu().bypass = 1
