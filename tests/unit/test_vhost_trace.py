"""What a unit over vhost-user tells a trace: as much of the driver as the attachment shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.vhost import ATTACH, RING_SIZE, CarrierRig
from vdev.events import FunctionReset, InterruptRaised, RegisterWritten, RingsChanged
from vdev.wire import viommu as wire

Traced = tuple[CarrierRig, list[Any]]


@pytest.fixture
def traced() -> Traced:
    """A unit that is traced and has not been started; the events."""
    rig, events = CarrierRig(), list[Any]()
    rig.carrier.trace = events.append
    return rig, events


def rings(events: list[Any]) -> list[str]:
    """What became of the rings, step by step."""
    return [event.state for event in events if isinstance(event, RingsChanged)]


def break_ring(rig: CarrierRig) -> None:
    """Make a descriptor available that does not exist."""
    rig.requests.offer(RING_SIZE)
    rig.requests.publish()
    rig.run()


def test_a_start_tells_the_accepted_features_by_name_and_each_ring_with_its_place(traced: Traced) -> None:
    rig, events = traced

    rig.start()

    features, *queues, started = events
    assert (features.register, features.value & 1 << 30) == ("driver_features", 0), (
        "the protocol's bit is not a driver's"
    )
    assert {"MAP_UNMAP", "VERSION_1", "BYPASS_CONFIG"} <= set(features.words.split("|"))
    assert queues == [
        RegisterWritten(
            "unit", "queue_enable", 1,
            f"queue {number} ({name}): {RING_SIZE} entries, "
            f"desc {ring.desc_gpa:#x}, driver {ring.avail_gpa:#x}, device {ring.used_gpa:#x}",
        )
        for number, name, ring in ((0, "requests", rig.requests), (1, "events", rig.events))
    ]  # fmt: skip
    assert (type(started), started.state) == (RingsChanged, "started")


def test_a_ring_taken_over_from_another_back_end_says_where_it_goes_on(traced: Traced) -> None:
    rig, events = traced
    rig.new_rings(start=7)

    rig.start(7, 0)

    words = [event.words for event in events if isinstance(event, RegisterWritten)]
    assert [text.endswith(", from entry 7") for text in words] == [False, True, False]


def test_a_stop_and_a_resume_are_told_without_the_negotiation_again(traced: Traced) -> None:
    rig, events = traced
    rig.start()
    events.clear()

    rig.start(*rig.stop())

    assert rings(events) == ["suspended", "resumed"]
    assert len(events) == 2


def test_a_new_driver_is_told_as_the_reset_it_proves_before_its_negotiation(traced: Traced) -> None:
    rig, events = traced
    rig.start()
    rig.ask(ATTACH)
    rig.stop()
    rig.new_rings()
    events.clear()

    rig.start()

    assert events[0] == FunctionReset("unit", "new-driver")
    assert [event.register for event in events[1:-1]] == ["driver_features", "queue_enable", "queue_enable"]
    assert rings(events) == ["started"]


@pytest.mark.parametrize(
    ("happens", "kind"),
    [
        (lambda rig: (rig.stop(), rig.carrier.function_was_reset()), "system"),
        (lambda rig: rig.carrier.disconnected(), "system"),
        (lambda rig: rig.carrier.reset(), "virtio"),
    ],
    ids=["DEVICE_RESET of another function", "the connection's end", "RESET_DEVICE"],
)
def test_a_reset_is_told_by_what_proves_it(traced: Traced, happens: Callable[[CarrierRig], object], kind: str) -> None:
    rig, events = traced
    rig.start()
    events.clear()

    happens(rig)

    assert rings(events) == ["suspended"]
    assert events[1:] == [FunctionReset("unit", kind)]


def test_a_device_reset_of_another_function_while_the_rings_run_is_told_as_nothing(traced: Traced) -> None:
    rig, events = traced
    rig.start()
    events.clear()

    rig.carrier.function_was_reset()

    assert events == []


def test_a_broken_ring_is_told_once_with_what_the_driver_did(traced: Traced) -> None:
    rig, events = traced
    rig.start()
    events.clear()

    break_ring(rig)
    rig.run()

    (broken,) = events
    assert (broken.state, broken.why.partition(";")[0]) == ("broken", f"descriptor {RING_SIZE} of {RING_SIZE}")


def test_the_log_says_the_same_as_the_trace(traced: Traced) -> None:
    rig, events = traced
    lines = list[str]()
    rig.carrier.told = lines.append
    rig.start()

    break_ring(rig)

    assert lines == [f"rings {event.state}: {event.why}" for event in events if isinstance(event, RingsChanged)]
    assert len(lines) == 2


def test_doorbells_and_used_buffer_notifications_are_told_by_the_queues_name(traced: Traced) -> None:
    rig, events = traced
    rig.start()
    events.clear()

    rig.carrier.kicked(0)
    rig.ask(ATTACH)

    assert events == [
        RegisterWritten("unit", "notify", 0, "queue 0 (requests)"),
        InterruptRaised("unit", None, "queue 0 (requests)"),
    ]


def test_of_a_configuration_that_is_written_whole_the_byte_that_changes_is_told(traced: Traced) -> None:
    rig, events = traced
    same = rig.carrier.config_read(0, 64)
    config = bytearray(same)
    config[wire.BYPASS_OFFSET] ^= 1

    rig.carrier.config_write(0, same)
    rig.carrier.config_write(0, bytes(config))

    assert events == [RegisterWritten("unit", "bypass", config[wire.BYPASS_OFFSET], "")]
