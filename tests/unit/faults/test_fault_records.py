"""The point event, and the flood: what the guest is told of refused accesses."""

from __future__ import annotations

import pytest

from tests.support import flight
from tests.support.fault_scene import FaultScene
from tests.support.flight import BUFFER, Attachment
from vdev.config import Limits
from vdev.errors import TranslationFault
from vdev.faults.point import NO_ROOM
from vdev.functions.vhost import VhostCarrier
from vdev.iommu.events import FaultRaised, FaultsDropped
from vdev.iommu.tag import Tag
from vdev.wire import viommu as wire

attach = flight.attach  # a fixture
NOWHERE = 0x7000_0000
LIMIT = 8


@pytest.fixture
def scene(attach: Attachment) -> FaultScene:
    """accel0 in domain 1, and a driver with no event buffers yet: records wait, eight of them at most."""
    scene = FaultScene(attach, limits=Limits(max_pending_faults=LIMIT))
    scene.set_up()
    return scene


def refuse(scene: FaultScene, *pages: int, access: int = 2, tag: Tag | None = None) -> None:
    """Accesses of accel0 at pages where nothing is mapped."""
    for page in pages:
        error = TranslationFault(wire.FAULT_R_MAPPING, "not-mapped", NOWHERE + (page << 12))
        scene.engine.fault(scene.number["accel0"], error, access, tag)


def told(scene: FaultScene) -> list[int]:
    """The pages of the records that wait for the guest, oldest first."""
    return [(wire.Fault.parse(record).address - NOWHERE) >> 12 for record in scene.engine.pending_faults]


def test_the_guest_is_not_told(scene: FaultScene) -> None:
    scene.add("event", "drop", when={"nth": 2})

    refuse(scene, 1, 2, 3)

    assert told(scene) == [1, 3]
    assert [event.iova for event in scene.events if isinstance(event, FaultRaised)][-3:] == [
        NOWHERE + 0x1000, NOWHERE + 0x2000, NOWHERE + 0x3000,
    ]  # fmt: skip


def test_the_guest_is_told_twice(scene: FaultScene) -> None:
    scene.add("event", "duplicate", when={"nth": 2})

    refuse(scene, 1, 2, 3)

    assert told(scene) == [1, 2, 2, 3]


def test_the_guest_is_told_later(scene: FaultScene) -> None:
    scene.add("event", "delay", when={"nth": 1}, parameters={"seconds": 2})

    refuse(scene, 1, 2)
    early = (told(scene), scene.held())
    scene.pass_time(2.1)

    assert (early, told(scene), scene.held()) == (([2], 1), [2, 1], 0)


@pytest.mark.parametrize("how", ["release", "clear"])
def test_what_is_told_later_may_be_let_go(scene: FaultScene, how: str) -> None:
    scene.add("event", "delay", parameters={"seconds": 2})
    refuse(scene, 1, 2)

    if how == "release":
        assert scene.faults.release() == 2
    else:
        assert scene.faults.clear().undone == ["fault records of iommu0 come now: 2"]
    scene.pass_time(3)

    assert told(scene) == [1, 2]


def test_a_reset_forgets_what_is_told_later(scene: FaultScene) -> None:
    scene.add("event", "delay", parameters={"seconds": 2})
    refuse(scene, 1)

    if isinstance(scene.function, VhostCarrier):
        scene.suspend_rings()
    scene.start_unit()
    held = scene.held()
    scene.pass_time(3)

    assert (held, told(scene), scene.faults.clear().undone) == (0, [], [])


def test_a_record_that_comes_later_wakes_the_unit(scene: FaultScene) -> None:
    scene.add("event", "delay", parameters={"seconds": 2})
    buffer = post_buffer(scene)
    refuse(scene, 1)

    early = wire.Fault.parse(buffer).address
    scene.pass_time(2.1)

    assert (early, wire.Fault.parse(buffer).address) == (0, NOWHERE + 0x1000)


def post_buffer(scene: FaultScene) -> memoryview:
    """One event buffer of 24 bytes; its memory."""
    ring = scene._rings[1] if isinstance(scene.function, VhostCarrier) else scene.pci_driver.rings[1]
    head = ring.add([], [wire.FAULT_NBYTES])
    ring.publish()
    scene.device.queue_notified(1)
    scene.run()
    at = ring.outstanding[head].writable_offset
    return ring.buffer[at : at + wire.FAULT_NBYTES]


@pytest.mark.parametrize("reason", [0x7F, 3, 0xFF])
def test_the_reason_is_one_nobody_knows_also_for_a_driver_without_pasids(scene: FaultScene, reason: int) -> None:
    scene.add("event", "unknown-reason", parameters={"reason": reason})
    buffer = post_buffer(scene)

    refuse(scene, 1)
    scene.device.faults_pending()
    scene.run()

    fault = wire.Fault.parse(buffer)
    assert (fault.reason, fault.address, fault.endpoint) == (reason, NOWHERE + 0x1000, scene.number["accel0"])


@pytest.mark.parametrize(
    ("match", "met"),
    [
        ({"endpoint": "accel0"}, [1, 2, 3]), ({"endpoint": "accel1"}, []), ({"access": "write"}, [1, 3]),
        ({"access": "read"}, [2]), ({"iova": hex(NOWHERE + 0x2000)}, [2]), ({"pasid": 5}, [3]),
        ({"unit": "iommu0", "access": "write", "pasid": 5}, [3]),
    ],
)  # fmt: skip
def test_a_record_is_matched_by_what_it_says(scene: FaultScene, match: dict[str, object], met: list[int]) -> None:
    scene.add("event", "drop", match=match)

    refuse(scene, 1)
    refuse(scene, 2, access=1)
    refuse(scene, 3, tag=Tag(5))

    assert told(scene) == [page for page in (1, 2, 3) if page not in met]


def test_real_dma_is_refused_whatever_the_guest_is_told(scene: FaultScene) -> None:
    scene.add("event", "drop")

    scene.ask(scene.unmap(BUFFER))
    scene.fill()

    assert (told(scene), scene.buffer()) == ([], flight.EMPTY)
    assert scene.unit.doors["accel0"].refused == {"not-mapped": 1}


def test_copies_that_do_not_fit_are_dropped_and_that_is_told_once(scene: FaultScene) -> None:
    scene.add("event", "duplicate")

    refuse(scene, *range(6))

    assert told(scene) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [event.total for event in scene.events if isinstance(event, FaultsDropped)] == [1]
    assert scene.engine.faults.dropped == 4


def test_without_rules_there_is_no_filter(scene: FaultScene) -> None:
    rule = scene.add("event", "drop")
    during = scene.engine.faults.filter

    scene.faults.remove(rule)

    assert during is not None
    assert scene.engine.faults.filter is None


def test_when_too_much_waits_for_its_time_the_guest_is_told_now(scene: FaultScene) -> None:
    scene.leave_no_room()
    scene.add("event", "delay", parameters={"seconds": 2})

    refuse(scene, 1)

    assert (told(scene), [one.note for one in scene.firings]) == ([1], [NO_ROOM])


# --- flood


def test_a_flood_overflows_the_queue_and_that_is_told(scene: FaultScene) -> None:
    refuse(scene, 1)

    scene.add("timer", "flood", parameters={"iova": NOWHERE})
    scene.run()

    assert told(scene) == [1] + [0] * (LIMIT - 1)
    assert [event.total for event in scene.events if isinstance(event, FaultsDropped)] == [1]
    fault = wire.Fault.parse(scene.engine.pending_faults[-1])
    assert (fault.reason, fault.endpoint) == (wire.FAULT_R_MAPPING, scene.number["accel0"])
    assert [one.note for one in scene.firings] == [f"records: {LIMIT}"]


def test_a_flood_may_have_a_size_and_an_endpoint(scene: FaultScene) -> None:
    scene.add("timer", "flood", parameters={"records": 3, "endpoint": "accel1"})
    scene.run()

    records = [wire.Fault.parse(record) for record in scene.engine.pending_faults]
    assert [(one.endpoint, one.address) for one in records] == [(scene.number["accel1"], 0xBAD000)] * 3


def test_a_record_may_set_off_a_flood_which_sets_off_none(scene: FaultScene) -> None:
    scene.add("event", "flood", times=5)

    refuse(scene, 1)

    assert len(scene.firings) == 1
    assert len(told(scene)) == LIMIT


def test_clear_takes_back_what_was_not_delivered(scene: FaultScene) -> None:
    scene.add("timer", "flood", parameters={"records": 4})
    scene.run()
    refuse(scene, 1)

    undone = scene.faults.clear().undone

    assert undone == ["fault records of iommu0 that were not delivered are dropped: 4"]
    assert told(scene) == [1]
    assert scene.faults.clear().undone == []


def test_a_flood_is_delivered_to_who_has_buffers(scene: FaultScene) -> None:
    buffers = [post_buffer(scene) for _ in range(3)]

    scene.add("timer", "flood", parameters={"records": 3})
    scene.run()

    assert [wire.Fault.parse(buffer).address for buffer in buffers] == [0xBAD000] * 3
    assert scene.faults.clear().undone == []
