"""The races' judge can tell: each thing that may go wrong is done by hand, once, and is noticed (docs/races.md)."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from guest_tests.payload import accel as engine
from guest_tests.payload.race import RACES, Field, RaceError, play
from guest_tests.payload.race.match import Match
from guest_tests.payload.race.play import Race
from tests.support.race_field import VARIANTS, make_field

Wrong = Callable[[Match], None]
SEED, NROUNDS = 3, 200


@pytest.fixture
def field() -> Field:
    """Mappings of single bytes, slices of 256."""
    return make_field(VARIANTS[0])


@pytest.fixture
def lost(field: Field, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Wrong], str]:
    """`lost(name, wrong)`: what is said when `wrong` happens after the act of a race of this name."""

    def play_until_lost(name: str, wrong: Wrong) -> str:
        race = RACES[name]

        def act(match: Match) -> None:
            race.act(match)
            wrong(match)

        monkeypatch.setitem(
            RACES, "planted", Race(act, race.prepare, race.revive, race.repair, race.beside, race.shares)
        )
        with pytest.raises(RaceError) as caught:
            play_all(field, "planted")
        return str(caught.value)

    return play_until_lost


def play_all(field: Field, name: str) -> None:
    """All rounds on one field."""
    for number in range(NROUNDS):
        play(field, SEED, name, number)


def flip(memory: memoryview, at: int) -> None:
    """One bit."""
    memory[at] ^= 1


def flip_target(match: Match) -> None:
    """A bit of the first byte of the target."""
    if match.main.dst:
        piece = match.main.dst.pieces[0]
        flip(match.main.dst.buffer.memory, piece.at + max(-piece.offset, 0))


def flip_gap(match: Match) -> None:
    """A bit of a byte nobody ever mapped."""
    operand = match.main.operands[0]
    flip(operand.buffer.memory, operand.area_nbytes - 1)


def write_completion(match: Match) -> None:
    """OK, whatever became of the operation: into a ring that may be somebody else's."""
    at = engine.COMPLETIONS_OFFSET + match.main.index * engine.COMPLETION.size + engine.STATUS_OFFSET
    match.main.accel.ring.memory[at] ^= 0x55


def wrong_field(match: Match, offset: int, field_format: str, difference: int) -> None:
    """Let the operation end, then change one field of a completion that says it faulted."""
    match.settle()
    memory, at = match.main.accel.ring.memory, engine.COMPLETIONS_OFFSET + match.main.index * engine.COMPLETION.size
    if memory[at + engine.STATUS_OFFSET] == engine.TRANSLATION_FAULT:
        (value,) = struct.unpack_from(field_format, memory, at + offset)
        struct.pack_into(field_format, memory, at + offset, value + difference)


def test_without_anything_wrong_no_race_is_lost(field: Field) -> None:
    play_all(field, "unmap")


@pytest.mark.parametrize("name", ["detach", "function-reset", "bus-master-off", "engine-reset", "enable-cleared"])
@pytest.mark.parametrize("wrong", [flip_target, flip_gap, write_completion])
def test_a_late_bit_is_noticed_in_target_gap_and_ring(
    lost: Callable[[str, Wrong], str], name: str, wrong: Wrong
) -> None:
    assert "LATE" in lost(name, wrong)


def test_a_late_bit_is_noticed_in_a_mapping_that_was_removed(lost: Callable[[str, Wrong], str]) -> None:
    def wrong(match: Match) -> None:
        flip(match.taken[0].memory, 0)

    assert "LATE" in lost("unmap", wrong)


def test_a_bit_that_nobody_was_told_to_write_is_noticed_where_nothing_was_taken(
    lost: Callable[[str, Wrong], str],
) -> None:
    assert "memory in the end" in lost("unmap-elsewhere", flip_gap)


def test_a_result_that_is_more_than_what_landed_is_noticed(lost: Callable[[str, Wrong], str]) -> None:
    def wrong(match: Match) -> None:
        match.settle()
        match.main.look()
        _, result, iova, _ = match.main.record
        if match.main.writes and iova not in [operand.iova + result for operand in match.main.operands]:
            wrong_field(match, 8, "<Q", 1)

    assert "is not what the completions say" in lost("unmap", wrong)


def test_a_wrong_address_of_a_fault_is_noticed(lost: Callable[[str, Wrong], str]) -> None:
    assert "faulted at" in lost("unmap", lambda match: wrong_field(match, 16, "<Q", 1))


def test_a_wrong_access_of_a_fault_is_noticed(lost: Callable[[str, Wrong], str]) -> None:
    assert "faulted at" in lost("unmap", lambda match: wrong_field(match, 24, "<I", 4))


def test_a_fault_that_was_not_reported_is_noticed(lost: Callable[[str, Wrong], str]) -> None:
    def wrong(match: Match) -> None:
        match.settle()
        match.field.viommu.faults()

    assert "not reported" in lost("unmap", wrong)


def test_an_answer_that_takes_longer_than_the_latency_is_noticed(lost: Callable[[str, Wrong], str]) -> None:
    def wrong(match: Match) -> None:
        match.wishes[0].answered_ns += match.field.latency_ns + 1

    assert "at most" in lost("unmap", wrong)


def test_an_answer_that_waited_for_what_is_none_of_its_business_is_noticed(
    lost: Callable[[str, Wrong], str],
) -> None:
    def wrong(match: Match) -> None:
        match.wishes[0].answered_ns += 1

    assert "at most 0 are right" in lost("unmap-elsewhere", wrong)


def test_a_lost_race_says_how_to_repeat_it_and_what_happened_when(lost: Callable[[str, Wrong], str]) -> None:
    text = lost("unmap", lambda match: flip(match.taken[0].memory, 0))

    assert "seed 3, race 'planted', number 0" in text
    assert "+0 ns: doorbell of 0000:01:00.0" in text
    assert "answered: Unmap, after" in text
