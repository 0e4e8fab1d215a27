"""vdev/iommu/intervals.py against a plain list, and in Linux's worst order."""

from __future__ import annotations

import random

import pytest

from vdev.iommu.intervals import BLOCK_MAX, Interval, IntervalMap


def _overlapping(model: list[Interval], start: int, stop: int) -> list[Interval]:
    return [item for item in model if item[0] < stop and start < item[1]]


def _expected_removal(model: list[Interval], start: int, stop: int) -> int | None:
    touched = _overlapping(model, start, stop)
    return None if any(item[0] < start or item[1] > stop for item in touched) else len(touched)


@pytest.mark.parametrize("seed", range(20))
def test_the_map_agrees_with_a_plain_list(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdev.iommu.intervals.BLOCK_MAX", 4)
    rng, tested, model = random.Random(seed), IntervalMap(), list[Interval]()

    for step in range(400):
        start = rng.randrange(300)
        stop = start + rng.randrange(1, 120 if step % 10 == 0 else 6)
        overlap = _overlapping(model, start, stop)
        assert tested.overlaps(start, stop) == bool(overlap)
        if rng.random() < 0.65:
            item = (start, stop, step, 3)
            assert tested.insert(item) == (not overlap)
            model = sorted([*model, item]) if not overlap else model
        else:
            expected = _expected_removal(model, start, stop)
            assert tested.remove(start, stop, []) == expected
            model = model if expected is None else [item for item in model if item not in overlap]
        assert list(tested) == model
        assert len(tested) == len(model)
        address = rng.randrange(310)
        assert tested.find(address) == next((i for i in model if i[0] <= address < i[1]), None)
        limit = rng.randrange(1, 12)
        assert tested.items_from(address, limit) == [item for item in model if item[1] > address][:limit]


@pytest.mark.parametrize("order", ["top-down", "bottom-up", "shuffled"])
def test_many_live_mappings_are_kept_in_short_blocks(order: str) -> None:
    count, step = 100_000, 4096
    slots = list(range(count))
    if order == "top-down":
        slots.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(slots)
    tested = IntervalMap()

    for slot in slots:
        assert tested.insert((slot * step, (slot + 1) * step, 0, 3))

    assert len(tested) == count
    assert max(len(block) for block in tested._items) <= BLOCK_MAX
    assert tested.find(77_777 * step + 5) == (77_777 * step, 77_778 * step, 0, 3)
    assert tested.remove(step, (count - 1) * step, []) == count - 2
    assert [item[0] for item in tested] == [0, (count - 1) * step]


def test_emptying_the_map_leaves_a_usable_map() -> None:
    tested = IntervalMap()
    assert tested.insert((5, 9, 0, 3))

    assert tested.remove(0, 1 << 64, []) == 1

    assert (len(tested), list(tested), tested.find(6), tested.overlaps(0, 99)) == (0, [], None, False)
    assert tested.insert((6, 7, 0, 3))


def test_all_that_a_removal_unhooks_is_rubbish_to_be_freed_later() -> None:
    tested, rubbish = IntervalMap(), list[list[int] | list[Interval]]()
    for start in range(10 * BLOCK_MAX):
        tested.insert((2 * start, 2 * start + 1, 0, 3))

    removed = tested.remove(0, 20 * BLOCK_MAX, rubbish)

    kept = [kind for block in rubbish for kind in (type(block[0]),) * len(block)]
    assert removed == 10 * BLOCK_MAX
    assert kept.count(int) == kept.count(tuple) > 8 * BLOCK_MAX


def test_an_emptied_map_is_empty_and_takes_intervals_again() -> None:
    tested, rubbish = IntervalMap(), list[list[int] | list[Interval]]()
    tested.insert((1, 5, 0, 3))

    tested.empty_into(rubbish)

    assert (len(tested), list(tested), tested.find(1)) == (0, [], None)
    assert tested.insert((2, 3, 0, 3))
    assert len(rubbish) == 2
