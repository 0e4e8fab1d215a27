"""A scenario file is accepted or refused with a key: none ends in a traceback."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from guest_tests.scenario.model import ScenarioFile, walk
from guest_tests.scenario.steps import KINDS
from tests.support.scenario import scenario_in
from vdev.errors import ConfigError

WORDS = [
    "", "r1", "first", "first.status", "{{first.status}}", "{{round}}", "{{seed}}", "{{", "}}{{", "{{a b}}",
    "work:copy", "request", "MAP", "drop", "timer", ">=1", "backend", "stock", "vhost-user", "..", "a.b", "ok",
]  # fmt: skip
KEYS = sorted(
    {
        *KINDS, *ScenarioFile.__struct_fields__, "ends", "call", "with", "as", "within", "raises", "meanwhile", "id",
        "at", "do", "match", "when", "times", "event", "where", "rule", "execute", "arguments", "error", "that", "is",
        "is-not", "contains", "at-least", "at-most", "in", "fired", "all", "nth",
    }
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 1 << 65), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(WORDS), st.text(st.characters(codec="ascii", categories=("L", "P", "Zs")), max_size=6),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)),
    max_leaves=12,
)
GOOD: list[dict[str, Any]] = [
    {"guest": {"call": "work:copy", "with": {"n": 1}, "as": "first", "meanwhile": [{"note": "a"}]}},
    {"inject": {"id": "r1", "at": "request", "do": "drop", "match": {"type": "MAP"}}},
    {"wait": {"event": "STOP", "where": {"rule": "r1"}, "as": "seen"}},
    {"qmp": {"execute": "stop", "arguments": {}, "error": "no"}},
    {"expect": {"that": "first.status", "is": 3}},
    {"expect": {"fired": {"r1": ">=1"}}},
    {"repeat": {"times": 2, "steps": [{"note": "{{round}}"}]}},
    {"release": "r1"},
    {"clear": {}},
    {"pause": 0.5},
]


@st.composite
def steps(draw: st.DrawFn) -> list[Any]:
    """Steps of which most are good but for one value in them."""
    found: list[Any] = []
    for good in draw(st.lists(st.sampled_from(GOOD), min_size=1, max_size=4)):
        step = json.loads(json.dumps(good))
        (kind,) = step
        if draw(st.booleans()) and isinstance(step[kind], dict):
            step[kind][draw(st.sampled_from(KEYS))] = draw(VALUES)
        elif draw(st.booleans()):
            step[draw(st.sampled_from([kind, "ends"]))] = draw(VALUES)
        found.append(step)
    return found


def read(directory: Path, text: str) -> str | None:
    """What is odd about reading the file: nothing, if it is read, or refused with a key and a problem."""
    try:
        scenario = scenario_in(directory, text)
    except ConfigError as error:
        return None if error.key.startswith(str(directory)) and error.problem else repr(error)
    odd = [step.key for step in walk(scenario.steps) if step.kind not in KINDS]
    return f"{odd} are no steps" if odd else None


@given(steps=st.one_of(steps(), VALUES), head=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=2))
@settings(max_examples=300, deadline=None)
def test_a_file_is_accepted_or_refused_with_a_key(steps: Any, head: dict[str, Any]) -> None:
    file = {
        "scenario": "test", "machine": {"units": [{"name": "iommu0"}]}, "guest": "inside", "vars": {"size": 1},
        **head, "steps": steps,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        assert read(Path(directory), json.dumps(file)) is None
