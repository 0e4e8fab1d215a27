"""Arguments and replies against a schema: what passes, and QEMU's words for what does not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.schema import SMALL
from vdev.errors import ArgumentError
from vdev.qapi.check import MAX_SHOWN, check_arguments, check_data, check_return
from vdev.qapi.model import ListOf

PLUG = SMALL.commands["plug"]
SINCE = SMALL.commands["query-since"]
PART = SMALL.types["Part"]


def test_arguments_become_keyword_parameters_and_what_is_left_out_stays_out() -> None:
    assert check_arguments(SINCE, {"from": 3}) == {"from_": 3}


def test_every_type_passes_with_its_values() -> None:
    given = {
        "name": "x",
        "parts": [{"start": (1 << 64) - 1, "colour": "red", "more": {"a": [None, 1.5]}}, {"start": 0}],
        "colours": ["blue", "red"],
        "speed": 3,
        "loud": False,
        "small": (1 << 32) - 1,
    }

    assert check_arguments(PLUG, given) == given


# Each found by asking QEMU 11.1.3 for something of the same shape.
@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "QMP input member 'arguments' must be an object"),
        ({}, "Parameter 'name' is missing"),
        ({"nme": 1}, "Parameter 'name' is missing"),
        ({"name": 1}, "Invalid parameter type for 'name', expected: string"),
        ({"name": None}, "Invalid parameter type for 'name', expected: string"),
        ({"name": "x", "z": 1}, "Parameter 'z' is unexpected"),
        ({"name": "x", "loud": 1}, "Invalid parameter type for 'loud', expected: boolean"),
        ({"name": "x", "speed": "1"}, "Invalid parameter type for 'speed', expected: number"),
        ({"name": "x", "speed": True}, "Invalid parameter type for 'speed', expected: number"),
        ({"name": "x", "parts": {}}, "Invalid parameter type for 'parts', expected: array"),
        ({"name": "x", "parts": [1]}, "Invalid parameter type for 'parts[0]', expected: object"),
        ({"name": "x", "parts": [{"start": 1}, {}]}, "Parameter 'parts[1].start' is missing"),
        ({"name": "x", "parts": [{"start": 1, "y": 1}]}, "Parameter 'parts[0].y' is unexpected"),
        ({"name": "x", "parts": [{"start": -1}]}, "Parameter 'parts[0].start' expects uint64"),
        ({"name": "x", "parts": [{"start": 1 << 64}]}, "Parameter 'parts[0].start' expects uint64"),
        ({"name": "x", "parts": [{"start": 1.0}]}, "Parameter 'parts[0].start' expects uint64"),
        ({"name": "x", "parts": [{"start": True}]}, "Parameter 'parts[0].start' expects uint64"),
        ({"name": "x", "small": 1 << 32}, "Parameter 'small' expects uint32_t"),
        ({"name": "x", "small": -1}, "Parameter 'small' expects uint32_t"),
        ({"name": "x", "small": "a"}, "Parameter 'small' expects uint64"),
        ({"name": "x", "colours": ["red", "green"]}, "Parameter 'colours[1]' does not accept value 'green'"),
        ({"name": "x", "colours": [1]}, "Invalid parameter type for 'colours[0]', expected: string"),
    ],
)
def test_wrong_arguments_are_refused_in_qemus_words(given: Any, text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_arguments(PLUG, given)

    assert str(caught.value) == text


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63) - 1, 1.0, True, "1", None])
def test_an_int_has_64_bits_and_a_sign(value: Any) -> None:
    with pytest.raises(ArgumentError, match="Invalid parameter type for 'since', expected: integer"):
        check_arguments(SINCE, {"since": value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400], ids=["nan", "inf", "huge"])
def test_a_number_is_finite(value: Any) -> None:
    with pytest.raises(ArgumentError, match="Invalid parameter type for 'speed', expected: number"):
        check_arguments(PLUG, {"name": "x", "speed": value})


def test_a_name_that_cannot_be_encoded_is_refused_by_what_can() -> None:
    with pytest.raises(ArgumentError, match=r"Parameter '\?' is unexpected"):
        check_arguments(SINCE, {"\ud800": 1})


def test_a_name_without_end_is_cut_in_the_error() -> None:
    with pytest.raises(ArgumentError) as caught:
        check_arguments(SINCE, {"x" * 100_000: 1})

    assert str(caught.value) == f"Parameter '{'x' * MAX_SHOWN}...' is unexpected"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"start": 1, "colour": None}, "Invalid parameter type for 'return.colour', expected: string"),
        ({}, "Parameter 'return.start' is missing"),
        ({"start": 1, "end": 2}, "Parameter 'return.end' is unexpected"),
        ([], "Invalid parameter type for 'return', expected: object"),
    ],
)
def test_a_reply_with_a_null_a_gap_or_an_addition_is_refused(value: Any, text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_return(PART, value)

    assert str(caught.value) == text


def test_a_reply_as_described_passes() -> None:
    check_return(ListOf(PART), [{"start": 1}, {"start": 2, "colour": "red"}])
    check_return(None, {})


@pytest.mark.parametrize("value", [None, 1, {"x": 1}, []])
def test_a_command_that_returns_nothing_returns_an_empty_object(value: Any) -> None:
    with pytest.raises(ArgumentError):
        check_return(None, value)


def test_the_data_of_an_event_are_checked_too() -> None:
    check_data(SMALL.events["PLUGGED"].members, {"name": "x"})
    with pytest.raises(ArgumentError, match="Parameter 'name' is missing"):
        check_data(SMALL.events["PLUGGED"].members, {})
