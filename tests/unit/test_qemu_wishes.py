"""What fault injection wants of QEMU: asked for, answered once, and never silently left undone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vdev.control.event_log import describe
from vdev.control.qemu_wishes import ANSWER_S, MAX_ERROR, MAX_WISHES, QemuWishes
from vdev.errors import ConfigError
from vdev.faults.events import FaultQemuDone, FaultsCleared, FaultWantsQemu

WISH = FaultWantsQemu("r1", 1, "pcie_aer_inject_error vdev.port1 UNSUP")


class Timer:
    """One that goes off when the test says so."""

    def __init__(self, seconds: float, callback: Callable[[], None]) -> None:
        self.seconds = seconds
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Scene:
    """Wishes with timers of the test's, whose events are kept."""

    def __init__(self, *, followed: bool = True) -> None:
        self.events: list[object] = []
        self.timers: list[Timer] = []
        self.wishes = QemuWishes(self.events.append, lambda: followed, self._schedule)

    def _schedule(self, seconds: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(seconds, callback))
        return self.timers[-1]


def test_other_events_pass_unchanged() -> None:
    scene = Scene()
    event = FaultsCleared(1, (), ())

    scene.wishes.emit(event)

    assert scene.events == [event]
    assert scene.timers == []


def test_a_wish_is_told_and_its_answer_too() -> None:
    scene = Scene()
    scene.wishes.emit(WISH)

    scene.wishes.done("r1", 1)

    assert scene.events == [WISH, FaultQemuDone("r1", 1)]
    assert [timer.is_cancelled for timer in scene.timers] == [True]


def test_what_a_bridge_could_not_do_is_told_with_a_bounded_reason() -> None:
    scene = Scene()
    scene.wishes.emit(WISH)

    scene.wishes.done("r1", 1, "x" * 10_000)

    assert scene.events[1] == FaultQemuDone("r1", 1, "x" * MAX_ERROR)


def test_without_a_follower_it_is_not_done_at_once() -> None:
    scene = Scene(followed=False)

    scene.wishes.emit(WISH)

    assert scene.events == [WISH, FaultQemuDone("r1", 1, "no bridge follows the events")]


def test_a_follower_that_says_nothing_is_waited_for_so_long() -> None:
    scene = Scene()
    scene.wishes.emit(WISH)

    (timer,) = scene.timers
    timer.callback()

    assert timer.seconds == ANSWER_S
    assert scene.events == [WISH, FaultQemuDone("r1", 1, "no bridge answered within 10 s")]
    with pytest.raises(ConfigError, match="nothing is asked"):
        scene.wishes.done("r1", 1)


def test_an_answer_nobody_waits_for_is_refused() -> None:
    scene = Scene()
    scene.wishes.emit(WISH)

    with pytest.raises(ConfigError, match="firing 2 of 'r1'"):
        scene.wishes.done("r1", 2)


def test_no_more_than_so_many_wait() -> None:
    scene = Scene()
    for number in range(MAX_WISHES + 1):
        scene.wishes.emit(FaultWantsQemu("r1", number, "x"))

    done = [event for event in scene.events if isinstance(event, FaultQemuDone)]
    assert [event.n for event in done] == [MAX_WISHES]
    assert "64 others wait" in done[0].error
    assert len(scene.timers) == MAX_WISHES


def test_a_rule_of_the_same_name_does_not_inherit_the_answer_of_the_one_before() -> None:
    scene = Scene()
    scene.wishes.emit(WISH)
    scene.wishes.emit(WISH)

    assert [timer.is_cancelled for timer in scene.timers] == [True, False]
    scene.wishes.done("r1", 1)
    assert [timer.is_cancelled for timer in scene.timers] == [True, True]


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (WISH, "rule r1, 1: QEMU is to do pcie_aer_inject_error vdev.port1 UNSUP"),
        (FaultQemuDone("r1", 1), "rule r1, 1: QEMU has done its part"),
        (FaultQemuDone("r1", 1, "no"), "rule r1, 1: not done by QEMU: no"),
        (FaultsCleared(2, ("it is back",), ("die: dead",)), "2 rules cleared; it is back; for good: die: dead"),
    ],
)
def test_the_log_says_it_in_words(event: object, text: str) -> None:
    assert describe(event) == text
