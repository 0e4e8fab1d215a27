"""Evidence of a failed test: from memory where the guest lives, from what was written where it is gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from guest_tests.boot import Control, ControlError
from guest_tests.runner import evidence
from guest_tests.runner.evidence import Beginning, begin, of_gone, of_living, of_trace, with_trace
from qmp_bridge.console import Console
from qmp_bridge.up import RunningVm


def note(text: str, t: float = 1.0) -> dict[str, Any]:
    return {"t": t, "kind": "note", "type": "NOTE", "fields": {"text": text}}


def reset(t: float) -> dict[str, Any]:
    return {"t": t, "kind": "vm", "type": "STOP", "fields": {}}


class FakeVm:
    """What evidence needs of a VM."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.console = Console()
        self.said = ["1 -> a", "2 <- b"]

    def console_tail(self, count: int, since: int = 0) -> list[str]:
        return self.console.tail(count, since)

    @property
    def qmp(self) -> FakeVm:
        return self

    @property
    def nmessages(self) -> int:
        return len(self.said)

    def qmp_tail(self, count: int, since: int = 0) -> list[str]:
        return self.said[since:][-count:]


class FakeControl:
    """Answers each command with what it was given; an error where it was given none."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def execute(self, command: str, **arguments: Any) -> Any:
        self.asked.append((command, arguments))
        key = command.replace("-", "_")
        if key not in self.answers:
            raise ControlError(f"{command}: gone")
        return self.answers[key]


def as_vm(vm: FakeVm) -> RunningVm:
    return cast(RunningVm, vm)


def as_control(control: FakeControl) -> Control:
    return cast(Control, control)


@pytest.fixture
def vm(tmp_path: Path) -> FakeVm:
    return FakeVm(tmp_path)


async def test_a_beginning_marks_trace_events_and_console(vm: FakeVm) -> None:
    vm.console.feed(b"boot\nmore\n")
    control = FakeControl(query_events=[{"seq": 41}], trace_note={})

    beginning = await begin(as_vm(vm), as_control(control), "test_a.py::" + "x" * 500)

    assert beginning == Beginning(event=42, line=2, message=2)
    (_, noted) = control.asked[-1]
    assert noted["text"].startswith("test: test_a.py::x")
    assert len(noted["text"]) == evidence.MAX_NOTE


async def test_a_living_guest_is_shown_from_the_beginning_of_the_test(vm: FakeVm) -> None:
    vm.console.feed(b"before\nduring\n")
    trace = [reset(1.0), note("test: a"), note("of the test itself", 2.0), reset(3.0)]
    control = FakeControl(query_trace={"newest": trace}, query_events=[])

    sections = dict(await of_living(as_vm(vm), as_control(control), Beginning(7, 1, 1)))

    assert sections["guest console, last lines"] == "during"
    assert sections["QMP, last messages"] == "2 <- b"
    assert [line.split()[-1] for line in sections[evidence.TRACE].splitlines()] == ["a", "itself", "STOP"]
    assert ("query-events", {"since": 7, "kinds": ["FaultRaised"]}) in control.asked


async def test_what_was_injected_is_shown_in_vdevs_words(vm: FakeVm) -> None:
    injected = [{"text": "rule r1, 1: drop at request"}, {"text": "1 rules cleared"}]
    control = FakeControl(query_trace={"newest": []}, query_events=injected)

    sections = dict(await of_living(as_vm(vm), as_control(control), Beginning(7, 1, 1)))

    assert sections["injected faults"] == "rule r1, 1: drop at request\n1 rules cleared"
    asked = [arguments for command, arguments in control.asked if "FaultInjected" in arguments.get("kinds", [])]
    assert [arguments["since"] for arguments in asked] == [7]


async def test_a_backend_that_does_not_answer_is_said_and_its_file_is_read(vm: FakeVm) -> None:
    (vm.logs / "trace.jsonl").write_text("\n".join(lines(note("test: a"), reset(2.0))))

    sections = dict(await of_living(as_vm(vm), as_control(FakeControl()), Beginning()))

    assert sections["vdev"] == "query-trace: gone"
    assert "STOP" in sections[evidence.TRACE]


def test_what_is_empty_is_no_section(vm: FakeVm) -> None:
    vm.said = []
    assert of_gone(as_vm(vm), Beginning()) == []


def lines(*records: dict[str, Any] | str) -> list[str]:
    return [record if isinstance(record, str) else json.dumps(record) for record in records]


def last_words(text: list[str]) -> list[str]:
    return [line.split()[-1] for line in text]


def test_a_trace_file_is_read_from_the_last_tests_note() -> None:
    records = ('{"vdev_trace": 1}', note("test: a"), reset(1.5), note("test: b", 2.0), reset(2.5))
    assert last_words(of_trace(lines(*records))) == ["b", "STOP"]


@pytest.mark.parametrize("bad", ["{", "[]", "5", "{}", '{"kind": "note"}', '{"t": "x", "kind": "vm", "type": "STOP"}'])
def test_lines_that_are_no_records_are_left_out(bad: str) -> None:
    assert last_words(of_trace(lines(bad, note("test: a"), bad, reset(2.0), bad))) == ["a", "STOP"]


def test_the_complete_trace_replaces_what_was_read_before_the_end() -> None:
    sections = [("guest console, last lines", "x"), (evidence.TRACE, "half of it")]

    better = with_trace(sections, lines(note("test: a"), reset(2.0)))

    assert [title for title, _ in better] == ["guest console, last lines", evidence.TRACE]
    assert "STOP" in better[1][1]


def test_without_a_complete_trace_what_was_read_stays() -> None:
    sections = [(evidence.TRACE, "half of it")]
    assert with_trace(sections, []) == sections
