"""What steps work on: guest, monitor, results so far. `stage.Stage` is a real machine; tests have another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from guest_tests.scenario.names import NoSuchValue, fill, shown, value_at
from guest_tests.scenario.timeline import Sections

OURS = "__org.vdev_"  # before our commands and events on the monitor that is QEMU's as well
COMMAND_S = 10.0

T = TypeVar("T")

Inner = Callable[[], Awaitable[None]]  # plays the steps inside a step


class StepFailed(Exception):
    """A step did not come out as the scenario says."""

    def __init__(self, expected: str, found: str, detail: str = "") -> None:
        self.expected = expected
        self.found = found
        self.detail = detail  # more lines, such as the guest's traceback
        super().__init__(f"expected {expected}; found {found}")


class CommandRefused(Exception):
    """The monitor refused a command, and the text is why."""


class CallRaised(Exception):
    """A function in the guest raised: the text is `Type: words`."""

    def __init__(self, words: str, traceback: str) -> None:
        self.traceback = traceback
        super().__init__(words)


class MachineGone(Exception):
    """The machine has ended, or had to be ended; `sections` are what there was to see, `logs` where more is."""

    def __init__(self, reason: str, sections: Sections, logs: str = "") -> None:
        self.reason = reason
        self.sections = sections
        self.logs = logs
        super().__init__(reason)


class Machine(Protocol):
    """A machine and its guest. When it is gone, whatever is asked of it raises MachineGone."""

    async def call(self, function: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        """What "module:function" of the guest's files returns. Raises CallRaised."""

    async def execute(self, command: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        """What a command of the monitor returns. Raises CommandRefused, TimeoutError."""

    async def beside(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled when the machine goes."""

    async def ended(self, seconds: float) -> str | None:
        """Why the machine is gone, or None if it still is there after so long."""

    async def event(self, name: str, fits: Callable[[Mapping[str, Any]], bool], seconds: float) -> Mapping[str, Any]:
        """The data of the oldest event of that name that fits, and that nobody has taken; it is taken. TimeoutError."""


@dataclass
class Scene:
    """What is there while a scenario is played. `values` has variables, results by name, and `round`."""

    machine: Machine
    values: dict[str, Any]
    counted: dict[str, int] = field(default_factory=dict)  # firings of rules that are gone

    def filled(self, value: Any) -> Any:
        """`value` with results put in. Raises StepFailed where a result has no such part."""

        def look_up(path: str, _: str) -> Any:
            return self.at(path)

        return fill(value, "", look_up)

    def at(self, path: str) -> Any:
        """What `path` leads to. Raises StepFailed."""
        try:
            return value_at(self.values, path)
        except NoSuchValue as error:
            raise StepFailed(path, str(error)) from None

    async def ours(self, command: str, **arguments: Any) -> Any:
        """What a command of vdev's returns. Raises StepFailed where it is refused, or not answered."""
        try:
            return await self.machine.execute(f"{OURS}{command}", arguments, COMMAND_S)
        except CommandRefused as refusal:
            raise StepFailed(f"{command} is done", f"it is refused: {refusal}") from None
        except TimeoutError:
            raise StepFailed(f"{command} is done", f"no answer within {COMMAND_S:g} s") from None

    async def fired(self) -> dict[str, int]:
        """How often each rule has fired, those that were cleared as well."""
        counts = dict(self.counted)
        for rule in (await self.ours("query-fault-plan"))["rules"]:
            counts[rule["id"]] = counts.get(rule["id"], 0) + rule["fired"]
        return counts

    async def clear(self) -> Mapping[str, Any]:
        """Remove all rules and undo what they left; what vdev says about it."""
        self.counted = await self.fired()
        cleared: Mapping[str, Any] = await self.ours("fault-clear")
        return cleared


async def beside(call: Awaitable[Any], inner: Inner, calm: Callable[[], Awaitable[object]]) -> Any:
    """The result of `call`, with `inner` played while it is under way.

    Where `inner` fails, `calm` is done so that the call can come to its end, and what was wrong first is raised.
    """
    calling = asyncio.ensure_future(call)
    try:
        await inner()
    except BaseException:
        try:
            await calm()
        finally:
            await asyncio.wait([calling])  # it has a time-out of its own
            calling.cancelled() or calling.exception()
        raise
    return await calling


def differs(expected: str, value: Any) -> StepFailed:
    """The failure of an expectation about `value`."""
    return StepFailed(expected, shown(value))
