"""Configuration space, capabilities and the base of every function."""

from __future__ import annotations

from itertools import pairwise

import pytest

from vdev.pci import capabilities
from vdev.pci.base import PciFunction
from vdev.pci.config_space import Capability, ConfigSpace, Identity
from vdev.pci.function import Bar, Function
from vdev.pci.msix import MsixLayout
from vdev.wire import pci

IDENTITY = Identity(0x1234, 0x7664, 0x088000, 1, 0x1234, 0x7664)
BARS = (Bar(0, 4096), Bar(2, 1 << 20, prefetchable=True), Bar(4, 4096, is_64bit=False))
EXTENDED = (
    capabilities.aer(),
    capabilities.ats(),
    capabilities.pri(64),
    capabilities.pasid(16, execute=True),
    capabilities.acs(),
)


class Recorder(PciFunction):
    """A function that notes its hooks."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        super().__init__("recorder", IDENTITY, BARS, MsixLayout(2, 4), extended=EXTENDED)

    def on_reset(self) -> None:
        self.calls.append(f"reset dma={self.dma_enabled}")

    def on_bus_master(self, enabled: bool) -> None:
        self.calls.append(f"bus master {enabled}")

    def read_register(self, bar: int, offset: int, nbytes: int) -> bytes:
        return bytes([0xAB]) * nbytes

    def write_register(self, bar: int, offset: int, data: bytes) -> None:
        self.calls.append(f"write {bar}:{offset:#x} {data.hex()}")


def put(function: PciFunction, offset: int, nbytes: int, value: int) -> None:
    function.config_write(offset, value.to_bytes(nbytes, "little"))


def get(function: PciFunction, offset: int, nbytes: int) -> int:
    return int.from_bytes(function.config_read(offset, nbytes), "little")


def standard(function: PciFunction, cap_id: int) -> int:
    offset = function.config.find(cap_id)
    assert offset is not None
    return offset


def extended(function: PciFunction, cap_id: int) -> int:
    offset = function.config.find(cap_id, extended=True)
    assert offset is not None
    return offset


def extended_chain(function: PciFunction) -> list[tuple[int, int]]:
    """(id, offset) along the extended list."""
    out, offset = [], 0x100
    while offset:
        word = get(function, offset, 4)
        out.append((word & 0xFFFF, offset))
        offset = word >> 20
    return out


def test_a_function_satisfies_the_protocol_of_the_server() -> None:
    function: Function = Recorder()

    assert function.msix_vectors == 2


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


def test_the_standard_list_links_pcie_then_msix() -> None:
    function = Recorder()

    first = get(function, pci.CAPABILITY_POINTER, 1)
    second = get(function, first + 1, 1)

    assert (get(function, first, 1), get(function, second, 1)) == (pci.CapId.PCIE, pci.CapId.MSIX)
    assert second - first == pci.PCIE_NBYTES
    assert get(function, second + 1, 1) == 0
    assert get(function, first + 2, 2) == 0x0002


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


def test_device_control_is_writable_and_errors_are_cleared_by_ones() -> None:
    function = Recorder()
    pcie = standard(function, pci.CapId.PCIE)
    function.config.set(pcie + pci.DEVSTA, 2, 0x0F)

    put(function, pcie + pci.DEVCTL, 2, 0x2937)
    put(function, pcie + pci.DEVSTA, 2, 0x05)

    assert get(function, pcie + pci.DEVCTL, 2) == 0x2937
    assert get(function, pcie + pci.DEVSTA, 2) == 0x0A


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


def test_command_register_has_no_io_space_and_status_errors_clear_by_ones() -> None:
    function = Recorder()
    function.config.set(pci.STATUS, 2, pci.STATUS_CAPABILITIES | 0x8000)

    put(function, pci.COMMAND, 4, 0xFFFFFFFF)

    assert get(function, pci.COMMAND, 2) == 0x0546
    assert get(function, pci.STATUS, 2) == pci.STATUS_CAPABILITIES


def test_aer_status_is_write_one_to_clear_and_the_masks_are_writable() -> None:
    function = Recorder()
    aer = extended(function, pci.ExtCapId.AER)
    function.config.set(aer + pci.AER_UNCORRECTABLE_STATUS, 4, 0x00108000)
    function.config.set(aer + pci.AER_CORRECTABLE_STATUS, 4, 0x2001)

    put(function, aer + pci.AER_UNCORRECTABLE_STATUS, 4, 0x00100000)
    put(function, aer + pci.AER_CORRECTABLE_STATUS, 4, 0x0001)
    put(function, aer + pci.AER_UNCORRECTABLE_SEVERITY, 4, 0xFFFFFFFF)

    assert get(function, aer + pci.AER_UNCORRECTABLE_STATUS, 4) == 0x00008000
    assert get(function, aer + pci.AER_CORRECTABLE_STATUS, 4) == 0x2000
    assert get(function, aer + pci.AER_UNCORRECTABLE_SEVERITY, 4) == pci.AER_UNCORRECTABLE_BITS
    assert get(function, aer + pci.AER_CORRECTABLE_MASK, 4) == pci.AER_CORRECTABLE_MASK_POWER_ON


def test_ats_control_takes_enable_and_page_size_only() -> None:
    function = Recorder()
    ats = extended(function, pci.ExtCapId.ATS)

    put(function, ats + pci.ATS_CONTROL, 2, 0xFFFF)

    assert get(function, ats + pci.ATS_CONTROL, 2) == 0x801F
    assert function.ats_enabled


def test_pri_reads_stopped_until_it_is_enabled() -> None:
    function = Recorder()
    pri = extended(function, pci.ExtCapId.PRI)
    before = get(function, pri + pci.PRI_STATUS, 2)

    put(function, pri + pci.PRI_ALLOCATION, 4, 32)
    put(function, pri + pci.PRI_CONTROL, 2, pci.PRI_ENABLE)
    while_on = get(function, pri + pci.PRI_STATUS, 2), function.pri_enabled
    put(function, pri + pci.PRI_CONTROL, 2, 0)

    assert before == pci.PRI_STOPPED | pci.PRI_RESPONSE_PASID_REQUIRED
    assert while_on == (pci.PRI_RESPONSE_PASID_REQUIRED, True)
    assert get(function, pri + pci.PRI_STATUS, 2) & pci.PRI_STOPPED
    assert get(function, pri + pci.PRI_CAPACITY, 4) == 64
    assert get(function, pri + pci.PRI_ALLOCATION, 4) == 32


def test_pri_reset_reads_zero_and_acts_only_while_disabled() -> None:
    function = Recorder()
    pri = extended(function, pci.ExtCapId.PRI)
    failed = pci.PRI_RESPONSE_FAILURE | pci.PRI_STOPPED
    put(function, pri + pci.PRI_CONTROL, 2, pci.PRI_ENABLE)
    function.config.set(pri + pci.PRI_STATUS, 2, failed)

    put(function, pri + pci.PRI_CONTROL, 2, pci.PRI_ENABLE | pci.PRI_RESET)
    while_on = get(function, pri + pci.PRI_STATUS, 2)
    put(function, pri + pci.PRI_CONTROL, 2, 0)
    put(function, pri + pci.PRI_CONTROL, 2, pci.PRI_RESET)

    assert while_on & pci.PRI_RESPONSE_FAILURE
    assert get(function, pri + pci.PRI_STATUS, 2) == pci.PRI_STOPPED
    assert get(function, pri + pci.PRI_CONTROL, 2) == 0


def test_pasid_control_is_limited_by_its_capability() -> None:
    function = Recorder()
    pasid = extended(function, pci.ExtCapId.PASID)

    put(function, pasid + pci.PASID_CONTROL, 2, 0xFFFF)

    assert get(function, pasid + pci.PASID_CAPABILITY, 2) == 16 << 8 | pci.PASID_EXECUTE
    assert get(function, pasid + pci.PASID_CONTROL, 2) == pci.PASID_ENABLE | pci.PASID_EXECUTE
    assert function.pasid_enabled


def test_acs_control_takes_only_what_is_offered() -> None:
    function = Recorder()
    acs = extended(function, pci.ExtCapId.ACS)

    put(function, acs + pci.ACS_CONTROL, 2, 0xFFFF)

    assert get(function, acs + pci.ACS_CONTROL, 2) == get(function, acs + pci.ACS_CAPABILITY, 2)


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
