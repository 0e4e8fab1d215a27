"""DMA under way against everything that takes its memory away: nothing moves after it must not (docs/races.md).

In process, in time that stands still between two events, so that every order of them is played. VDEV_TIER=soak plays
1,000,000 UNMAPs and 10,000 of everything else. To repeat one race: VDEV_SEED=seed VDEV_RACE=number, and its name by -k.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import pytest

from guest_tests.payload.race import RACES, Tally
from tests.support.race_field import NROUNDS, play_all

SOAK = os.environ.get("VDEV_TIER") == "soak"
SEED = int(os.environ.get("VDEV_SEED", "7"))
ONLY = os.environ.get("VDEV_RACE")
UNMAPS = 1_000_000 if SOAK else 1_500
OTHERS = 10_000 if SOAK else 150
REVALIDATED = 50_000 if SOAK else 300
TIMEOUT_S = 4 * 3600 if SOAK else 60
STEP = 20_000  # rounds between two lines of progress


def count_of(name: str) -> int:
    """How many rounds of a race."""
    return UNMAPS if name == "unmap" else OTHERS


def played(name: str, count: int, capsys: pytest.CaptureFixture[str], *, revalidates: bool = False) -> Tally:
    """`count` rounds, or all from the beginning of the field of round VDEV_RACE to that one."""
    if ONLY is not None:
        number = int(ONLY)
        return play_all(name, SEED, number - number % NROUNDS, number + 1, revalidates=revalidates)
    tally, began = Tally(), time.monotonic()
    for first in range(0, count, STEP):
        stop = min(first + STEP, count)
        tally.include(play_all(name, SEED, first, stop, revalidates=revalidates))
        if SOAK:
            with capsys.disabled():
                sys.stdout.write(f"\n{name}: {stop} of {count}, {stop / (time.monotonic() - began):.0f} a second")
                sys.stdout.flush()
    return tally


def test_every_race_is_played_by_the_tests_below() -> None:
    assert {"unmap", "detach", "reattach", "function-reset", "bus-master-off", "unit-reset"} < RACES.keys()


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak(count=count_of(name), seed=SEED)) for name in RACES]
)
def test_no_byte_moves_after_the_answer(
    name: str, capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    tally = played(name, count_of(name), capsys)

    for word, number in tally.describe().items():
        record_property(word, number)
    if ONLY is None:
        assert tally.rounds == count_of(name)
        assert tally.whole > 0  # it came late, ...
        assert not RACES[name].cuts or tally.cut > tally.rounds // 50  # ... in the middle ...
        assert not RACES[name].waits or tally.waited > tally.rounds // 20  # ... and while bytes were in flight


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("name", ["unmap", "remap", "detach", "reattach"])
@pytest.mark.soak(count=REVALIDATED, seed=SEED)
def test_with_landings_translated_again_nothing_lands_that_was_unmapped(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = played(name, REVALIDATED, capsys, revalidates=True)

    if ONLY is None:
        assert tally.nothing > tally.rounds // 20  # even the first slice is refused when it lands
