"""The virtio-pci modern transport around a device that only takes notes."""

from __future__ import annotations

import pytest

from tests.support import virtio_pci as regs
from tests.support.virtio_pci import NEGOTIATED, OFFERED, READY, RUNNING, NotingRig
from vdev.functions.virtio_pci import (
    DEVICE_OFFSET,
    ISR_OFFSET,
    NOTIFY_OFFSET,
    STRUCTURES_BAR,
    VirtioPciFunction,
)
from vdev.pci.function import Function
from vdev.wire import pci
from vdev.wire import virtio_pci as wire
from vdev.wire.virtio_pci import CfgType, PciCap, Status


@pytest.fixture
def rig() -> NotingRig:
    return NotingRig()


def vendor_capabilities(function: VirtioPciFunction) -> dict[int, tuple[int, PciCap]]:
    """cfg_type -> (offset, capability), walking the list as a driver does."""
    found: dict[int, tuple[int, PciCap]] = {}
    offset = function.config_read(pci.CAPABILITY_POINTER, 1)[0]
    while offset:
        cap = PciCap.parse(function.config_read(offset, PciCap.layout.size))
        if cap.cap_vndr == pci.CapId.VENDOR:
            found.setdefault(cap.cfg_type, (offset, cap))
        offset = cap.cap_next
    return found


def test_the_function_is_a_modern_virtio_iommu(rig: NotingRig) -> None:
    function: Function = rig.function
    header = pci.Type0Header.parse(function.config_read(0, 64))

    assert (header.vendor, header.device, header.revision) == (0x1AF4, 0x1057, 1)
    assert header.class_code == bytes([0x00, 0x06, 0x08])
    assert function.msix_vectors == 3


def test_every_structure_is_announced_inside_its_bar(rig: NotingRig) -> None:
    caps = vendor_capabilities(rig.function)
    sizes = {bar.index: bar.nbytes for bar in rig.function.bars}

    assert sorted(caps) == [CfgType.COMMON, CfgType.NOTIFY, CfgType.ISR, CfgType.DEVICE, CfgType.PCI]
    for _, cap in caps.values():
        assert cap.offset + cap.length <= sizes[cap.bar]
    assert caps[CfgType.COMMON][1].length == 64
    assert caps[CfgType.NOTIFY][1].cap_len == 20
    offset = caps[CfgType.NOTIFY][0] + 16
    assert rig.function.config_read(offset, 4) == b"\x04\0\0\0"


def test_features_are_read_through_windows_of_32_bits(rig: NotingRig) -> None:
    seen = []
    for select in (0, 1, 2, 5, 0xFFFFFFFF):
        rig.driver.write(regs.FEATURE_SELECT, 4, select)
        seen.append(rig.driver.common().device_feature)

    assert seen == [OFFERED & 0xFFFFFFFF, OFFERED >> 32, 0, 0, 0]


def test_negotiation_hands_over_features_and_rings(rig: NotingRig) -> None:
    rig.driver.start(OFFERED & ~0x4)

    assert rig.device.calls == ["reset", f"driver ok {OFFERED & ~0x4:#x}"]
    assert rig.driver.status() == RUNNING
    first = rig.device.queues[0]
    assert first is not None
    assert (first.size, first.event_idx, first.indirect) == (16, True, False)


def test_a_queue_that_was_not_enabled_is_none(rig: NotingRig) -> None:
    rig.driver.start(OFFERED, queues=1)

    assert rig.device.queues[0] is not None
    assert rig.device.queues[1] is None


@pytest.mark.parametrize("features", [0x5, wire.F_VERSION_1 | 0x2, wire.F_VERSION_1 | 1 << 63])
def test_features_ok_is_refused_for_unknown_bits_or_without_version_1(rig: NotingRig, features: int) -> None:
    assert rig.driver.negotiate(features) == READY


def test_a_refused_driver_may_try_again_without_a_reset(rig: NotingRig) -> None:
    rig.driver.negotiate(wire.F_VERSION_1 | 0x2)

    rig.driver.features(wire.F_VERSION_1 | 0x1)

    assert rig.driver.status(NEGOTIATED) == NEGOTIATED


def test_a_feature_in_a_window_beyond_64_bits_is_refused(rig: NotingRig) -> None:
    rig.driver.negotiate(0)
    rig.driver.features(wire.F_VERSION_1)
    rig.driver.write(regs.DRIVER_SELECT, 4, 2)
    rig.driver.write(regs.DRIVER_FEATURE, 4, 1)

    assert rig.driver.status(NEGOTIATED) == READY


def test_features_are_fixed_once_accepted(rig: NotingRig) -> None:
    rig.driver.negotiate(wire.F_VERSION_1)

    rig.driver.features(OFFERED)
    rig.driver.status(RUNNING)

    assert rig.device.calls[-1] == f"driver ok {wire.F_VERSION_1:#x}"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (Status.DRIVER, 0),
        (Status.ACKNOWLEDGE | Status.DRIVER_OK, Status.ACKNOWLEDGE),
        (READY | Status.DRIVER_OK, READY),
        (Status.FAILED, Status.FAILED),
        (Status.DEVICE_NEEDS_RESET, 0),
        (0x30, 0),
    ],
)
def test_status_bits_out_of_order_are_not_taken(rig: NotingRig, written: int, read: int) -> None:
    assert rig.driver.status(written) == read


def test_status_bits_are_never_taken_away_but_by_reset(rig: NotingRig) -> None:
    rig.driver.start(OFFERED)

    kept = rig.driver.status(Status.ACKNOWLEDGE)

    assert kept == RUNNING
    assert rig.driver.status(0) == 0
    assert rig.device.calls[-1] == "reset"


def test_after_failed_only_a_reset_helps(rig: NotingRig) -> None:
    rig.driver.status(Status.ACKNOWLEDGE | Status.FAILED)

    assert rig.driver.status(READY) == Status.ACKNOWLEDGE | Status.FAILED


def test_a_reset_returns_every_register_to_its_power_on_value(rig: NotingRig) -> None:
    fresh = rig.driver.common()
    rig.driver.start(OFFERED)

    rig.driver.status(0)

    assert rig.driver.common() == fresh
    rig.driver.notify(0)
    assert "kick 0" not in rig.device.calls


def test_function_reset_is_a_device_reset_and_machine_reset_a_system_reset(rig: NotingRig) -> None:
    rig.driver.start(OFFERED)
    rig.device.calls.clear()
    pcie = rig.function.config.find(pci.CapId.PCIE)
    assert pcie is not None

    rig.function.config_write(pcie + pci.DEVCTL, pci.DEVCTL_FLR.to_bytes(2, "little"))
    after_flr = rig.driver.status()
    rig.function.reset()

    assert after_flr == 0
    assert rig.device.calls == ["reset", "system reset"]


def test_queue_sizes_must_be_powers_of_two_up_to_the_maximum(rig: NotingRig) -> None:
    rig.driver.write(regs.QUEUE_SELECT, 2, 1)
    seen = []
    for size in (0, 3, 128, 32):
        rig.driver.write(regs.QUEUE_SIZE, 2, size)
        seen.append(rig.driver.common().queue_size)

    assert seen == [64, 64, 64, 32]
    assert rig.driver.common().queue_notify_off == 1


def test_a_queue_that_does_not_exist_has_size_zero_and_cannot_be_enabled(rig: NotingRig) -> None:
    rig.driver.write(regs.QUEUE_SELECT, 2, 9)
    rig.driver.write(regs.QUEUE_SIZE, 2, 16)
    rig.driver.write(regs.QUEUE_DESC, 8, 0x1000)
    rig.driver.write(regs.QUEUE_ENABLE, 2, 1)

    common = rig.driver.common()
    assert (common.queue_size, common.queue_enable, common.queue_desc) == (0, 0, 0)


def test_an_enabled_queue_cannot_be_moved_or_disabled(rig: NotingRig) -> None:
    rig.driver.start(OFFERED)
    rig.driver.write(regs.QUEUE_SELECT, 2, 0)
    before = rig.driver.common()

    rig.driver.write(regs.QUEUE_DESC, 8, 0x1000)
    rig.driver.write(regs.QUEUE_SIZE, 2, 8)
    rig.driver.write(regs.QUEUE_ENABLE, 2, 0)

    assert rig.driver.common() == before


def test_a_queue_is_not_enabled_after_driver_ok(rig: NotingRig) -> None:
    rig.driver.start(OFFERED, queues=1)

    rig.driver.write(regs.QUEUE_SELECT, 2, 1)
    rig.driver.write(regs.QUEUE_ENABLE, 2, 1)

    assert rig.driver.common().queue_enable == 0


def test_a_vector_that_does_not_exist_reads_back_as_none(rig: NotingRig) -> None:
    rig.driver.write(regs.CONFIG_VECTOR, 2, 3)
    rig.driver.write(regs.QUEUE_VECTOR, 2, 2)

    common = rig.driver.common()
    assert (common.config_msix_vector, common.queue_msix_vector) == (wire.NO_VECTOR, 2)


def test_registers_take_writes_of_odd_widths(rig: NotingRig) -> None:
    rig.driver.write(regs.QUEUE_DESC, 8, 0x1122334455667788)
    rig.driver.write(regs.QUEUE_DESC + 1, 1, 0xAA)
    rig.driver.write(regs.QUEUE_DESC + 6, 4, 0xDDCCBBEE)

    common = rig.driver.common()
    assert common.queue_desc == 0xBBEE33445566AA88
    assert common.queue_driver == 0xDDCC
    assert rig.driver.read(regs.QUEUE_DESC + 3, 2) == 0x4455


def test_a_kick_reaches_the_device_by_its_offset_once_it_runs(rig: NotingRig) -> None:
    rig.driver.notify(1)
    rig.driver.start(OFFERED)
    rig.device.calls.clear()

    rig.driver.notify(1)
    rig.driver.write(NOTIFY_OFFSET, 4, 0xFFFFFFFF)
    rig.driver.notify(7)

    assert rig.device.calls == ["kick 1", "kick 0"]


def test_queue_and_config_interrupts_go_to_their_vectors_and_the_isr_clears_when_read(rig: NotingRig) -> None:
    rig.driver.start(OFFERED)

    rig.function.interrupt_queue(1)
    rig.function.config_changed()

    assert rig.driver.vectors == [2, 0]
    assert rig.driver.read(ISR_OFFSET, 1) == wire.ISR_QUEUE | wire.ISR_CONFIG
    assert rig.driver.read(ISR_OFFSET, 1) == 0
    assert rig.driver.common().config_generation == 1


def test_the_isr_tells_of_queues_in_bit_0_and_of_the_configuration_in_bit_1(rig: NotingRig) -> None:
    rig.driver.start(OFFERED)

    rig.function.interrupt_queue(1)
    queue = rig.driver.read(ISR_OFFSET, 1)
    rig.function.config_changed()

    assert (queue, rig.driver.read(ISR_OFFSET, 1)) == (1, 2)


def test_a_driver_without_driver_ok_is_told_of_no_configuration_change(rig: NotingRig) -> None:
    rig.driver.negotiate(OFFERED)
    rig.driver.write(regs.CONFIG_VECTOR, 2, 0)

    rig.function.needs_reset("a test")

    assert (rig.driver.vectors, rig.driver.read(ISR_OFFSET, 1)) == ([], 0)


def test_a_queue_without_vector_raises_nothing(rig: NotingRig) -> None:
    rig.driver.start(OFFERED)
    rig.driver.write(regs.QUEUE_SELECT, 2, 0)
    rig.driver.write(regs.QUEUE_VECTOR, 2, wire.NO_VECTOR)

    rig.function.interrupt_queue(0)

    assert rig.driver.vectors == []


def test_needs_reset_is_announced_once_and_only_to_a_running_driver(rig: NotingRig) -> None:
    rig.function.needs_reset("a test")
    before = rig.driver.status(), list(rig.driver.vectors)
    rig.driver.start(OFFERED)

    rig.function.needs_reset("a test")
    rig.function.needs_reset("a test")

    assert before == (Status.DEVICE_NEEDS_RESET, [])
    assert rig.driver.status() == RUNNING | Status.DEVICE_NEEDS_RESET
    assert rig.driver.vectors == [0]


def test_rings_outside_ram_need_a_reset_instead_of_raising(rig: NotingRig) -> None:
    rig.driver.negotiate(OFFERED)
    rig.driver.write(regs.QUEUE_DESC, 8, 0xDEAD0000)
    rig.driver.write(regs.QUEUE_ENABLE, 2, 1)

    assert rig.driver.status(RUNNING) == RUNNING | Status.DEVICE_NEEDS_RESET
    assert rig.device.calls == ["reset"]


def test_device_configuration_is_passed_through_with_what_was_negotiated(rig: NotingRig) -> None:
    before = rig.driver.device_config(36, 4)
    rig.driver.write(DEVICE_OFFSET + 36, 1, 1)
    rig.driver.negotiate(OFFERED)
    rig.driver.write(DEVICE_OFFSET + 36, 1, 0)

    assert before == 0x27262524
    assert rig.device.calls == [
        "config 36=01 features=0x0",
        "reset",
        f"config 36=00 features={OFFERED:#x}",
    ]
    assert rig.driver.device_config(64, 4) == 0
    assert rig.driver.device_config(60, 8) == 0x3F3E3D3C


def test_the_configuration_access_window_reads_and_writes_the_bar(rig: NotingRig) -> None:
    offset, _ = vendor_capabilities(rig.function)[CfgType.PCI]
    data = offset + wire.CAP_PCI_CFG_DATA

    def point(at: int, nbytes: int) -> None:
        rig.function.config_write(offset + wire.CAP_OFFSET, at.to_bytes(4, "little"))
        rig.function.config_write(offset + wire.CAP_LENGTH, nbytes.to_bytes(4, "little"))

    point(0x12, 2)
    queues = rig.function.config_read(data, 4)
    point(regs.STATUS, 1)
    rig.function.config_write(data, b"\x01\xff\xff\xff")

    assert queues == b"\x02\0\0\0"
    assert rig.driver.status() == Status.ACKNOWLEDGE


@pytest.mark.parametrize(("bar", "at", "nbytes"), [(0, 0x14, 3), (2, 0x14, 1), (0, 0xFFFFFFFC, 4)])
def test_a_window_that_points_elsewhere_does_nothing(rig: NotingRig, bar: int, at: int, nbytes: int) -> None:
    offset, _ = vendor_capabilities(rig.function)[CfgType.PCI]
    rig.function.config_write(offset + wire.CAP_BAR, bytes([bar]))
    rig.function.config_write(offset + wire.CAP_OFFSET, at.to_bytes(4, "little") + nbytes.to_bytes(4, "little"))

    rig.function.config_write(offset + wire.CAP_PCI_CFG_DATA, b"\x01\0\0\0")

    assert len(rig.function.config_read(offset + wire.CAP_PCI_CFG_DATA, 4)) == 4
    assert rig.driver.status() == 0


def test_reading_the_whole_space_at_once_does_not_touch_the_window(rig: NotingRig) -> None:
    offset, _ = vendor_capabilities(rig.function)[CfgType.PCI]
    rig.function.config_write(offset + wire.CAP_OFFSET, ISR_OFFSET.to_bytes(4, "little") + b"\x01\0\0\0")
    rig.function.interrupt_queue(0)

    rig.function.config_read(0, 4096)

    assert rig.driver.read(ISR_OFFSET, 1) == wire.ISR_QUEUE


def test_turning_bus_master_on_looks_at_the_rings_again(rig: NotingRig) -> None:
    rig.driver.start(OFFERED)
    rig.device.calls.clear()

    rig.driver.bus_master(False)
    rig.driver.bus_master(True)

    assert rig.device.calls == ["kick 0", "kick 1"]


def test_garbage_of_every_width_everywhere_never_raises(rig: NotingRig) -> None:
    rig.driver.start(OFFERED)
    for offset in range(0, 0x4000, 7):
        for nbytes in (1, 2, 4, 8):
            rig.function.bar_write(STRUCTURES_BAR, offset, b"\xff" * nbytes)
            assert len(rig.function.bar_read(STRUCTURES_BAR, offset, nbytes)) == nbytes

    assert rig.driver.status(0) == 0
