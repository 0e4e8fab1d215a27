"""What every function shares: gates, resets, BAR bounds, interrupts."""

from __future__ import annotations

import pytest

from tests.support.pci import BARS, IDENTITY, Recorder, extended, get, put, standard
from vdev.pci.base import PciFunction
from vdev.pci.function import Function
from vdev.pci.msix import MsixLayout
from vdev.wire import pci


def test_a_function_satisfies_the_protocol_of_the_server() -> None:
    function: Function = Recorder()

    assert function.msix_vectors == 2


def test_the_standard_list_links_pcie_then_msix() -> None:
    function = Recorder()

    first = get(function, pci.CAPABILITY_POINTER, 1)
    second = get(function, first + 1, 1)

    assert (get(function, first, 1), get(function, second, 1)) == (pci.CapId.PCIE, pci.CapId.MSIX)
    assert second - first == pci.PCIE_NBYTES
    assert get(function, second + 1, 1) == 0
    assert get(function, first + 2, 2) == 0x0002


def test_function_level_reset_stops_dma_first_and_reads_zero() -> None:
    function = Recorder()
    pcie = standard(function, pci.CapId.PCIE)
    put(function, pci.COMMAND, 2, 0x0006)
    function.calls.clear()

    put(function, pcie + pci.DEVCTL, 2, pci.DEVCTL_FLR)

    assert get(function, pcie + pci.DEVCAP, 4) & pci.DEVCAP_FLR
    assert function.calls == ["bus master False", "reset dma=False"]
    assert get(function, pcie + pci.DEVCTL, 2) == pci.DEVCTL_POWER_ON
    assert get(function, pci.COMMAND, 2) == 0


def test_function_level_reset_keeps_bars_and_error_logs_but_a_system_reset_does_not() -> None:
    function = Recorder()
    pcie, aer = standard(function, pci.CapId.PCIE), extended(function, pci.ExtCapId.AER)
    put(function, pci.BAR0, 4, 0xFE000000)
    put(function, aer + pci.AER_UNCORRECTABLE_MASK, 4, 0x00100000)

    put(function, pcie + pci.DEVCTL, 2, pci.DEVCTL_FLR)
    after_flr = get(function, pci.BAR0, 4), get(function, aer + pci.AER_UNCORRECTABLE_MASK, 4)
    function.reset()

    assert after_flr == (0xFE000004, 0x00100000)
    assert (get(function, pci.BAR0, 4), get(function, aer + pci.AER_UNCORRECTABLE_MASK, 4)) == (0x4, 0)


def test_dma_needs_bus_master_and_stopping_lasts_until_the_driver_enables_it_again() -> None:
    function = Recorder()
    put(function, pci.COMMAND, 2, 0x0006)
    enabled = function.dma_enabled

    function.quiesce()
    stopped = function.dma_enabled
    put(function, pci.COMMAND, 2, 0x0006)

    assert (enabled, stopped, function.dma_enabled) == (True, False, True)
    assert function.calls == ["bus master True", "bus master False", "bus master True"]
    assert function.memory_enabled


def test_disconnection_turns_dma_off_and_forgets_registers() -> None:
    function = Recorder()
    put(function, pci.COMMAND, 2, 0x0006)

    function.disconnected()

    assert not function.dma_enabled
    assert function.calls[-1] == "reset dma=False"


def test_a_surprise_removed_function_reads_all_ones_and_drops_writes() -> None:
    function = Recorder()
    put(function, pci.COMMAND, 2, 0x0006)
    function.calls.clear()
    function.removed = True

    function.config_write(pci.COMMAND, bytes(2))
    function.bar_write(0, 0, b"\x01")

    assert function.config_read(0, 4) == b"\xff" * 4
    assert function.bar_read(0, 0, 8) == b"\xff" * 8
    assert not function.dma_enabled
    assert function.calls == []


def test_bar_accesses_outside_are_zero_and_dropped_and_cut_at_the_end() -> None:
    function = Recorder()

    function.bar_write(0, 4096, b"\x01")
    function.bar_write(1, 0, b"\x01")
    function.bar_write(0, 4094, b"\x01\x02\x03\x04")

    assert function.bar_read(0, 5000, 4) == bytes(4)
    assert function.bar_read(3, 0, 4) == bytes(4)
    assert function.bar_read(0, 4094, 4) == b"\xab\xab\0\0"
    assert function.calls == ["write 0:0xffe 0102"]


def test_the_msix_table_is_not_ours_and_pending_bits_are_readable() -> None:
    function = Recorder()
    raised: list[int] = []
    function.raise_vector = raised.append
    control = standard(function, pci.CapId.MSIX) + pci.MSIX_CONTROL
    put(function, pci.COMMAND, 2, 0x0006)
    function.calls.clear()
    put(function, control, 2, pci.MSIX_ENABLE | pci.MSIX_FUNCTION_MASK)

    function.signal(1)
    function.signal(2)
    function.bar_write(4, 0x0, b"\xff" * 4)
    pending = function.bar_read(4, 0x800, 8)
    put(function, control, 2, pci.MSIX_ENABLE)

    assert raised == [1]
    assert pending == b"\x02" + bytes(7)
    assert function.bar_read(4, 0x800, 8) == bytes(8)
    assert function.bar_read(4, 0x0, 4) == bytes(4)
    assert function.calls == []
    assert get(function, control, 2) & 0x7FF == 1


def test_without_bus_master_there_is_no_interrupt_message() -> None:
    function = Recorder()
    raised: list[int] = []
    function.raise_vector = raised.append

    function.signal(0)

    assert raised == []


def test_an_msix_layout_that_overlaps_or_leaves_its_bar_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        MsixLayout(8, 0, 0x0, 0x40)
    with pytest.raises(ValueError, match="leaves BAR"):
        PciFunction("bad", IDENTITY, BARS, MsixLayout(1, 0, 0, 0x1000))
    with pytest.raises(ValueError, match="vectors"):
        MsixLayout(129, 0)
