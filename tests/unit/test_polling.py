"""The poll window: bounded, adaptive, and silent for an idle ring."""

from __future__ import annotations

import pytest

from vdev.virtio.polling import DEFAULT_MAX_NS, PollWindow


def test_a_ring_without_work_is_never_polled() -> None:
    assert not PollWindow().should_poll(0)


def test_polling_follows_work_and_is_bounded() -> None:
    window = PollWindow()

    window.on_work(1_000)

    assert window.should_poll(1_000)
    assert window.should_poll(1_000 + DEFAULT_MAX_NS - 1)
    assert not window.should_poll(1_000 + DEFAULT_MAX_NS)


def test_work_that_comes_much_later_shrinks_the_window_to_its_minimum() -> None:
    window = PollWindow(min_ns=10_000, max_ns=200_000)

    for second in range(10):
        window.on_work(second * 1_000_000_000)

    assert window.window_ns == 10_000


def test_work_a_wider_window_would_catch_widens_it_to_its_maximum() -> None:
    window = PollWindow(min_ns=10_000, max_ns=200_000)
    for second in range(10):
        window.on_work(second * 1_000_000_000)

    for step in range(10):
        window.on_work(20_000_000_000 + step * 150_000)

    assert 150_000 <= window.window_ns <= 200_000


def test_work_caught_while_polling_keeps_the_window() -> None:
    window = PollWindow(min_ns=0, max_ns=100)

    for now in range(0, 1_000, 50):
        window.on_work(now)

    assert window.window_ns == 100


def test_a_window_that_shrank_to_nothing_can_grow_again() -> None:
    window = PollWindow(min_ns=0, max_ns=200_000)
    for second in range(40):
        window.on_work(second * 1_000_000_000)
    shrunk = window.window_ns

    window.on_work(39_000_000_000 + 15_000)

    assert (shrunk, window.window_ns) == (0, 10_000)


def test_a_maximum_of_zero_never_polls() -> None:
    window = PollWindow(min_ns=0, max_ns=0)

    window.on_work(5)

    assert not window.should_poll(5)


def test_a_clock_that_steps_back_changes_nothing() -> None:
    window = PollWindow()
    window.on_work(1_000_000)

    window.on_work(10)

    assert window.window_ns == DEFAULT_MAX_NS
    assert window.should_poll(11)


@pytest.mark.parametrize(("min_ns", "max_ns"), [(-1, 10), (11, 10), (0, -1)])
def test_a_window_that_makes_no_sense_is_refused(min_ns: int, max_ns: int) -> None:
    with pytest.raises(ValueError, match="poll window"):
        PollWindow(min_ns, max_ns)
