"""How often events are told: ten of a key a second, the rest counted, and told a second later at the latest."""

from __future__ import annotations

from vdev.control.event_limits import MAX_KEYS, PER_SECOND, EventLimiter


def test_ten_of_a_key_are_told_and_the_next_says_how_many_were_not() -> None:
    limiter: EventLimiter[int] = EventLimiter()

    told = [limiter.offer("FAULT", "a", number, 5.0 + number / 100) for number in range(14)]

    assert told == [0] * PER_SECOND + [None] * 4
    assert limiter.offer("FAULT", "a", 14, 6.0) == 4
    assert limiter.offer("FAULT", "b", 15, 6.0) == 0


def test_never_more_than_ten_in_any_second() -> None:
    limiter: EventLimiter[int] = EventLimiter()

    times = [at / 50 for at in range(500) if limiter.offer("FAULT", "a", at, at / 50) is not None]

    assert max(sum(1 for other in times if start <= other < start + 1.0) for start in times) == PER_SECOND
    assert len(times) >= 9 * PER_SECOND


def test_what_is_held_is_due_a_second_after_the_first_of_those_that_filled_it() -> None:
    limiter: EventLimiter[int] = EventLimiter()
    for number in range(13):
        limiter.offer("FAULT", "a", number, 5.0 + number / 100)

    assert limiter.next_due() == 6.0
    assert limiter.due(5.99) == []
    assert limiter.due(6.0) == [(12, 2)]  # the newest, and two others
    assert limiter.next_due() is None
    assert limiter.due(9.0) == []


def test_every_event_is_told_or_counted() -> None:
    limiter: EventLimiter[int] = EventLimiter()
    told = counted = 0
    for number in range(1000):
        suppressed = limiter.offer("FAULT", number % 3, number, number / 173)
        told, counted = (told + 1, counted + suppressed) if suppressed is not None else (told, counted)
    for _, suppressed in limiter.due(100.0):
        told, counted = told + 1, counted + suppressed

    assert told + counted == 1000


def test_keys_are_bounded_and_those_beyond_share_one() -> None:
    limiter: EventLimiter[int] = EventLimiter()

    told = [limiter.offer("REQUEST_REFUSED", number, number, 1.0) for number in range(MAX_KEYS + 50)]

    assert told == [0] * (MAX_KEYS + PER_SECOND) + [None] * (50 - PER_SECOND)
    assert len(limiter._keys) == MAX_KEYS + 1


def test_idle_keys_make_room() -> None:
    limiter: EventLimiter[int] = EventLimiter()
    for number in range(MAX_KEYS):
        limiter.offer("REQUEST_REFUSED", number, number, 1.0)

    assert [limiter.offer("REQUEST_REFUSED", -number, 0, 3.0) for number in range(1, 21)] == [0] * 20
    assert len(limiter._keys) == 20
