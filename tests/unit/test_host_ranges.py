"""vdev.host.ranges: which numbers are free, kept in two ways."""

from __future__ import annotations

import random

import pytest

from vdev.host.ranges import FreeMap, FreeRanges


def test_free_ranges_join_what_is_given_back_whatever_the_order() -> None:
    ranges = FreeRanges(1, 10)
    for number in range(1, 10):
        ranges.take(number)

    for number in (5, 3, 4, 9, 1, 2, 7, 8, 6):
        ranges.give(number)

    assert list(ranges) == [(1, 10)]
    assert ranges.nfree == 9


@pytest.mark.parametrize("kind", [FreeMap, FreeRanges])
def test_free_numbers_refuse_what_would_lose_count(kind: type[FreeMap | FreeRanges]) -> None:
    ranges = kind(1, 10)
    ranges.take(4)

    with pytest.raises(ValueError, match="0x4 is not free"):
        ranges.take(4)
    with pytest.raises(ValueError, match="0x5 is free"):
        ranges.give(5)


@pytest.mark.parametrize("kind", [FreeMap, FreeRanges])
def test_the_search_goes_on_behind_the_last_one_and_begins_anew_at_the_end(kind: type[FreeMap | FreeRanges]) -> None:
    ranges = kind(1, 6)
    ranges.take(4)

    assert ranges.find(1, 6, after=3) == 5
    assert ranges.find(1, 6, after=5) == 1
    assert ranges.find(4, 5, after=0) is None


@pytest.mark.parametrize("seed", range(5))
def test_both_kinds_of_free_numbers_are_the_same(seed: int) -> None:
    rng = random.Random(seed)
    one, other = FreeMap(1, 200), FreeRanges(1, 200)
    for ranges in ((20, 30), (25, 40), (190, 300), (7, 7)):
        one.take_range(*ranges)
        other.take_range(*ranges)

    for _ in range(2000):
        number, first, stop, after = (rng.randrange(1, 200) for _ in range(4))
        assert (number in one) == (number in other)
        if number in one:
            one.take(number)
            other.take(number)
        elif rng.random() < 0.5:
            one.give(number)
            other.give(number)
        assert one.find(first, stop, after) == other.find(first, stop, after)
        assert one.nfree == other.nfree
