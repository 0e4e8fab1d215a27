"""Configuration space: header, BARs and the two capability lists."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.support.pci import BARS, IDENTITY, Recorder, extended_chain, get, put
from vdev.pci.base import PciFunction
from vdev.pci.config_space import Capability, ConfigSpace
from vdev.pci.function import Bar
from vdev.pci.msix import MsixLayout
from vdev.wire import pci


def test_the_header_carries_the_identity() -> None:
    header = pci.Type0Header.parse(Recorder().config_read(0, 4096))

    assert (header.vendor, header.device, header.subsystem_vendor, header.subsystem) == (0x1234, 0x7664, 0x1234, 0x7664)
    assert header.class_code == bytes([0x00, 0x80, 0x08])
    assert header.interrupt_pin == 0
    assert header.status & pci.STATUS_CAPABILITIES


def test_identity_registers_cannot_be_written() -> None:
    function = Recorder()

    put(function, 0, 8, 0xFFFFFFFF_FFFFFFFF & ~(0x7 << 32))

    assert get(function, 0, 4) == 0x76641234


def test_reads_beyond_the_space_are_zero_and_writes_are_dropped() -> None:
    function = Recorder()

    put(function, 4094, 8, 0xFFFFFFFFFFFFFFFF)

    assert function.config_read(4096, 8) == bytes(8)
    assert len(function.config_read(4090, 16)) == 16
    assert function.config_read(1 << 40, 4) == bytes(4)


@pytest.mark.parametrize("nbytes", [1, 2, 4, 8])
def test_every_access_width_reads_the_same_bytes(nbytes: int) -> None:
    function = Recorder()
    whole = function.config_read(0, 4096)

    pieces = b"".join(function.config_read(at, nbytes) for at in range(0, 256, nbytes))

    assert pieces == whole[:256]


def test_a_64_bit_bar_sizes_across_both_registers() -> None:
    function = Recorder()

    put(function, pci.BAR0 + 8, 4, 0xFFFFFFFF)
    put(function, pci.BAR0 + 12, 4, 0xFFFFFFFF)

    assert get(function, pci.BAR0 + 8, 8) == (1 << 64) - (1 << 20) | pci.BAR_64BIT | pci.BAR_PREFETCHABLE


def test_a_32_bit_bar_sizes_and_its_neighbour_does_not_exist() -> None:
    function = Recorder()

    put(function, pci.BAR0 + 16, 8, 0xFFFFFFFFFFFFFFFF)

    assert get(function, pci.BAR0 + 16, 8) == 0xFFFFF000


def test_the_rom_bar_reads_zero_when_sized() -> None:
    function = Recorder()

    put(function, 0x30, 4, 0xFFFFF800)

    assert get(function, 0x30, 4) == 0


@pytest.mark.parametrize(
    "bars",
    [
        (Bar(0, 3000),),
        (Bar(0, 8),),
        (Bar(5, 4096),),
        (Bar(0, 4096), Bar(1, 4096)),
        (Bar(0, 1 << 32, is_64bit=False),),
    ],
)
def test_bars_that_would_make_qemu_abort_are_refused(bars: tuple[Bar, ...]) -> None:
    with pytest.raises(ValueError, match="BAR"):
        ConfigSpace(IDENTITY, bars)


def test_the_extended_list_starts_at_0x100_with_room_between_entries() -> None:
    chain = extended_chain(Recorder())

    offsets = [offset for _, offset in chain]
    assert [cap_id for cap_id, _ in chain] == [0x01, 0x0F, 0x13, 0x1B, 0x0D]
    assert offsets[0] == 0x100
    assert all(after - before >= 8 for before, after in pairwise(offsets))


def test_a_function_without_extended_capabilities_reads_zero_at_0x100() -> None:
    function = PciFunction("plain", IDENTITY, BARS, MsixLayout(1, 4))

    assert get(function, 0x100, 4) == 0


def test_a_standard_list_that_leaves_256_bytes_is_refused() -> None:
    config = ConfigSpace(IDENTITY, BARS)

    with pytest.raises(ValueError, match="does not fit"):
        config.add_capability(Capability(pci.CapId.VENDOR, 0xC4))


def test_an_extended_list_that_leaves_the_space_is_refused() -> None:
    config = ConfigSpace(IDENTITY, BARS)

    with pytest.raises(ValueError, match="does not fit"):
        config.add_extended(Capability(pci.ExtCapId.AER, 4096))


def test_command_register_has_no_io_space_and_status_errors_clear_by_ones() -> None:
    function = Recorder()
    function.config.set(pci.STATUS, 2, pci.STATUS_CAPABILITIES | 0x8000)

    put(function, pci.COMMAND, 4, 0xFFFFFFFF)

    assert get(function, pci.COMMAND, 2) == 0x0546
    assert get(function, pci.STATUS, 2) == pci.STATUS_CAPABILITIES
