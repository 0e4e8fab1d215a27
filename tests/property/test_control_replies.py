"""Whatever arguments the schema lets through, the control socket answers as the schema says, or with a reason."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.schema_values import objects
from tests.support.serve_process import TWO_UNITS
from vdev.app import App
from vdev.config import parse_config
from vdev.qapi.check import check_return
from vdev.qapi.model import Command
from vdev.qapi.schema import schema

# Whose arguments name files: those go where they say.
LEFT_OUT = {"trace-start": "file"}
NAMES = st.sampled_from(["iommu0", "iommu1", "accel0", "accel1"])  # or most requests would end at an unknown name


@st.composite
def requests(draw: st.DrawFn) -> tuple[Command, dict[str, Any]]:
    """A command of the control socket with arguments its description allows."""
    command = draw(st.sampled_from([found for found in schema().commands.values() if not found.bridge_only]))
    arguments = draw(objects(command.arguments))
    arguments.pop(LEFT_OUT.get(command.name, ""), None)
    for name in ("unit", "endpoint"):
        if name in arguments and draw(st.booleans()):
            arguments[name] = draw(NAMES)
    return command, arguments


async def _answers(asked: list[tuple[Command, dict[str, Any]]], directory: Path) -> list[dict[str, Any]]:
    """What one machine answers to `asked` in this order."""
    app = App(parse_config(TWO_UNITS, "test.yaml"), directory)
    try:
        lines = [json.dumps({"execute": command.name, "arguments": arguments}).encode() for command, arguments in asked]
        return [json.loads(app.control.answer(line)) for line in lines]
    finally:
        app.close()


@given(st.lists(requests(), min_size=1, max_size=8))
@settings(deadline=None, max_examples=50)
def test_every_answer_is_as_described_or_says_why_not(asked: list[tuple[Command, dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        answers = asyncio.run(_answers(asked, Path(directory)))

    for (command, _), answer in zip(asked, answers, strict=True):
        if "error" in answer:
            assert answer["error"]["class"] in ("GenericError", "CommandNotFound")
            assert answer["error"]["desc"]
        else:
            check_return(command.returns, answer["return"])
