"""PASIDs between a driver's rings and the engine: negotiation, configuration, held answers and faults."""

from __future__ import annotations

import pytest

from tests.support.pasid_requests import (
    ACCEL,
    NEITHER,
    UNMANAGED,
    Vm,
    alloc_request,
    attach_request,
    free_request,
)
from tests.support.vhost import CarrierRig
from tests.support.viommu import ATTACH, INVAL, OK, ViommuRig
from tests.support.virtio_pci import NEGOTIATED, READY
from vdev.errors import TranslationFault
from vdev.functions.base import Progress
from vdev.iommu.tag import Tag
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire

ALLOC = alloc_request(1, 9)
DEVERR = wire.TAILS[wire.S_DEVERR]
NONE = bytes(8)
QUOTA_AT, USED_AT = pasid_wire.CONFIG_OFFSET, pasid_wire.CONFIG_OFFSET + 4


def granted(pasid: int, remaining: int) -> bytes:
    return pasid_wire.PasidGranted(pasid, remaining).pack() + OK


def rig_of(vm: Vm, accept: int = -1) -> ViommuRig:
    return ViommuRig(engine=vm.unit, accept=accept)


# negotiation and configuration


@pytest.mark.parametrize("missing", [wire.F_PROBE, wire.F_MAP_UNMAP, pasid_wire.F_PASID])
def test_p2_features_ok_is_refused_without_what_a_bit_depends_on(missing: int) -> None:
    rig = rig_of(Vm())

    status = rig.driver.negotiate(rig.device.offered_features & ~missing)

    assert status == READY


@pytest.mark.parametrize("accept", [-1, UNMANAGED, NEITHER])
def test_p2_features_ok_is_granted_with_it(accept: int) -> None:
    rig = rig_of(Vm())

    status = rig.driver.negotiate(rig.device.offered_features & accept)

    assert status == NEGOTIATED


def test_p3_features_ok_is_refused_unmanaged_in_a_system_space() -> None:
    vm = Vm()
    vm.allocator.change(space="system")
    rig = rig_of(vm)

    refused = rig.driver.negotiate(rig.device.offered_features & UNMANAGED)

    assert refused == READY
    assert rig.driver.negotiate(rig.device.offered_features) == NEGOTIATED


def test_p4_the_fields_show_from_features_ok_until_the_reset() -> None:
    rig = rig_of(Vm())
    rig.driver.status(0)

    before = rig.driver.device_config(QUOTA_AT, 4)
    rig.driver.negotiate(rig.device.offered_features)
    negotiated = rig.driver.device_config(QUOTA_AT, 4)
    rig.driver.status(0)

    assert (before, negotiated, rig.driver.device_config(QUOTA_AT, 4)) == (0, 8, 0)


def test_p5_a_change_of_the_quota_interrupts_with_a_new_generation() -> None:
    vm = Vm()
    rig = rig_of(vm)
    rig.driver.vectors.clear()
    before = rig.driver.common().config_generation

    vm.allocator.change(quota=20)

    assert rig.driver.vectors == [0]
    assert rig.driver.common().config_generation == before + 1
    assert rig.driver.device_config(QUOTA_AT, 4) == 20


def test_p5_a_change_of_what_is_used_is_a_new_generation_alone() -> None:
    rig = rig_of(vm := Vm())
    before = rig.driver.common().config_generation

    rig.ask(ALLOC, room=12)
    vm.allocator.answer()

    assert 0 not in rig.driver.vectors
    assert rig.driver.common().config_generation == before + 1
    assert rig.driver.device_config(USED_AT, 4) == 1


def test_p5_a_driver_without_pasids_hears_of_no_quota() -> None:
    vm = Vm()
    rig = rig_of(vm, accept=NEITHER)
    rig.driver.vectors.clear()

    vm.allocator.change(quota=20)

    assert rig.driver.vectors == []


@pytest.mark.parametrize("nbytes", [1, 4])
def test_p7_writes_to_the_fields_are_ignored(nbytes: int) -> None:
    rig = rig_of(Vm())
    before = rig.driver.device_config(QUOTA_AT, 24)

    for at in range(QUOTA_AT, QUOTA_AT + 24, nbytes):
        rig.device.config_write(at, b"\xff" * nbytes, -1)

    assert rig.driver.device_config(QUOTA_AT, 24) == before


def test_over_vhost_user_a_change_of_the_quota_is_pushed() -> None:
    vm = Vm()
    rig = CarrierRig(engine=vm.unit)
    rig.start()
    rig.take_notes()

    vm.allocator.change(quota=20)

    assert rig.take_notes() == ["config"]


def test_over_vhost_user_a_change_while_the_vm_is_stopped_follows_when_it_continues() -> None:
    vm = Vm()
    rig = CarrierRig(engine=vm.unit)
    rig.start()
    bases = rig.stop()
    rig.take_notes()

    vm.allocator.change(quota=20)
    early = rig.take_notes()
    rig.start(*bases)

    assert (early, rig.take_notes()) == ([], ["thaw", "config"])


# held answers


def test_an_allocation_is_answered_when_the_host_has() -> None:
    vm = Vm()
    rig = rig_of(vm)

    early = rig.ask(ALLOC, room=12)
    behind = rig.ask(ATTACH)
    rig.driver.vectors.clear()
    vm.allocator.answer()
    rig.run()

    assert (early, behind) == ([], [OK])
    assert [done.data for done in rig.requests.reap()] == [granted(1, 7)]
    assert rig.driver.vectors == [1]


def test_the_device_is_woken_for_an_answer_and_only_for_one() -> None:
    vm = Vm()
    rig = rig_of(vm)
    rig.ask(ALLOC, room=12)
    rig.idle()
    asleep = rig.woken

    vm.allocator.answer()

    assert rig.woken > asleep
    assert rig.run() in (Progress.IDLE, Progress.POLL)
    assert len(rig.requests.reap()) == 1


def test_many_allocations_are_answered_as_they_are_granted() -> None:
    vm = Vm()
    vm.allocator.change(quota=6)
    rig = rig_of(vm)

    at_once = rig.ask(*[ALLOC] * 8, room=12)
    vm.allocator.answer()
    rig.run()

    assert at_once == [NONE + wire.TAILS[wire.S_NOMEM]] * 2
    pasids = [pasid_wire.PasidGranted.parse(done.data).pasid for done in rig.requests.reap()]
    assert sorted(pasids) == [1, 2, 3, 4, 5, 6]


def test_p51_p35_a_reset_forgets_the_answer_and_gives_the_pasid_back() -> None:
    vm = Vm()
    rig = rig_of(vm)
    rig.ask(ALLOC, room=12)

    rig.driver.status(0)
    vm.allocator.answer()
    rig.requests, rig.events = rig.driver.start(rig.device.offered_features)
    rig.run()

    assert rig.requests.reap() == []
    assert (vm.set.used, vm.allocator.released()) == (0, [1])


def test_a_reset_by_the_host_still_answers_since_the_driver_waits() -> None:
    vm = Vm()
    rig = rig_of(vm)
    rig.ask(ALLOC, room=12)

    rig.device.host_reset()
    vm.allocator.answer()
    rig.run()

    assert [done.data for done in rig.requests.reap()] == [NONE + DEVERR]
    assert vm.allocator.released() == [1]


def test_an_attach_that_allocates_is_answered_when_it_is_attached() -> None:
    vm = Vm()
    rig = rig_of(vm, accept=UNMANAGED)

    early = rig.ask(attach_request(1, ACCEL, 5))
    vm.allocator.answer()
    rig.run()

    assert early == []
    assert [done.data for done in rig.requests.reap()] == [OK]
    assert [row["pasid"] for row in vm.unit.pasids.list_pairs()] == [5]


def test_p38_free_is_answered_after_the_last_access_of_another_unit() -> None:
    vm = Vm(units=2)
    rig = rig_of(vm)
    rig.ask(ALLOC, room=12)
    vm.allocator.answer()
    vm.attach(1, ACCEL, 1, unit=vm.units[1])
    flight = vm.units[1].begin(ACCEL, 0x1000, 8, 1, Tag(1)) if map_there(vm) else None
    rig.run()
    rig.requests.reap()

    early = rig.ask(free_request(1, 9), room=12)
    assert flight is not None
    vm.units[1].in_flight.end(flight)
    rig.run()

    assert early == []
    assert [done.data for done in rig.requests.reap()] == [pasid_wire.PasidFreed(1).pack() + OK]


def map_there(vm: Vm) -> bool:
    """A page in domain 1 of the second unit."""
    request = wire.Map(wire.T_MAP, bytes(3), 1, 0x1000, 0x1FFF, 0, 3).pack()
    return vm.units[1].handle(request, 4) == OK


def test_over_vhost_user_an_answer_waits_for_the_rings_to_go_on() -> None:
    vm = Vm()
    rig = CarrierRig(engine=vm.unit)
    rig.start()
    rig.requests.submit([ALLOC], [12])
    rig.run()
    bases = rig.stop()

    vm.allocator.answer()
    rig.run()
    early = rig.requests.reap()
    rig.start(*bases)
    rig.run()

    assert early == []
    assert [done.data for done in rig.requests.reap()] == [granted(1, 7)]


def test_over_vhost_user_a_new_driver_has_none_of_the_pasids() -> None:
    vm = Vm()
    rig = CarrierRig(engine=vm.unit)
    rig.start()
    rig.requests.submit([ALLOC], [12])
    rig.run()
    vm.allocator.answer()
    rig.run()
    rig.stop()

    rig.new_rings()
    rig.start()

    assert (vm.set.used, vm.allocator.released()) == (0, [1])


def test_the_writable_part_of_an_allocation_that_is_too_small_is_no_allocation() -> None:
    vm = Vm()
    rig = rig_of(vm)

    assert rig.ask(ALLOC, room=11) == [bytes(7) + INVAL]
    assert vm.allocator.waiting == []


# faults


TAG = Tag(7, execute=True)


def fault(rig: ViommuRig, tag: Tag | None = TAG) -> None:
    rig.engine.fault(ACCEL, TranslationFault(pasid_wire.FAULT_R_PASID, "word", 0x9000), 1, tag)
    rig.device.faults_pending()


def told(rig: ViommuRig) -> list[bytes]:
    rig.run()
    return [done.data[: done.used_nbytes] for done in rig.events.reap()]


def test_p50_a_fault_is_told_in_48_bytes_or_the_first_24_as_the_buffer_allows() -> None:
    rig = rig_of(Vm())
    whole = pasid_wire.FaultPasid(pasid_wire.FAULT_R_PASID, bytes(3), 0x305, ACCEL, 7, 0x9000).pack()

    rig.post(48, 24, 47, 100)
    for _ in range(4):
        fault(rig)

    assert told(rig) == [whole, whole[:24], whole[:24], whole]
    assert rig.device.dropped_faults == 0


def test_p50_a_buffer_below_24_bytes_loses_its_fault() -> None:
    rig = rig_of(Vm())

    rig.post(23, 48)
    fault(rig)
    fault(rig)

    assert [len(record) for record in told(rig)] == [0, 48]
    assert rig.device.dropped_faults == 1


def test_p50_p48_a_fault_without_a_pasid_has_the_format_too() -> None:
    rig = rig_of(Vm())

    rig.post(48)
    fault(rig, None)

    assert told(rig) == [pasid_wire.FaultPasid(pasid_wire.FAULT_R_PASID, bytes(3), 0x101, ACCEL, 0, 0x9000).pack()]


@pytest.mark.parametrize("nbytes", [24, 48])
def test_p1_a_driver_without_pasids_gets_24_bytes_of_the_old_format(nbytes: int) -> None:
    rig = rig_of(Vm(), accept=NEITHER)

    rig.post(nbytes)
    fault(rig)

    assert told(rig) == [wire.Fault(wire.FAULT_R_DOMAIN, bytes(3), 0x101, ACCEL, 0, 0x9000).pack()]
