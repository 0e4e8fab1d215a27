"""A real machine for a scenario: a guest of the runner's, and the monitor that is QEMU's and vdev's in one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError

from guest_tests.runner import evidence
from guest_tests.runner.agent import CallFailed, GuestRefused
from guest_tests.runner.evidence import Beginning, Sections
from guest_tests.runner.guest import Guest, GuestGone, Living
from guest_tests.scenario.scene import OURS, CallRaised, CommandRefused, MachineGone, StepFailed

MAX_EVENTS = 10_000  # that nobody has waited for yet; older ones are forgotten
CONNECT_S = 10.0
NOTICE_S = 2.0  # between a connection's end and its cause

T = TypeVar("T")
Fits = Callable[[Mapping[str, Any]], bool]


class Shelf(EventListener):
    """Keeps the monitor's events until somebody takes them."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: deque[tuple[str, Mapping[str, Any]]] = deque(maxlen=MAX_EVENTS)
        self._came = asyncio.Event()

    async def put(self, event: Message) -> None:
        """Of QMPClient: an event has come."""
        data = event.get("data")
        self._kept.append((str(event["event"]), data if isinstance(data, Mapping) else {}))
        self._came.set()

    async def take(self, name: str, fits: Fits) -> Mapping[str, Any]:
        """The data of the oldest one of that name, or of ours so called, that fits; it is gone from here."""
        while True:
            self._came.clear()
            for kept in self._kept:
                if kept[0] in (name, f"{OURS}{name}") and fits(kept[1]):
                    self._kept.remove(kept)
                    return kept[1]
            await self._came.wait()


@dataclass(frozen=True, slots=True)
class Begun:
    """A machine as it is when its scenario begins: its monitor, the place in its logs, what it is in words."""

    path: str
    since: Beginning
    words: str


class Stage:
    """`Machine` of `scene`: the guest does what it is asked, the monitor is our own client's."""

    def __init__(self, guest: Guest, qmp: QMPClient, shelf: Shelf, begun: Begun) -> None:
        self._guest = guest
        self._qmp = qmp
        self._shelf = shelf
        self._since = begun.since
        self.words = begun.words

    @classmethod
    @asynccontextmanager
    async def set_up(cls, guest: Guest, name: str) -> AsyncIterator[Stage]:
        """The stage of `guest` for the scenario `name`. Raises MachineGone."""

        async def begin(living: Living) -> Begun:
            parts = living.vm.options.parts
            words = f"QEMU {parts.version}, {parts.accel}" if parts is not None else ""
            return Begun(living.vm.monitor_path, await evidence.begin(living.vm, living.control, name), words)

        shelf, qmp = Shelf(), QMPClient("scenario")
        qmp.register_listener(shelf)
        try:
            begun: Begun = await guest.do(begin)
            async with asyncio.timeout(CONNECT_S):
                await qmp.connect(begun.path)
        except GuestGone as gone:
            raise _gone(gone) from gone
        except (QMPError, OSError, TimeoutError) as error:
            raise MachineGone(f"its monitor cannot be had: {error}", []) from error
        try:
            yield cls(guest, qmp, shelf, begun)
        finally:
            with suppress(QMPError, EOFError, OSError):
                await qmp.disconnect()

    async def call(self, function: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        """See `Machine`."""
        where = str(self._guest.machine.suite)
        try:
            return await self._guest.do(lambda living: living.agent.call(function, dict(arguments), seconds, where))
        except CallFailed as failed:
            what = str(failed).partition("\n")[0].removeprefix(f"{function}: ")
            raise CallRaised(what, failed.traceback) from None
        except GuestRefused as refused:
            raise StepFailed(f"the guest calls {function}", str(refused)) from None
        except GuestGone as gone:
            raise _gone(gone) from gone

    async def execute(self, command: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        """See `Machine`."""
        try:
            async with asyncio.timeout(seconds):
                return await self._qmp.execute(command, dict(arguments) or None)
        except ExecuteError as refusal:
            raise CommandRefused(str(refusal)) from None
        except (QMPError, EOFError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            reason = await self.ended(NOTICE_S)
            raise MachineGone(reason or f"the monitor hung up: {error}", []) from error

    async def event(self, name: str, fits: Fits, seconds: float) -> Mapping[str, Any]:
        """See `Machine`."""
        async with asyncio.timeout(seconds):
            return await self._shelf.take(name, fits)

    async def beside(self, work: Coroutine[Any, Any, T]) -> T:
        """See `Machine`."""
        try:
            return await self._guest.beside(work)
        except GuestGone as gone:
            raise _gone(gone) from gone

    async def ended(self, seconds: float) -> str | None:
        """See `Machine`."""
        gone = await self._guest.gone_within(seconds)
        return None if gone is None else gone.reason

    async def evidence(self) -> Sections:
        """What there is to see: console, QMP, the trace's last records, what vdev refused. Raises MachineGone."""
        try:
            sections: Sections = await self._guest.do(
                lambda living: evidence.of_living(living.vm, living.control, self._since)
            )
        except GuestGone as gone:
            raise _gone(gone) from gone
        return sections


def _gone(gone: GuestGone) -> MachineGone:
    return MachineGone(gone.reason, gone.sections, str(gone.logs or ""))
