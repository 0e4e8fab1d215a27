"""Boots a guest with our payload and follows it to `done`: what `make demo`, `make shell` and the tests share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

from guest_tests.iommu_counts import counts_of
from guest_tests.report import NCONSOLE_SHOWN, NEVENTS_SHOWN, NTRACE_SHOWN, Evidence, Run, faults_of
from qmp_bridge.errors import VmDied
from qmp_bridge.plan import Options
from qmp_bridge.up import RunningVm, bring_up
from vdev.config import Config
from vdev.errors import VdevError

SILENCE_S = 60.0  # between two messages; the longest check takes a few seconds under TCG
POWER_OFF_S = 20.0
CONTROL_TIMEOUT_S = 10.0
CONTROL_LINE_NBYTES = 16 << 20
NEVENTS_KEPT = 1000
NCONSOLE_KEPT = 200
NTRACE_KEPT = 10_000  # all that the backend keeps in memory

Listener = Callable[[dict[str, Any], list[dict[str, Any]]], None]  # a message, and the faults vdev recorded before it


class Vm(Protocol):
    """What we need of a running VM (qmp_bridge.up makes them)."""

    control_path: str

    def messages(self) -> AsyncIterator[dict[str, Any]]: ...
    async def send(self, message: dict[str, Any]) -> None: ...
    def console_tail(self, count: int) -> list[str]: ...


class GuestSilent(VdevError):
    """The guest went silent, or away, before it said that it is done."""


class ControlError(VdevError):
    """vdev's control socket did not answer, or answered with an error."""


class Control:
    """A client of vdev's control socket; one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, path: str) -> AsyncIterator[Control]:
        """A connected client for the length of the block. Raises ControlError."""
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=CONTROL_LINE_NBYTES)
        except OSError as error:
            raise ControlError(f"control socket {path}: {error}") from error
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def execute(self, command: str, **arguments: object) -> Any:
        """The answer of one command. Raises ControlError."""
        try:
            async with asyncio.timeout(CONTROL_TIMEOUT_S):
                self._writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
                await self._writer.drain()
                line = await self._reader.readline()
        except (OSError, TimeoutError) as error:
            raise ControlError(f"{command}: {type(error).__name__} {error}") from error
        answer = json.loads(line) if line else {"error": {"desc": "vdev closed the control socket"}}
        if "error" in answer:
            raise ControlError(f"{command}: {answer['error']['desc']}")
        return answer["return"]


async def boot(config: Config, options: Options, listen: Listener, silence_s: float = SILENCE_S) -> Run:
    """Boot a guest with our payload, follow it to its end, and hand back what happened, failures included.

    Raises ConfigError and PartsError: then nothing was started.
    """
    run = Run()
    started = time.monotonic()
    if options.trace is None:
        options = replace(options, trace="logs")  # a failure must not be run again to be understood
    try:
        async with bring_up(config, options) as vm:
            options.say("the guest boots: some ten seconds without KVM")
            await follow(vm, run, config.vm.boot_timeout, listen, silence_s)
            if run.done is not None:
                await _let_it_power_off(vm)
            if not run.ok:
                raise vm.died(run.cause or "a check failed")  # so that the logs are kept
    except VmDied as error:
        run.cause = run.cause or ("" if run.done and not run.done.get("ok") else str(error))
        run.console = error.tail or run.console
        run.logs = str(error.logs or "")
    run.seconds = time.monotonic() - started
    return run


async def _let_it_power_off(vm: RunningVm) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(POWER_OFF_S):
            await vm.wait_exit()


async def follow(vm: Vm, run: Run, boot_timeout_s: float, listen: Listener, silence_s: float = SILENCE_S) -> None:
    """Collect the guest's messages and vdev's events in `run` until `done`, a time-out, or the guest's end.

    The run's `cause` says why there is no `done`. Raises nothing for what a guest or vdev does wrong; whoever watches
    the VM may cancel this, and then finds in `run` what was collected so far.
    """
    try:
        async with Control.connected(vm.control_path) as control:
            try:
                await _collect(vm, control, run, boot_timeout_s, silence_s, listen)
                run.iommu = await control.execute("query-iommu")
            finally:
                run.events = await control.execute("query-events", since=0, limit=NEVENTS_KEPT)
                kinds = ["FaultInjected"]
                run.injected = await control.execute("query-events", since=0, limit=NEVENTS_KEPT, kinds=kinds)
                run.trace = await newest_records(control, NTRACE_KEPT)
    except VdevError as error:
        run.cause = run.cause or str(error)
    finally:
        run.console = vm.console_tail(NCONSOLE_KEPT)
    if run.done is not None:
        with contextlib.suppress(OSError, VdevError):
            await vm.send({"bye": 1})


async def _collect(
    vm: Vm, control: Control, run: Run, boot_timeout_s: float, silence_s: float, listen: Listener
) -> None:
    faults = _FaultCursor(control)
    messages = vm.messages()
    wait_s = boot_timeout_s
    before: Any = []  # query-iommu when the check began
    while run.done is None:
        message = await _next(messages, wait_s, run)
        wait_s = silence_s
        seen: list[dict[str, Any]] = []
        if "hello" in message:
            run.hello = message
        elif "starting" in message:
            await faults.take()
            before = await control.execute("query-iommu")
            await control.execute("trace-note", text=f"guest: {message['title']} ...")
        elif "check" in message:
            seen = await faults.take()
            verdict = "ok" if message["ok"] else "FAILED"
            await control.execute("trace-note", text=f"guest: {verdict}, {message['detail']}")
            run.records.append(message)
            run.faults[message["check"]] = seen
            if (watched := message.get("data", {}).get("counted_endpoint")) is not None:
                counts = counts_of(watched, before, await control.execute("query-iommu"))
                run.counts[message["check"]] = counts
                message["counted"] = counts.line()
            if not message["ok"]:
                # Now, because by the time of `done` later checks have buried it.
                events = await control.execute("query-events", since=0, limit=NEVENTS_SHOWN)
                trace = await newest_records(control, NTRACE_SHOWN)
                run.evidence[message["check"]] = Evidence(events, vm.console_tail(NCONSOLE_SHOWN), trace)
        elif "done" in message:
            run.done = message
        listen(message, seen)


async def _next(messages: AsyncIterator[dict[str, Any]], wait_s: float, run: Run) -> dict[str, Any]:
    last = run.records[-1]["check"] if run.records else "boot" if not run.hello else "hello"
    try:
        async with asyncio.timeout(wait_s):
            return await anext(messages)
    except TimeoutError:
        raise GuestSilent(f"the guest said nothing for {wait_s:.0f} s; its last word was about: {last}") from None
    except StopAsyncIteration:
        raise GuestSilent(f"the guest went away before it was done; its last word was about: {last}") from None


async def newest_records(control: Control, count: int) -> list[dict[str, Any]]:
    """The trace's newest `count` records, oldest first."""
    answer = await control.execute("query-trace", last=count)
    return list(answer["newest"])


class _FaultCursor:
    """Reads each of vdev's fault events once."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._next = 0

    async def take(self) -> list[dict[str, Any]]:
        """The fault events since the last call."""
        events = await self._control.execute("query-events", since=self._next, kinds=["FaultRaised"])
        if events:
            self._next = events[-1]["seq"] + 1
        return faults_of(events)


def mapping_counts(value: Any, path: str = "") -> dict[str, int]:
    """Every number called `mappings` in the answer of query-iommu, by its path."""
    found: dict[str, int] = {}
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    for key, inner in pairs:
        if isinstance(inner, int) and key == "mappings":
            found[f"{path}/{key}"] = inner
        else:
            found.update(mapping_counts(inner, f"{path}/{key}"))
    return found
