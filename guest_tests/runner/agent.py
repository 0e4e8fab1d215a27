"""The conversation with the agent in one guest: wake it, give it files, run tests, call functions.

What the guest says is in guest_tests/payload/agent.py and session.py.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guest_tests.runner.steps import HostSide, answer
from qmp_bridge.up import RunningVm
from vdev.errors import VdevError

Message = dict[str, Any]
WAKE_SECONDS = 60.0
FILES_SECONDS = 120.0
OPEN_SECONDS = 60.0  # imports of a module
CLOSE_SECONDS = 30.0  # fixtures of a module and a session are torn down
GRACE_SECONDS = 2.0  # beyond a test's own limit: for its stacks on the console
NOTICE_SECONDS = 1.0
CHUNK_NBYTES = 1 << 19


class GuestRefused(VdevError):
    """The agent cannot do what it was asked, and says why. The guest goes on; `sections` are what there was to see."""

    def __init__(self, text: str) -> None:
        self.sections: list[tuple[str, str]] = []
        super().__init__(text)


class GuestSilent(VdevError):
    """The guest did not answer in time, or said what makes no sense: it must be ended."""


class Late(GuestSilent):
    """It did not answer in time."""


class CallFailed(VdevError):
    """A function that was called in the guest raised; `traceback` is the guest's."""

    def __init__(self, what: str, traceback: str) -> None:
        self.traceback = traceback
        super().__init__(f"{what}\n{traceback}")


@dataclass(frozen=True)
class Order:
    """One test to be run. `next` is the test after it in the same module: fixtures that it shares are kept."""

    module: str
    test: str
    next: str | None
    limit: float


@dataclass
class Outcome:
    """What became of a test: pytest's own reports as plain data, in order; and the warnings on the way."""

    reports: list[Message] = field(default_factory=list)
    warnings: list[Message] = field(default_factory=list)
    left: str = ""  # what ended the whole session in the guest

    @property
    def failed(self) -> bool:
        """Whether one of its phases failed."""
        return any(report["outcome"] == "failed" for report in self.reports)


class Agent:
    """The agent of one running guest. One request at a time."""

    def __init__(self, vm: RunningVm, side: HostSide, machine: Message, options: list[str]) -> None:
        self._vm = vm
        self._side = side
        self._machine = machine
        self._options = options
        self._messages: AsyncIterator[Message] = vm.messages()
        self._open: str | None = None  # the module whose child process listens
        self._waits_for = ""  # what the running test asked of the host and has not got yet, in words

    async def wake(self, *, restored: bool, seconds: float = WAKE_SECONDS) -> Message:
        """Greet the guest; afterwards it sees vdev's functions. Raises GuestSilent, GuestRefused."""
        if not restored:
            await self._next("hello", seconds)
        seed = base64.b64encode(os.urandom(64)).decode()
        request = {"do": "wake", "restored": restored, "time": time.time(), "seed": seed}
        return await self._ask(request, "kernel", WAKE_SECONDS)

    async def put(self, files: Iterable[tuple[str, Path]]) -> None:
        """Give the guest files: (its absolute path there, the file here). Raises GuestSilent, GuestRefused."""
        for path, source in files:
            content, stat = source.read_bytes(), source.stat()
            for at in range(0, max(len(content), 1), CHUNK_NBYTES):
                data = base64.b64encode(content[at : at + CHUNK_NBYTES]).decode()
                file = {"path": path, "data": data, "more": at > 0, "mtime_ns": stat.st_mtime_ns}
                await self._ask({"do": "put", "files": [file]}, "stored", FILES_SECONDS)

    async def call(self, function: str, arguments: Message, limit: float, where: str) -> Any:
        """Call "module:function" in the guest's own process; the module may be in the directory `where`.

        Raises CallFailed, GuestSilent, GuestRefused.
        """
        await self.close_module()
        request = {"do": "call", "function": function, "arguments": arguments, "where": where}
        async with within(limit, function):
            await self._vm.send(request)
            while True:
                message = await self._say_next()
                match message:
                    case {"returned": value}:
                        return value
                    case {"raised": what, "traceback": traceback}:
                        raise CallFailed(f"{function}: {what}", traceback)
                    case _:
                        self._refuse(message, function)

    async def run(self, order: Order, root: Path) -> Outcome:
        """Run one test. Raises GuestSilent when it takes longer than its limit; GuestRefused."""
        await self._open_module(order.module, root)
        outcome = Outcome()
        request = {"do": "test", "test": order.test, "next": order.next, "limit": order.limit}
        self._waits_for = ""
        try:
            async with within(order.limit + GRACE_SECONDS, ""):
                await self._vm.send(request)
                while await self._take(outcome, order.test):
                    pass
        except Late:
            problem = f"{order.test} did not finish within its limit of {order.limit:g} s{self._waits_for}"
            raise GuestSilent(problem) from None
        if order.next is None:
            await self.close_module()
        return outcome

    async def _take(self, outcome: Outcome, test: str) -> bool:
        """Deal with one message of a running test; False after its last."""
        message = await self._say_next()
        match message:
            case {"report": {"outcome": str(), "when": str()} as report}:
                outcome.reports.append(report)
            case {"warning": {"text": str(), "category": str(), "file": str(), "line": int()} as warning}:
                outcome.warnings.append(warning)
            case {"ask": str(what), "arguments": dict(arguments)}:
                self._waits_for = f", which waited for the host to do {described(what, arguments)}"
                await self._vm.send(await answer(self._side, what, arguments))
                self._waits_for = ""
            case {"finished": _}:
                return False
            case {"left": str(how)}:
                outcome.left = how
            case {"ended": status}:
                self._open = None
                ended = f" by {outcome.left}" if outcome.left else f": {ending(status)}"
                raise GuestRefused(f"{test} ended the process of its module{ended}")
            case _:
                self._refuse(message, test)
        return True

    async def _open_module(self, module: str, root: Path) -> None:
        if self._open == module:
            return
        await self.close_module()
        request = {
            "do": "module", "root": str(root), "file": str(root / module), "machine": self._machine,
            "options": self._options,
        }  # fmt: skip
        async with within(OPEN_SECONDS, f"the import of {module}"):
            await self._vm.send(request)
            while True:
                message = await self._say_next()
                match message:
                    case {"collected": _}:
                        self._open = module
                        return
                    case {"collection_failed": problem}:
                        await self.close_module(opened=True)
                        raise GuestRefused(f"{module} cannot be collected in the guest:\n{problem}")
                    case {"ended": status}:
                        raise GuestRefused(f"{module}: pytest does not run in the guest: {ending(status)}")
                    case _:
                        self._refuse(message, module)

    async def close_module(self, *, opened: bool = False) -> None:
        """End the open module's process, whose fixtures may still ask things of the host. Raises GuestSilent."""
        if self._open is None and not opened:
            return
        self._open = None
        await self._vm.send({"do": "end"})
        async with within(CLOSE_SECONDS, "its module's fixtures are torn down"):
            while "ended" not in (message := await self._say_next()):
                match message:
                    case {"ask": str(what), "arguments": dict(arguments)}:
                        await self._vm.send(await answer(self._side, what, arguments))

    async def _ask(self, request: Message, key: str, seconds: float) -> Message:
        await self._vm.send(request)
        return await self._next(key, seconds)

    async def _next(self, key: str, seconds: float) -> Message:
        async with within(seconds, f"it was to say '{key}'"):
            while True:
                message = await self._say_next()
                if key in message:
                    return message
                if "refused" in message:
                    raise GuestRefused(message["refused"])

    async def _say_next(self) -> Message:
        try:
            return await anext(self._messages)
        except StopAsyncIteration:
            await asyncio.sleep(NOTICE_SECONDS)  # whoever closed it knows why, and cancels us with that
            raise GuestSilent("the guest's channel closed") from None

    def _refuse(self, message: Message, what: str) -> None:
        match message:
            case {"refused": reason}:
                raise GuestRefused(str(reason))
            case {"hello": _}:
                raise GuestSilent(f"the guest started anew during {what}")
            case _:
                raise GuestSilent(f"the guest said something unexpected during {what}: {str(message)[:200]}")


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """A time-out for the block. Raises Late, which names what was waited for."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Late(f"the guest did not finish within {seconds:g} s: {what}") from None


def ending(status: object) -> str:
    """How a process ended, in words, from what the agent says: negative for a signal."""
    if isinstance(status, int) and status < 0:
        try:
            return signal.Signals(-status).name
        except ValueError:
            pass
    return f"exit status {status}"


def described(what: str, arguments: Message) -> str:
    """A test's request to the host, in words."""
    named = arguments.get("name", arguments.get("command"))
    return f"{what} {named!r}" if isinstance(named, str) else what
