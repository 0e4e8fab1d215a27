"""A failed check of the guest is explained by pytest's own output: no log need be opened, nothing need be rerun."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from guest_tests import report
from guest_tests.boot import follow
from guest_tests.payload.checks import CHECKS
from guest_tests.report import NTRACE_SHOWN, Run
from tests.booted import test_configs, test_first_light
from tests.booted.conftest import GuestRun
from tests.support.trace import TraceRig
from vdev.config import Config, EndpointConfig, UnitConfig
from vdev.control.event_log import EventLog
from vdev.control.server import Command, ControlServer
from vdev.iommu.events import FaultRaised, RequestHandled
from vdev.trace.commands import trace_commands
from vdev.trace.recorder import Trace, TraceOptions
from vdev.transports.listener import Listener
from vdev.wire import viommu

CONFIG = Config(units=(UnitConfig(name="iommu0"),), endpoints=(EndpointConfig(name="accel0"),))
COPY = next(check for check in CHECKS if check.name == "copy")
MAP = viommu.Map(viommu.T_MAP, bytes(3), 1, 0x2000_0000, 0x2000_0FFF, 0, viommu.MAP_F_READ)
UNMAP = viommu.Unmap(viommu.T_UNMAP, bytes(3), 1, 0x2000_0000, 0x2000_0FFF)


class _Guest:
    """Fails its copy after a refused access; then goes on and does a thousand things that bury it."""

    def __init__(self, control_path: Path, log: EventLog) -> None:
        self.control_path = str(control_path)
        self._log = log
        self._console = ["virtio_iommu virtio0: page fault from EP 256 at 0x20000000 [W]"]

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        yield {"hello": 1, "kernel": "6.12", "checks": ["copy", "later"]}
        yield {"starting": "copy", "title": COPY.title}
        self._log.emit(RequestHandled("iommu0", "MAP", viommu.S_INVAL, MAP, "overlaps a mapping"))
        self._log.emit(FaultRaised("iommu0", 0x100, "not-mapped", 2, 0x2000_0000))
        detail = "the device answered: translation fault: write at IOVA 0x20000000"
        yield {"check": "copy", "ok": False, "title": COPY.title, "detail": detail, "ms": 1.0, "data": {}}
        for number in range(1000):
            self._log.emit(RequestHandled("iommu0", "UNMAP", viommu.S_OK, UNMAP))
            self._console.append(f"chatter {number}")
        yield {"check": "later", "ok": True, "title": "Later", "detail": "fine", "ms": 1.0, "data": {}}
        yield {"done": True, "ok": False, "checks": 2, "passed": 1}

    async def send(self, message: dict[str, Any]) -> None:
        pass

    def console_tail(self, count: int) -> list[str]:
        return self._console[-count:]


@asynccontextmanager
async def _control(path: Path, log: EventLog, trace: Trace) -> AsyncIterator[None]:
    """vdev's own control server over `log` and `trace`."""
    listener = Listener(path)
    commands = {
        "query-events": Command(log.query),
        "query-iommu": Command(lambda: []),
        **trace_commands(trace),
    }
    server = ControlServer(listener.socket, commands)
    await server.start()
    try:
        yield
    finally:
        server.close()
        listener.close()


@pytest.fixture
async def failed(tmp_path: Path) -> GuestRun:
    """A run whose copy failed, followed over a real control socket."""
    run, log = Run(logs="logs/kept"), EventLog(lambda: 12.5)
    rig = TraceRig()
    rig.now_ns += 12_500_000_000
    rig.trace.start(TraceOptions())
    log.trace = rig.trace.emit
    path = tmp_path / "run" / "control.sock"
    async with _control(path, log, rig.trace):
        await follow(_Guest(path, log), run, 5.0, lambda message, faults: None)
    return GuestRun(CONFIG, run)


def _explains(text: str) -> None:
    """Everything a person needs is in `text`."""
    assert f"{COPY.title}: the device answered: translation fault: write at IOVA 0x20000000" in text
    # the fault, as vdev recorded it
    assert "iommu0 refused a write of endpoint 01:00.0 at 0x20000000: not-mapped" in text
    # the last requests, in vdev's words, as they were when the check failed
    assert f"NOTE     guest: {COPY.title} ..." in text
    assert "12.500000  iommu0    MAP      domain 1 0x0020000000..0x0020000fff    4K -> 0x0000000000 r--  INVAL" in text
    assert "overlaps a mapping" in text
    assert "12.500000  iommu0    FAULT    01:00.0 (accel0) write 0x0020000000" in text
    assert "UNMAP" not in text
    # the console's tail, likewise
    assert "page fault from EP 256 at 0x20000000 [W]" in text
    assert "chatter" not in text
    assert "logs: logs/kept" in text


def test_a_failed_check_of_the_shared_guest_explains_itself(failed: GuestRun) -> None:
    with pytest.raises(AssertionError) as caught:
        test_first_light.test_in_the_guest(COPY, failed)

    _explains(str(caught.value))


def test_a_failed_example_explains_itself(failed: GuestRun) -> None:
    with pytest.raises(AssertionError) as caught:
        test_configs.test_every_check_passes_in_the_guest(failed)

    _explains(str(caught.value))


def test_the_demo_shows_the_same(failed: GuestRun) -> None:
    _explains("\n".join(report.failure(failed.run)))


def test_a_run_that_ended_early_shows_what_was_there_at_its_end(failed: GuestRun) -> None:
    failed.run.cause = "the guest said nothing for 60 s"

    text = "\n".join(report.failure(failed.run))

    assert "cause: the guest said nothing for 60 s" in text
    assert "chatter 999" in text
    assert text.count("iommu0    UNMAP    domain 1") == NTRACE_SHOWN - 1  # and the last check's verdict


def test_evidence_is_kept_of_failed_checks_only(failed: GuestRun) -> None:
    assert list(failed.run.evidence) == ["copy"]
    assert [event["event"] for event in failed.run.evidence["copy"].events] == ["RequestHandled", "FaultRaised"]
