"""The virtio-iommu device between a mock driver's rings and the engine."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.support import virtio_pci as regs
from tests.support.viommu import ATTACH, ENDPOINT, INVAL, LATER, MAP, OK, ViommuRig
from tests.support.virtio_pci import RUNNING
from vdev.functions.base import Progress, Worker
from vdev.functions.viommu import Reply
from vdev.iommu.settings import Limits
from vdev.virtio.device import VirtioDevice
from vdev.wire import pci, vring
from vdev.wire import viommu as wire
from vdev.wire.virtio_pci import F_EVENT_IDX, Status


@pytest.fixture
def rig() -> ViommuRig:
    return ViommuRig()


def test_the_device_is_a_virtio_device_and_a_worker(rig: ViommuRig) -> None:
    device: VirtioDevice = rig.device
    worker: Worker = rig.device

    assert (device.device_id, device.queue_sizes, device.config_nbytes) == (23, (256, 256), 64)
    assert worker.name == "unit"
    assert rig.driver.status() == RUNNING


@pytest.mark.parametrize("event_idx", [False, True])
def test_requests_are_answered_and_published_once_per_batch(event_idx: bool) -> None:
    rig = ViommuRig(event_idx=event_idx)

    assert rig.ask(ATTACH, MAP) == [OK, OK]
    assert rig.driver.vectors == [1]


def test_a_request_in_pieces_and_indirect_is_answered(rig: ViommuRig) -> None:
    rig.requests.submit([ATTACH[:7], ATTACH[7:]], [1, 3])
    rig.requests.submit([MAP[:3], MAP[3:]], [2, 2], indirect=True)

    rig.run()

    assert [done.data for done in rig.requests.reap()] == [OK, OK]


def test_probe_is_answered_with_its_properties_and_tail(rig: ViommuRig) -> None:
    request = wire.Probe(wire.T_PROBE, bytes(3), ENDPOINT).pack()
    rig.driver.submit(0, [request], [512 + 4])

    rig.run()

    (done,) = rig.requests.reap()
    assert (done.used_nbytes, done.data[-4:]) == (516, OK)


@pytest.mark.parametrize("event_idx", [False, True])
def test_kicks_are_not_asked_for_while_polling_and_are_again_when_idle(event_idx: bool) -> None:
    rig = ViommuRig(event_idx=event_idx)

    kicks = [rig.driver.submit(0, [ATTACH], [4])]
    progress = [rig.run()]
    kicks.append(rig.driver.submit(0, [MAP], [4]))
    progress.append(rig.run())
    progress.append(rig.run())
    rig.idle()
    kicks.append(rig.driver.submit(0, [MAP], [4]))

    assert kicks == [True, False, True]
    assert progress == [Progress.POLL, Progress.POLL, Progress.POLL]


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_request_that_slips_in_before_notifications_are_back_is_served(event_idx: bool) -> None:
    rig = ViommuRig(event_idx=event_idx)
    rig.ask(ATTACH)
    rearm = rig.device.queue(0).rearm  # type: ignore[union-attr]

    def submit_then_rearm() -> bool:
        assert not rig.requests.submit([MAP], [4])
        return rearm()

    rig.device.queue(0).rearm = submit_then_rearm  # type: ignore[union-attr, method-assign]
    rig.now += LATER
    progress = rig.run()
    rig.run()

    assert progress is Progress.BUSY
    assert [done.data for done in rig.requests.reap()] == [OK]


def test_a_whole_batch_is_busy(rig: ViommuRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdev.functions.virtio_device.BATCH_CHAINS", 2)
    for request in (ATTACH, MAP, MAP):
        rig.requests.submit([request], [4])

    progress = rig.run()

    assert progress is Progress.BUSY
    assert len(rig.requests.reap()) == 2


def test_a_batch_is_bounded_by_bytes_too(rig: ViommuRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.device.batch_nbytes = 32
    for request in (ATTACH, MAP, MAP):
        rig.requests.submit([request], [4])

    rig.run()

    assert len(rig.requests.reap()) == 2


def test_a_kick_wakes_and_an_idle_device_without_work_stays_idle(rig: ViommuRig) -> None:
    before = rig.woken

    rig.driver.notify(0)

    assert rig.woken == before + 1
    assert rig.run() is Progress.IDLE


def test_a_request_over_the_cap_is_invalid_when_a_tail_fits() -> None:
    rig = ViommuRig(limits=Limits(max_request_nbytes=64))
    rig.driver.submit(0, [ATTACH + bytes(64)], [4])
    rig.driver.submit(0, [ATTACH + bytes(64)], [3])
    rig.driver.submit(0, [bytes([wire.T_PROBE]) + bytes(100)], [516])

    rig.run()

    plain, short, probe = rig.requests.reap()
    assert plain.data == INVAL
    assert short.used_nbytes == 0
    assert (probe.used_nbytes, probe.data[512:]) == (516, INVAL)
    assert rig.device.oversized_requests == 3
    assert not rig.attached


def test_a_broken_ring_needs_a_reset_and_serves_nothing_until_then(rig: ViommuRig) -> None:
    rig.requests.add([ATTACH], [4])
    rig.requests.write_descriptor(rig.requests.free[-1], 0xDEAD_0000_0000, 4, 0)
    rig.requests.offer(rig.requests.free[-1])
    rig.requests.publish()

    rig.run()
    answered = [done.data for done in rig.requests.reap()]
    status = rig.driver.status()

    assert answered == [OK]  # what came before the breakage is not lost
    assert status == RUNNING | Status.DEVICE_NEEDS_RESET
    assert rig.driver.vectors[-1] == 0
    assert rig.device.ring_errors == 1
    assert rig.run() is Progress.IDLE
    rig.driver.start(rig.device.offered_features & ~F_EVENT_IDX)
    assert rig.driver.status() == RUNNING


def test_without_bus_master_the_rings_are_left_alone(rig: ViommuRig) -> None:
    rig.driver.bus_master(False)
    rig.requests.submit([ATTACH], [4])

    progress = rig.run()
    untouched = not rig.requests.has_used()
    rig.driver.bus_master(True)
    rig.run()

    assert (progress, untouched) == (Progress.IDLE, True)
    assert rig.requests.has_used()


def test_a_fault_is_delivered_into_a_posted_buffer_with_an_interrupt(rig: ViommuRig) -> None:
    rig.post(24, 32)

    rig.fault(0x5000)
    rig.fault(0x6000)
    rig.idle()

    assert rig.faults() == [(24, 0x5000), (24, 0x6000)]
    assert rig.driver.vectors == [2]


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_fault_without_buffers_waits_for_the_kick_of_the_next_one(event_idx: bool) -> None:
    rig = ViommuRig(event_idx=event_idx)
    rig.fault(0x5000)
    rig.idle()
    waiting = rig.faults()
    before = rig.woken

    rig.post(24)
    rig.idle()

    assert waiting == []
    assert rig.woken == before + 1
    assert rig.faults() == [(24, 0x5000)]


def test_a_fault_that_does_not_fit_its_buffer_is_dropped_and_counted(rig: ViommuRig) -> None:
    rig.post(23, 24)

    rig.fault(0x5000)
    rig.fault(0x6000)
    rig.idle()

    assert rig.faults() == [(0, 0), (24, 0x6000)]
    assert rig.device.dropped_faults == 1


def test_faults_do_not_disturb_the_request_ring_that_waits_for_kicks(rig: ViommuRig) -> None:
    rig.post(24)
    rig.fault()
    rig.run()

    assert rig.requests.submit([ATTACH], [4])


def test_bypass_is_written_only_after_it_was_negotiated(rig: ViommuRig) -> None:
    address = wire.BYPASS_OFFSET

    rig.driver.write(0x2000 + address, 1, 0)
    negotiated = rig.driver.device_config(address, 1)
    rig.driver.negotiate(rig.device.offered_features & ~wire.F_BYPASS_CONFIG)
    rig.driver.write(0x2000 + address, 1, 1)

    assert negotiated == 0
    assert rig.driver.device_config(address, 1) == 0


def test_no_other_configuration_field_is_writable(rig: ViommuRig) -> None:
    before = rig.function.bar_read(0, 0x2000, 64)

    for offset in (*range(0, 36, 4), *range(40, 64, 4)):
        rig.driver.write(0x2000 + offset, 4, 0x12345678)

    assert rig.function.bar_read(0, 0x2000, 64) == before


def test_the_configuration_is_64_bytes_and_zero_beyond(rig: ViommuRig) -> None:
    assert rig.function.bar_read(0, 0x2000, 64) == rig.engine.config_bytes()
    assert rig.device.config_read(60, 8) == bytes(8)


def test_reset_quiesces_before_endpoints_lose_their_domain_and_keeps_bypass(rig: ViommuRig) -> None:
    rig.driver.write(0x2000 + wire.BYPASS_OFFSET, 1, 0)
    rig.ask(ATTACH, MAP)

    status = rig.driver.status(0)

    assert status == 0
    assert rig.notes == ["quiesce attached=True"]
    assert not rig.attached
    assert not rig.engine.bypass
    assert rig.run() is Progress.IDLE


def test_function_level_reset_is_a_device_reset(rig: ViommuRig) -> None:
    rig.driver.write(0x2000 + wire.BYPASS_OFFSET, 1, 0)
    rig.ask(ATTACH)
    pcie = rig.function.config.find(pci.CapId.PCIE)
    assert pcie is not None

    rig.function.config_write(pcie + pci.DEVCTL, pci.DEVCTL_FLR.to_bytes(2, "little"))

    assert rig.notes == ["quiesce attached=True"]
    assert not rig.attached
    assert not rig.engine.bypass


def test_machine_reset_also_restores_the_boot_bypass(rig: ViommuRig) -> None:
    rig.driver.write(0x2000 + wire.BYPASS_OFFSET, 1, 0)
    rig.ask(ATTACH)

    rig.function.reset()

    assert rig.notes == ["quiesce attached=True"]
    assert rig.engine.bypass


def test_nothing_is_written_after_a_reset(rig: ViommuRig) -> None:
    rig.driver.submit(0, [ATTACH], [4])
    rig.driver.status(0)
    before = bytes(rig.driver.ram)

    rig.fault()
    rig.run()

    assert bytes(rig.driver.ram) == before


def held_rig(held: list[Reply]) -> ViommuRig:
    def hold(reply: Reply) -> bool:
        held.append(reply)
        return True

    return ViommuRig(hold=hold)


def test_a_held_reply_is_written_only_when_it_is_completed() -> None:
    held: list[Reply] = []
    rig = held_rig(held)

    answers: Sequence[bytes] = rig.ask(ATTACH)
    completed = rig.device.complete(held.pop())

    assert (answers, completed) == ([], True)
    assert [done.data for done in rig.requests.reap()] == [OK]
    assert rig.driver.vectors == [1]


def test_a_held_reply_does_not_land_after_a_reset() -> None:
    held: list[Reply] = []
    rig = held_rig(held)
    rig.ask(ATTACH)
    rig.driver.start(rig.device.offered_features & ~F_EVENT_IDX)
    before = bytes(rig.driver.ram)

    assert not rig.device.complete(held.pop())
    assert bytes(rig.driver.ram) == before


def test_memory_that_went_away_and_came_back_is_looked_up_again(rig: ViommuRig) -> None:
    (region,) = rig.function.memory.remove(regs.RAM_GPA, regs.RAM_NBYTES)
    rig.function.memory_changed()
    rig.function.memory.add(region)
    rig.function.memory_changed()

    assert rig.ask(ATTACH) == [OK]


def test_a_driver_that_runs_the_index_away_needs_a_reset(rig: ViommuRig) -> None:
    rig.requests.avail_words[vring.IDX_WORD] = 0x4000

    rig.run()

    assert rig.driver.status() & Status.DEVICE_NEEDS_RESET
