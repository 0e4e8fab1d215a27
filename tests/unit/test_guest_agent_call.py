"""Functions called in a guest: whatever they return or raise, the agent lives on and says so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest_tests.payload.agent import MAX_RETURNED, answer

MODULE = """
def plain(): return {"a": [1, None, "x"]}
def odd(): return object()
def loud(): return "x" * 200_000
def bad(): raise ValueError("bad")
"""


@pytest.fixture
def module(tmp_path: Path) -> Iterator[str]:
    """The name of a module with the functions above; it is forgotten afterwards."""
    name = "called_in_a_guest"
    (tmp_path / f"{name}.py").write_text(MODULE)
    before = list(sys.path)
    yield name
    sys.path[:] = before
    sys.modules.pop(name, None)


def call(module: str, function: str, where: Path) -> dict[str, Any]:
    """What the agent answers."""
    nobody: Any = None
    request = {"do": "call", "function": f"{module}:{function}", "arguments": {}, "where": str(where)}
    return answer(nobody, request)


def test_plain_data_comes_back(module: str, tmp_path: Path) -> None:
    assert call(module, "plain", tmp_path) == {"returned": {"a": [1, None, "x"]}}


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        ("bad", "ValueError: bad"),
        ("odd", "TypeError: Object of type object is not JSON serializable"),
        ("loud", f"ValueError: it returned 200002 characters, at most {MAX_RETURNED} go through the channel"),
        ("none", "AttributeError: module 'called_in_a_guest' has no attribute 'none'"),
    ],
)
def test_anything_else_is_told_and_the_agent_lives_on(function: str, wanted: str, module: str, tmp_path: Path) -> None:
    answered = call(module, function, tmp_path)

    assert answered["raised"] == wanted
    assert answered["traceback"].startswith("Traceback")
