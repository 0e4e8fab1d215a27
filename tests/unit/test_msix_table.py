"""A function that keeps its MSI-X table itself: what QEMU sees of it, its messages, masks and pending bits."""

from __future__ import annotations

from struct import pack

import pytest

from tests.support.pci import Recorder, get, put, standard
from vdev.pci.function import CONFIG_NBYTES
from vdev.pci.msix import MsixTable
from vdev.wire import pci

TABLE_BAR, PBA_OFFSET = 4, 0x800
ADDRESS, DATA = 0xFEE0_1000, 0x4021


class Own(Recorder):
    """Such a function with bus mastering and MSI-X on, and the messages it sent."""

    def __init__(self) -> None:
        super().__init__()
        self.keep_msix_table()
        self.sent: list[tuple[int, int, int]] = []
        self.raise_message = lambda vector, address, data: self.sent.append((vector, address, data))
        self.control = standard(self, pci.CapId.MSIX) + pci.MSIX_CONTROL
        put(self, pci.COMMAND, 2, pci.Command.MEMORY | pci.Command.BUS_MASTER)
        put(self, self.control, 2, pci.MSIX_ENABLE)

    def entry(self, vector: int, *, masked: bool = False) -> None:
        """Write a vector's entry as a driver does, 4 bytes at a time."""
        for at, value in enumerate((ADDRESS + vector * 4, 0, DATA + vector, int(masked))):
            self.bar_write(TABLE_BAR, vector * 16 + at * 4, pack("<I", value))

    def pending(self) -> int:
        return int.from_bytes(self.bar_read(TABLE_BAR, PBA_OFFSET, 8), "little")


def test_the_long_read_shows_no_msix_and_all_else_as_it_is() -> None:
    own = Own()
    at = standard(own, pci.CapId.MSIX)

    shown, real = own.config_read(0, CONFIG_NBYTES), own.config.read(0, CONFIG_NBYTES)

    assert shown[at] == pci.CapId.VENDOR
    assert (shown[:at], shown[at + 1 :]) == (real[:at], real[at + 1 :])


def test_a_guest_reads_msix_where_qemu_does_not() -> None:
    own = Own()
    at = standard(own, pci.CapId.MSIX)

    assert get(own, at, 1) == pci.CapId.MSIX
    assert get(own, at, 4) & 0xFF == pci.CapId.MSIX


def test_a_function_whose_table_is_qemus_hides_nothing() -> None:
    function = Recorder()

    assert function.config_read(0, CONFIG_NBYTES) == function.config.read(0, CONFIG_NBYTES)


def test_a_vector_is_sent_as_the_message_the_driver_wrote() -> None:
    own = Own()
    own.entry(1)

    own.signal(1)

    assert own.sent == [(1, ADDRESS + 4, DATA + 1)]


def test_the_table_reads_back_what_was_written_and_begins_masked() -> None:
    own = Own()
    before = own.bar_read(TABLE_BAR, 12, 4)
    own.entry(0)

    assert before == pack("<I", 1)
    assert own.bar_read(TABLE_BAR, 0, 8) == pack("<Q", ADDRESS)
    assert own.bar_read(TABLE_BAR, 12, 4) == bytes(4)


def test_a_masked_vector_is_pending_and_goes_out_once_when_it_is_unmasked() -> None:
    own = Own()
    own.entry(0, masked=True)
    own.signal(0)
    own.signal(0)
    masked = (own.sent[:], own.pending())

    own.bar_write(TABLE_BAR, 12, bytes(4))

    assert masked == ([], 1)
    assert (own.sent, own.pending()) == ([(0, ADDRESS, DATA)], 0)


def test_the_function_mask_holds_every_vector_back() -> None:
    own = Own()
    own.entry(0)
    own.entry(1, masked=True)
    put(own, own.control, 2, pci.MSIX_ENABLE | pci.MSIX_FUNCTION_MASK)
    own.signal(0)
    own.signal(1)
    masked = (own.sent[:], own.pending())

    put(own, own.control, 2, pci.MSIX_ENABLE)

    assert masked == ([], 3)
    assert (own.sent, own.pending()) == ([(0, ADDRESS, DATA)], 2)


@pytest.mark.parametrize("gate", ["MSI-X off", "bus master off", "removed", "no such vector"])
def test_nothing_is_sent_past_a_gate(gate: str) -> None:
    own = Own()
    own.entry(0)
    if gate == "MSI-X off":
        put(own, own.control, 2, 0)
    elif gate == "bus master off":
        put(own, pci.COMMAND, 2, pci.Command.MEMORY)
    own.removed = gate == "removed"

    own.signal(2 if gate == "no such vector" else 0)

    assert own.sent == []


def test_switching_msix_off_forgets_what_was_pending() -> None:
    own = Own()
    own.entry(0, masked=True)
    own.signal(0)

    put(own, own.control, 2, 0)

    assert own.pending() == 0


@pytest.mark.parametrize("how", ["system", "function-level"])
def test_a_reset_masks_every_vector(how: str) -> None:
    own = Own()
    own.entry(0)
    if how == "system":
        own.reset()
    else:
        put(own, standard(own, pci.CapId.PCIE) + pci.DEVCTL, 2, pci.DEVCTL_FLR)
    put(own, pci.COMMAND, 2, pci.Command.BUS_MASTER)
    put(own, own.control, 2, pci.MSIX_ENABLE)

    own.signal(0)

    assert (own.sent, own.pending()) == ([], 1)
    assert own.bar_read(TABLE_BAR, 0, 8) == bytes(8)


def test_a_write_past_the_tables_end_is_cut() -> None:
    table = MsixTable(2)

    table.write(28, bytes(8))

    assert table.read(24, 16) == bytes(16)
    assert table.message(1) == (0, 0)


@pytest.mark.parametrize("how", ["bus-master-off", "flr", "reset", "stopped", "gone"])
def test_what_takes_the_bus_away_voids_messages_that_are_not_on_their_way(how: str) -> None:
    own = Own()
    voided: list[str] = []
    own.void_messages = lambda: voided.append(how)
    flr = standard(own, pci.CapId.PCIE) + pci.DEVCTL

    put(own, pci.COMMAND, 2, pci.Command.MEMORY | pci.Command.BUS_MASTER)
    before = list(voided)
    {
        "bus-master-off": lambda: put(own, pci.COMMAND, 2, pci.Command.MEMORY),
        "flr": lambda: put(own, flr, 2, pci.DEVCTL_FLR),
        "reset": own.reset,
        "stopped": own.stop_dma,
        "gone": own.disconnected,
    }[how]()
    own.signal(0)

    assert before == []
    assert voided == [how]
    assert own.sent == []
