"""One guest that runs between the tests: started, given work a piece at a time, ended, by its own task.

The task is what a VM's death cancels; whoever waits for a piece of work then gets GuestGone with all there is to see.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import QMPError

from guest_tests.boot import Control, ControlError
from guest_tests.runner import evidence
from guest_tests.runner.agent import Agent, GuestRefused, GuestSilent, Order, Outcome
from guest_tests.runner.evidence import Beginning, Sections
from guest_tests.runner.snapshots import forget
from guest_tests.runner.steps import HostSide
from guest_tests.runner.suite import Machine
from qmp_bridge.errors import VmDied
from qmp_bridge.plan import Options
from qmp_bridge.up import RunningVm, bring_up
from vdev.errors import VdevError
from vdev.parts.progress import Say


class GuestGone(VdevError):
    """The guest is gone, or had to be ended. `sections` are what there was to see, `logs` where more is."""

    def __init__(self, reason: str, sections: Sections, logs: Path | None) -> None:
        self.reason = reason
        self.sections = sections
        self.logs = logs
        super().__init__(reason)


@dataclass
class Living:
    """What a piece of work is given."""

    vm: RunningVm
    agent: Agent
    control: Control
    side: HostSide


# What talking to a VM that goes away raises, often before its end is noticed.
_OF_A_DEATH = (VmDied, ControlError, QMPError, EOFError, ConnectionError)

Work = Callable[[Living], Awaitable[Any]]
T = TypeVar("T")


class Guest:
    """Made by `start_guest`. All methods are for its loop."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.death: GuestGone | None = None
        self._work: asyncio.Queue[tuple[Work, asyncio.Future[Any]] | None] = asyncio.Queue()
        self._sections: Sections = []
        self._since = Beginning()
        self._complete = False  # the sections lack nothing
        self._task: asyncio.Task[None] | None = None
        self.idle = False  # it waits for work
        self.restored = False

    async def start(self, options: Options, pytest_options: list[str]) -> None:
        """Boot or restore it. Raises GuestGone; ConfigError and PartsError before anything has started."""
        ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(options, pytest_options, ready))
        try:
            await self._task_or(ready)
        except asyncio.CancelledError:
            await self.close()
            raise
        self.restored = options.restore is not None

    async def do(self, work: Work) -> Any:
        """Have `work` done by the guest's task; its result. Raises what it raises, and GuestGone."""
        if self.death is not None:
            raise self.death
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._work.put_nowait((work, future))
        return await self._task_or(future)

    async def beside(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which the guest's task does not do; cancelled when the guest goes. Raises GuestGone."""
        if self.death is not None:
            work.close()
            raise self.death
        doing = asyncio.ensure_future(work)
        try:
            result: T = await self._task_or(doing)
        finally:
            if not doing.done():
                doing.cancel()
                await asyncio.wait([doing])
        return result

    async def gone_within(self, seconds: float) -> GuestGone | None:
        """Wait for its end; None when it lives on."""
        assert self._task is not None
        await asyncio.wait([self._task], timeout=seconds)
        return self.death

    async def close(self) -> None:
        """End it, whatever it does. Idempotent."""
        if self._task is None:
            return
        if self.idle:
            self._work.put_nowait(None)
        else:
            self._task.cancel()
        await asyncio.wait([self._task])

    async def run(self, order: Order, root: Path) -> tuple[Outcome, Sections]:
        """Run one test; with what there was to see if it failed. Raises GuestGone, and GuestRefused with the same."""

        async def work(living: Living) -> tuple[Outcome, Sections]:
            self._since = await evidence.begin(living.vm, living.control, order.test)
            try:
                outcome = await living.agent.run(order, root)
            except GuestRefused as refused:
                refused.sections = await evidence.of_living(living.vm, living.control, self._since)
                raise
            sections = await evidence.of_living(living.vm, living.control, self._since) if outcome.failed else []
            return outcome, sections

        result: tuple[Outcome, Sections] = await self.do(work)
        return result

    async def _task_or(self, future: asyncio.Future[Any]) -> Any:
        assert self._task is not None
        await asyncio.wait([future, self._task], return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            await self._task  # what it raises is about input, before there was a guest
            raise self.death or GuestGone("the guest was ended", self._sections, None)
        return future.result()

    async def _live(self, options: Options, pytest_options: list[str], ready: asyncio.Future[Any]) -> None:
        try:
            async with bring_up(self.machine.config, options) as vm, Control.connected(vm.control_path) as control:
                try:
                    side = HostSide(vm, control, self.machine.suite)
                    agent = Agent(vm, side, self.machine.facts(), pytest_options)
                    await agent.wake(restored=options.restore is not None)
                    ready.set_result(None)
                    await self._serve(Living(vm, agent, control, side))
                except GuestSilent as silent:
                    self._sections = await evidence.of_living(vm, control, self._whole)
                    self._complete = True
                    raise vm.died(str(silent)) from silent
                except BaseException:
                    self._sections = self._sections or evidence.of_gone(vm, self._whole)
                    raise
        except VmDied as death:
            sections = self._sections or _console(death)
            if not self._complete:
                sections = evidence.with_trace(sections, death.trace)
            if death.logs_problem:
                sections = [*sections, ("logs", death.logs_problem)]
            self.death = GuestGone(death.reason, sections, death.logs)

    @property
    def _whole(self) -> Beginning:
        """What a lost guest shows: of QMP, how it started as well."""
        return replace(self._since, message=0)

    async def _serve(self, living: Living) -> None:
        while (given := await self._next()) is not None:
            work, future = given
            try:
                result = await work(living)
            except GuestSilent:
                raise  # nothing it says from now on can be trusted
            except Exception as error:  # it belongs to whoever waits for the work
                death = await living.vm.death() if isinstance(error, _OF_A_DEATH) else None
                if death is not None:
                    raise death from error
                future.set_exception(error)
            else:
                future.set_result(result)

    async def _next(self) -> tuple[Work, asyncio.Future[Any]] | None:
        self.idle = True
        given = await self._work.get()
        self.idle = False
        return given


def _console(death: VmDied) -> Sections:
    return [("guest console, last lines", "\n".join(death.tail))] if death.tail else []


async def start_guest(machine: Machine, options: Options, pytest_options: list[str], say: Say) -> Guest:
    """A running guest. One that cannot be restored is booted instead, and `say` told. Raises as Guest.start does."""
    guest = Guest(machine)
    try:
        await guest.start(options, pytest_options)
    except GuestGone as gone:
        if options.restore is None:
            raise
        say(f"{machine.id}: could not be restored, booting it: {gone.reason}")
        forget(options.restore)
        guest = Guest(machine)
        await guest.start(replace(options, restore=None), pytest_options)
    return guest
