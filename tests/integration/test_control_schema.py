"""The control socket and the schema say the same: every command is there, and what it returns is what is described."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.serve_pasids import UNCHECKED, serving_pasids
from tests.support.serve_process import TWO_UNITS, ServeProcess
from vdev.app import App
from vdev.config import parse_config
from vdev.qapi.check import check_return
from vdev.qapi.model import python_name
from vdev.qapi.schema import schema

CONTROL = {name: command for name, command in schema().commands.items() if not command.bridge_only}
ARGUMENTLESS = sorted(
    name
    for name, command in CONTROL.items()
    if all(member.optional for member in command.arguments) and not name.endswith("-follow")
    if name != "pasid-reclaim"  # one of two has to be given
)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with serving_pasids(UNCHECKED, tmp_path_factory.mktemp("serve") / "run") as served:
        while served.ask("query-status")["pasids"]["state"] != "held":
            time.sleep(0.01)
        yield served


async def test_the_command_table_is_the_schemas(tmp_path: Path) -> None:
    app = App(parse_config(TWO_UNITS, "test.yaml"), tmp_path)
    try:
        known = set(app.commands())
    finally:
        app.close()

    assert known == set(CONTROL)


@pytest.mark.parametrize("name", sorted(CONTROL))
async def test_what_answers_a_command_takes_the_arguments_it_is_described_with(tmp_path: Path, name: str) -> None:
    app = App(parse_config(TWO_UNITS, "test.yaml"), tmp_path)
    try:
        command = app.commands()[name]
    finally:
        app.close()
    members = CONTROL[name].arguments
    caller = {"caller": None} if command.knows_caller else {}
    everything = {python_name(member.name): None for member in members}
    needed = {python_name(member.name): None for member in members if not member.optional}

    for handler in filter(None, (command.answer, command.stream)):
        inspect.signature(handler).bind(**everything, **caller)
        inspect.signature(handler).bind(**needed, **caller)


@pytest.mark.parametrize("name", ARGUMENTLESS)
def test_what_a_command_returns_is_what_the_schema_says(process: ServeProcess, name: str) -> None:
    returned = process.ask(name)

    check_return(CONTROL[name].returns, returned)


def test_the_status_of_a_frozen_machine_is_as_described(process: ServeProcess) -> None:
    process.ask("freeze", by="a test")

    status = process.ask("query-status")
    process.ask("thaw")

    check_return(CONTROL["query-status"].returns, status)
    assert status["frozen"]["by"] == "a test"


def test_orders_about_pasids_are_answered_as_described(process: ServeProcess) -> None:
    quota = process.ask("pasid-quota", quota=9, reason="a test")
    reclaimed = process.ask("pasid-reclaim", all=True)
    audit = process.ask("query-pasid-audit", limit=2)

    for name, returned in (("pasid-quota", quota), ("pasid-reclaim", reclaimed), ("query-pasid-audit", audit)):
        check_return(CONTROL[name].returns, returned)
    assert (quota, reclaimed) == ({"quota": 9, "used": 0}, {"taken": 0})
    assert [order["command"] for order in audit] == ["pasid-reclaim", "pasid-quota"]
