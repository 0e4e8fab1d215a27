"""What "done" means while DMA is in flight: who waits for it, over both attachments of a unit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support import flight
from tests.support.accelerator import descriptor
from tests.support.flight import (
    BUFFER,
    EMPTY,
    FILLED,
    LATENCY_NS,
    OK,
    PAGE,
    RING_SIZE,
    Attachment,
    FlightScene,
    bypassing,
    status,
)
from tests.support.virtio_pci import RAM_GPA, RAM_NBYTES
from vdev.control.iommu_queries import IommuQueries
from vdev.iommu.events import ReplyHeld
from vdev.wire import viommu as wire
from vdev.wire.accelerator import Access, CompletionStatus, Op

attach, scene = flight.attach, flight.scene  # fixtures


# --- requests of the ring drain


def test_dma_lands_a_latency_after_its_translation(scene: FlightScene) -> None:
    scene.land()

    assert scene.buffer() == FILLED
    assert status(scene) == CompletionStatus.OK
    assert scene.nflights == 0


def test_an_unmap_is_answered_when_what_it_affects_has_landed(scene: FlightScene) -> None:
    early = scene.ask(scene.unmap(BUFFER))
    before = scene.buffer()
    scene.land()

    assert (early, before) == ([], EMPTY)
    assert scene.answers() == [OK]
    assert scene.buffer() == FILLED


def test_an_unmap_of_what_is_not_in_flight_is_answered_at_once(scene: FlightScene) -> None:
    assert scene.ask(scene.unmap(BUFFER + PAGE)) == [OK]
    assert scene.ask(scene.unmap(BUFFER - PAGE)) == [OK]


@pytest.mark.parametrize(("iova", "nbytes", "held"), [(0, PAGE, True), (-PAGE, 2 * PAGE, True), (0, 4 * PAGE, True)])
def test_an_unmap_waits_for_dma_anywhere_in_its_range(attach: Attachment, iova: int, nbytes: int, held: bool) -> None:
    scene = FlightScene(attach).set_up()
    scene.fill(BUFFER, 8)

    assert (scene.ask(scene.unmap(BUFFER + iova, nbytes)) == []) == held


def test_a_second_unmap_of_the_range_waits_as_well(scene: FlightScene) -> None:
    scene.post(scene.unmap(BUFFER))

    again = scene.ask(scene.unmap(BUFFER))
    scene.land()

    assert again == []
    assert scene.answers() == [OK, OK]


def test_a_detach_is_answered_when_the_endpoints_dma_has_landed(scene: FlightScene) -> None:
    early = scene.ask(scene.detach())
    scene.land()

    assert early == []
    assert scene.answers() == [OK]
    assert scene.buffer() == FILLED


def test_an_attach_elsewhere_is_answered_when_the_endpoints_dma_has_landed(scene: FlightScene) -> None:
    early = scene.ask(scene.attach(domain=2))
    scene.land()

    assert early == []
    assert scene.answers() == [OK]
    assert scene.buffer() == FILLED


def test_the_first_attach_waits_for_dma_that_bypassed(attach: Attachment) -> None:
    scene = bypassing(attach)

    early = scene.ask(scene.attach())
    scene.land()

    assert early == []
    assert scene.answers() == [OK]
    assert scene.buffer() == FILLED


def test_other_requests_are_answered_meanwhile(scene: FlightScene) -> None:
    scene.post(scene.unmap(BUFFER))

    meanwhile = scene.ask(scene.map(BUFFER + 8 * PAGE, RAM_GPA), scene.unmap(BUFFER + 8 * PAGE))

    assert meanwhile == [OK, OK]


def test_nothing_new_is_translated_while_an_unmap_waits(scene: FlightScene) -> None:
    scene.post(scene.unmap(BUFFER))
    scene.accels["accel0"].submit(descriptor(Op.FILL, dst=BUFFER, nbytes=8, arg=1))
    scene.land()

    assert status(scene, index=0) == CompletionStatus.OK
    done = scene.accels["accel0"].completion(1)
    assert (done.status, done.fault_iova) == (CompletionStatus.TRANSLATION_FAULT, BUFFER)
    assert scene.buffer() == FILLED


def test_an_endpoint_that_left_still_holds_an_unmap_of_the_domain_it_left(attach: Attachment) -> None:
    scene = FlightScene(attach).set_up("accel0", "accel1")
    scene.fill()
    scene.post(scene.detach())

    unmapped = scene.ask(scene.unmap(BUFFER))
    scene.land()

    assert unmapped == []
    assert sorted(scene.answers()) == [OK, OK]


def test_the_other_endpoints_dma_holds_an_unmap_of_their_domain(attach: Attachment) -> None:
    scene = FlightScene(attach).set_up("accel0", "accel1")
    scene.fill(name="accel1")

    assert scene.ask(scene.unmap(BUFFER)) == []


def test_the_other_endpoints_dma_does_not_hold_a_detach(attach: Attachment) -> None:
    scene = FlightScene(attach).set_up("accel0", "accel1")
    scene.fill(name="accel1")

    assert scene.ask(scene.detach("accel0")) == [OK]


def test_the_same_addresses_in_another_domain_do_not_hold_an_unmap(attach: Attachment) -> None:
    scene = FlightScene(attach).set_up("accel0").set_up("accel1", domain=2)
    scene.fill(name="accel1")

    assert scene.ask(scene.unmap(BUFFER, domain=1)) == [OK]


def test_an_unmap_waits_for_all_it_affects(attach: Attachment) -> None:
    scene = FlightScene(attach).set_up("accel0", "accel1")
    scene.fill()
    scene.now_ns += LATENCY_NS // 2
    scene.fill(BUFFER + PAGE, name="accel1")
    scene.post(scene.unmap(BUFFER, 2 * PAGE))

    scene.now_ns += LATENCY_NS // 2
    scene.run()
    half = (scene.buffer(0), scene.buffer(1), scene.answers())
    scene.land()

    assert half == (FILLED, EMPTY, [])
    assert scene.answers() == [OK]


def test_a_ring_full_of_answers_can_be_held_and_no_more(scene: FlightScene) -> None:
    requests = [scene.unmap(BUFFER)] * (RING_SIZE // 2)  # each takes two descriptors

    early = scene.ask(*requests)
    held = scene.device.unanswered()
    scene.land()

    assert early == []
    assert held == (0, RING_SIZE // 2)
    assert scene.answers() == [OK] * (RING_SIZE // 2)


def test_a_refused_request_is_answered_at_once(scene: FlightScene) -> None:
    assert scene.ask(scene.detach(domain=9), scene.unmap(BUFFER, PAGE // 2)) == [
        wire.TAILS[wire.S_INVAL],
        wire.TAILS[wire.S_RANGE],
    ]


def test_a_long_operation_faults_at_its_next_slice_after_an_unmap(attach: Attachment) -> None:
    scene = FlightScene(attach, granule="1").set_up(npages=4)
    scene.fill(nbytes=2 * PAGE)
    scene.post(scene.unmap(BUFFER, 4 * PAGE))

    scene.land()

    done = scene.accels["accel0"].completion()
    assert scene.answers() == [OK]
    assert (done.status, done.access) == (CompletionStatus.TRANSLATION_FAULT, Access.WRITE)
    assert done.fault_iova == BUFFER + done.result
    assert scene.buffer(nbytes=2 * PAGE) == b"\xa5" * done.result + bytes(2 * PAGE - done.result)


def test_it_is_told_how_long_an_answer_was_held(scene: FlightScene) -> None:
    scene.post(scene.unmap(BUFFER))
    scene.land()

    (told,) = [event for event in scene.events if isinstance(event, ReplyHeld)]
    assert (told.type_name, told.fields["virt_start"], told.naccesses) == ("UNMAP", BUFFER, 1)
    assert LATENCY_NS <= told.held_ns < 2 * LATENCY_NS
    assert scene.device.held_replies == 1


def test_queries_tell_what_is_in_flight_and_what_is_held(scene: FlightScene) -> None:
    queries = IommuQueries(scene.machine.units)
    scene.post(scene.unmap(BUFFER), scene.unmap(BUFFER))

    function = scene.unit.describe()["functions"]["accel0"]
    (requests,) = queries.requests()
    (unit,) = queries.units()
    scene.land()

    assert function["in-flight"] == 1
    assert requests == {"unit": "iommu0", "waiting": 0, "held": 2}
    assert unit["counters"]["held-replies"] == 2
    assert queries.requests() == [{"unit": "iommu0", "waiting": 0, "held": 0}]
    assert scene.unit.describe()["functions"]["accel0"]["in-flight"] == 0


# --- who waits for longer gives back what is in flight


def freeze(scene: FlightScene, held: bool) -> None:
    scene.unit.freezer.set("VM stopped", held)


def test_a_stopped_vms_dma_holds_nothing_and_is_translated_anew(scene: FlightScene) -> None:
    scene.post(scene.unmap(BUFFER))
    freeze(scene, True)
    flights = scene.nflights
    scene.land()
    stopped = scene.buffer()
    freeze(scene, False)
    scene.run()

    assert (flights, stopped) == (0, EMPTY)
    assert scene.answers() == [OK]
    assert scene.buffer() == EMPTY
    assert status(scene) == CompletionStatus.TRANSLATION_FAULT


def test_a_stopped_vms_dma_goes_on_where_it_is_still_mapped(scene: FlightScene) -> None:
    freeze(scene, True)
    freeze(scene, False)
    scene.run()
    scene.land()

    assert scene.buffer() == FILLED
    assert status(scene) == CompletionStatus.OK


def test_rings_that_go_on_after_a_stop_have_their_held_answers_to_come() -> None:
    scene = FlightScene("vhost-user").set_up()
    scene.fill()
    scene.post(scene.unmap(BUFFER))

    bases = scene.suspend_rings()
    scene.land()
    suspended = (scene.answers(), scene.buffer(), scene.device.unanswered())
    scene.enable_rings(*bases)
    scene.run()

    assert suspended == ([], EMPTY, (None, 1))
    assert scene.answers() == [OK]
    assert scene.buffer() == EMPTY


def test_a_new_driver_after_a_stop_gets_no_answer_of_the_last_one() -> None:
    scene = FlightScene("vhost-user").set_up()
    scene.fill()
    scene.post(scene.unmap(BUFFER))

    scene.suspend_rings()
    scene.start_unit()
    scene.land()

    assert scene.answers() == []
    assert scene.device.unanswered() == (0, 0)


def test_ram_that_went_away_is_not_written_and_holds_nothing(scene: FlightScene) -> None:
    scene.post(scene.unmap(BUFFER))
    memory = scene.accels["accel0"].function.memory
    (region,) = memory.remove(RAM_GPA, RAM_NBYTES)
    scene.accels["accel0"].function.memory_changed()
    scene.land()
    memory.add(region)

    assert scene.answers() == [OK]
    assert scene.buffer() == EMPTY


# --- whom a landing trusts


def test_by_default_a_landing_trusts_its_translation(attach: Attachment) -> None:
    scene = FlightScene(attach).set_up()
    scene.fill()
    scene.post(scene.unmap(BUFFER), scene.map(BUFFER, RAM_GPA + BUFFER + PAGE))
    scene.land()

    assert (scene.buffer(0), scene.buffer(1)) == (FILLED, EMPTY)


def revalidating(attach: Attachment) -> FlightScene:
    scene = FlightScene(attach)
    scene.engine.settings = replace(scene.engine.settings, revalidate=True)
    scene.set_up()
    scene.fill()
    return scene


def test_revalidated_dma_lands_where_nothing_changed(attach: Attachment) -> None:
    scene = revalidating(attach)
    scene.land()

    assert scene.buffer() == FILLED


@pytest.mark.parametrize("change", ["unmapped", "elsewhere", "read-only", "detached"])
def test_revalidated_dma_is_refused_where_its_translation_changed(attach: Attachment, change: str) -> None:
    scene = revalidating(attach)
    read_only = scene.map(BUFFER, RAM_GPA + BUFFER)
    read_only.flags = wire.MAP_F_READ
    later: dict[str, list[wire.Map | wire.Unmap | wire.Attach]] = {
        "unmapped": [scene.unmap(BUFFER)],
        "elsewhere": [scene.unmap(BUFFER), scene.map(BUFFER, RAM_GPA + BUFFER + PAGE)],
        "read-only": [scene.unmap(BUFFER), read_only],
        "detached": [scene.attach(domain=2), scene.map_ring(domain=2)],
    }
    scene.post(*later[change])
    scene.land()

    done = scene.accels["accel0"].completion()
    assert (done.status, done.fault_iova) == (CompletionStatus.TRANSLATION_FAULT, BUFFER)
    assert (scene.buffer(0), scene.buffer(1)) == (EMPTY, EMPTY)
    assert scene.answers() == [OK] * len(later[change])
    assert [record[0] for record in scene.engine.pending_faults] == [wire.FAULT_R_MAPPING]
