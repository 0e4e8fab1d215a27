"""What the demo prints, and how a run is followed: a fake VM stands in for QEMU, a real control socket for vdev's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from guest_tests import report
from guest_tests.boot import Control, ControlError, Listener, follow, mapping_counts
from guest_tests.report import Painter, Run
from tests.support.trace import DECODER
from vdev.iommu.events import FaultRaised
from vdev.trace.records import Entry

PLAIN = Painter(False)
FAULT = {
    "seq": 5,
    "time": 12.5,
    "event": "FaultRaised",
    "text": "FaultRaised unit=iommu0 endpoint=01:00.0 reason=not-mapped access=2 iova=0x20000000",
    "unit": "iommu0",
    "endpoint": 0x100,
    "reason": "not-mapped",
    "access": 2,
    "iova": 0x20000000,
}
TRACED = DECODER.record(Entry(7, 12_500_000_000, FaultRaised("iommu0", 0x100, "not-mapped", 2, 0x20000000)))
HELLO = {"hello": 1, "kernel": "6.12", "checks": ["copy"]}
COPY = {"check": "copy", "ok": True, "title": "A copy", "detail": "copied", "ms": 3.5, "data": {}}
DONE = {"done": True, "ok": True}


def test_a_passed_check_shows_verdict_time_and_detail() -> None:
    assert report.finished(COPY, [], PLAIN) == ["  ok    3.5 ms  copied"]


def test_a_refusal_shows_what_the_kernel_said_and_what_vdev_recorded() -> None:
    record = {**COPY, "data": {"kernel": "page fault from EP 256"}}

    lines = report.finished(record, [FAULT], PLAIN)

    assert lines[1].strip() == "guest kernel: page fault from EP 256"
    assert "iommu0 refused a write of endpoint 01:00.0 at 0x20000000: not-mapped" in lines[2]


def test_without_a_terminal_there_are_no_escape_sequences() -> None:
    run = Run(hello=HELLO, records=[COPY], done=DONE)

    assert "\x1b" not in "".join(report.summary(run, PLAIN))
    assert "\x1b[32m" in "".join(report.summary(run, Painter(True)))


def test_the_summary_counts_what_was_asked_for_not_what_arrived() -> None:
    run = Run(hello={**HELLO, "checks": ["copy", "reset"]}, records=[COPY], cause="silence")

    assert "FAILED: 1 of 2 checks" in report.summary(run, PLAIN)[-1]


def test_a_run_without_done_is_not_ok() -> None:
    assert not Run(hello=HELLO, records=[COPY]).ok
    assert not Run(done={"done": True, "ok": False}).ok
    assert not Run(done=DONE, cause="vdev died").ok
    assert Run(done=DONE).ok


def test_a_failure_shows_cause_console_faults_and_trace() -> None:
    run = Run(console=["Kernel panic"], events=[FAULT], trace=[TRACED], cause="the guest went away", logs="some/where")

    text = "\n".join(report.failure(run))

    assert "cause: the guest went away" in text
    assert "  | Kernel panic" in text
    assert "  | iommu0 refused a write of endpoint 01:00.0 at 0x20000000: not-mapped" in text
    assert "  |    12.500000  iommu0    FAULT    01:00.0 (accel0) write 0x0020000000" in text
    assert "some/where" in text


def test_a_failed_check_is_the_cause_when_nothing_else_is() -> None:
    record = {**COPY, "ok": False, "detail": "the copy differs"}

    assert "cause: A copy: the copy differs" in report.failure(Run(records=[record], done={"ok": False}))


def test_asking_for_a_check_that_was_never_reported_says_why() -> None:
    with pytest.raises(KeyError, match="silence"):
        Run(cause="silence").record("copy")


def test_mapping_counts_are_found_wherever_they_are() -> None:
    answer = {"iommu0": {"mappings": 3, "domains": [{"id": 1, "mappings": 3}]}, "other": True}

    assert mapping_counts(answer) == {"/iommu0/mappings": 3, "/iommu0/domains/0/mappings": 3}


class _FakeVm:
    """Says `script`, then stays silent (`hang`) or goes away."""

    def __init__(self, control_path: Path, script: Iterable[dict[str, Any]], *, hang: bool = False) -> None:
        self.control_path = str(control_path)
        self.sent: list[dict[str, Any]] = []
        self._script = list(script)
        self._hang = hang

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        for message in self._script:
            yield message
        if self._hang:
            await asyncio.Event().wait()

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    def console_tail(self, count: int) -> list[str]:
        return ["last words"][:count]


@asynccontextmanager
async def _control(path: Path, *, broken: bool = False) -> AsyncIterator[list[dict[str, Any]]]:
    """A control socket with one fault in its history; yields the requests it got."""
    requests: list[dict[str, Any]] = []
    clients: list[asyncio.Event] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.append(gone := asyncio.Event())
        while line := await reader.readline():
            request = json.loads(line)
            requests.append(request)
            answer: dict[str, Any] = {"return": {"iommu0": {"mappings": 0}}}
            if request["execute"] == "query-events":
                answer = {"return": [FAULT] if request["arguments"]["since"] <= FAULT["seq"] else []}
            if request["execute"] == "query-trace":
                answer = {"return": {"newest": [TRACED]}}
            if broken:
                answer = {"error": {"class": "GenericError", "desc": "no such luck"}}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()
        await writer.wait_closed()
        gone.set()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield requests
    finally:
        server.close()
        for client in clients:
            await client.wait()


def _ignore(message: dict[str, Any], faults: list[dict[str, Any]]) -> None:
    pass


async def _followed(vm: _FakeVm, boot_timeout_s: float = 5.0, listen: Listener = _ignore) -> Run:
    run = Run()
    await follow(vm, run, boot_timeout_s, listen, silence_s=0.05)
    return run


async def test_a_guest_that_says_done_makes_a_complete_run(tmp_path: Path) -> None:
    heard: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    vm = _FakeVm(tmp_path / "c", [HELLO, COPY, {**COPY, "check": "later"}, DONE])
    async with _control(Path(vm.control_path)):
        run = await _followed(vm, listen=lambda message, faults: heard.append((message, faults)))

    assert run.ok
    assert [message for message, _ in heard] == [HELLO, COPY, {**COPY, "check": "later"}, DONE]
    assert run.faults == {"copy": [FAULT], "later": []}
    assert run.events == [FAULT]
    assert run.trace == [TRACED]
    assert mapping_counts(run.iommu) == {"/iommu0/mappings": 0}
    assert run.console == ["last words"]
    assert vm.sent == [{"bye": 1}]


async def test_faults_before_a_check_are_not_counted_as_its_own(tmp_path: Path) -> None:
    vm = _FakeVm(tmp_path / "c", [HELLO, {"starting": "copy", "title": "A copy"}, COPY, DONE])
    async with _control(Path(vm.control_path)) as requests:
        run = await _followed(vm)

    assert run.faults == {"copy": []}
    notes = [request["arguments"]["text"] for request in requests if request["execute"] == "trace-note"]
    assert notes == ["guest: A copy ...", "guest: ok, copied"]


@pytest.mark.parametrize("script", [[], [HELLO], [HELLO, COPY]], ids=["no-hello", "after-hello", "after-a-check"])
async def test_a_silent_guest_is_failed_by_time_out(tmp_path: Path, script: list[dict[str, Any]]) -> None:
    vm = _FakeVm(tmp_path / "c", script, hang=True)
    async with _control(Path(vm.control_path)):
        run = await _followed(vm, boot_timeout_s=0.1)

    assert not run.ok
    assert "said nothing" in run.cause
    assert run.events == [FAULT]
    assert run.console == ["last words"]
    assert vm.sent == []


async def test_a_guest_that_goes_away_before_done_is_failed(tmp_path: Path) -> None:
    vm = _FakeVm(tmp_path / "c", [HELLO, COPY])
    async with _control(Path(vm.control_path)):
        run = await _followed(vm)

    assert not run.ok
    assert "went away" in run.cause
    assert "copy" in run.cause


async def test_a_vdev_that_answers_with_errors_fails_the_run(tmp_path: Path) -> None:
    vm = _FakeVm(tmp_path / "c", [HELLO, COPY, DONE])
    async with _control(Path(vm.control_path), broken=True):
        run = await _followed(vm)

    assert not run.ok
    assert "no such luck" in run.cause


async def test_a_vdev_that_is_not_there_fails_the_run(tmp_path: Path) -> None:
    run = await _followed(_FakeVm(tmp_path / "absent", [HELLO]))

    assert not run.ok
    assert "control socket" in run.cause


async def test_a_control_socket_that_closes_is_an_error(tmp_path: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    server = await asyncio.start_unix_server(hang_up, tmp_path / "c")
    try:
        async with Control.connected(str(tmp_path / "c")) as control:
            with pytest.raises(ControlError, match="closed"):
                await control.execute("query-iommu")
    finally:
        server.close()
