"""Plug an endpoint into a running VM, and unplug it: what `endpoint-plug` and `endpoint-unplug` do to QEMU and vdev.

    plug      vdev makes the endpoint and listens -> QEMU's device_add -> the guest's address is the slot's?
              -> the guest gets as far as it was asked for
    unplug    device_del -> the guest gives it back -> DEVICE_DELETED -> QEMU's connection ends -> vdev forgets it

An endpoint is vdev's to forget whenever QEMU has deleted its device, whoever asked for that: DEVICE_DELETED is enough.
Each operation is a task of its own. When its client is gone it does not stop half-way: a plug that QEMU has not heard
of is undone, anything later stays as the next query shows it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qmp_bridge.check_topology import function_addresses
from vdev.config import format_bdf, parse_bdf
from vdev.errors import VdevError
from vdev.qemu.machine import vfio_user_device

log = logging.getLogger(__name__)

Ask = Callable[[str, Mapping[str, object]], Awaitable[Any]]  # command, arguments -> what it returns
STAGES = ("absent", "plugged", "enumerated", "probed", "attached")
DEFAULT_TIMEOUT_S = 30.0
MAX_TIMEOUT_S = 600.0
ANSWER_S = 60.0  # for one command: QEMU answers none while it waits for a guest's memory, or its own disk
RELEASE_S = 10.0  # from DEVICE_DELETED to the end of QEMU's connection: it comes at once, unless the host is busy
LOOK_S = 0.25  # how often to ask for the stage, should its event be lost
SHORT_LOOK_S = 0.01
MAX_OPERATIONS = 64  # at a time; a slot takes part in one, and there are at most 112 slots


class HotPlugError(VdevError):
    """What was asked for did not come to be; the text says what stands."""

    error_class = "GenericError"


@dataclass(slots=True)
class _Operation:
    """One plug or unplug under way."""

    words: str  # what happens to the endpoint, for whoever wants something else of it
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    stage: int = 0
    deleted: bool = False  # DEVICE_DELETED came
    refused: str = ""  # why the guest does not give it back
    lost: str = ""  # QEMU or vdev is gone
    abandoned: bool = False  # the client is gone

    async def wait(self, seconds: float) -> None:
        """Until something has changed, `seconds` at most."""
        try:
            async with asyncio.timeout(seconds):
                await self.changed.wait()
        except TimeoutError:
            pass
        self.changed.clear()


class HotPlug:
    """All operations of one VM.

    `qemu` and `vdev` execute a command and return its value; a refusal is a VdevError with an `error_class`, any other
    VdevError means that nobody answers. Whoever owns this feeds events to it.
    """

    def __init__(self, qemu: Ask, vdev: Ask) -> None:
        self._qemu = qemu
        self._vdev = vdev
        self._operations: dict[str, _Operation] = {}  # by the endpoint's name
        self._removals: dict[str, asyncio.Task[bool]] = {}  # likewise
        self._tasks: set[asyncio.Task[Any]] = set()

    # what clients ask for

    async def plug(
        self,
        name: str,
        model: str | None = None,
        bdf: str | None = None,
        reserved: Sequence[Mapping[str, object]] | None = None,
        options: object = None,
        until: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        **pasids: object,
    ) -> dict[str, Any]:
        """`endpoint-plug`: the endpoint as query-endpoints shows it. HotPlugError, or the error of who refused.

        `pasids`: what vdev is told of its PASIDs.
        """
        _check_timeout(timeout)
        given = {"name": name, "model": model, "bdf": bdf, "reserved": reserved, "options": options}
        given |= {key.replace("_", "-"): value for key, value in pasids.items()}
        wanted = {key: value for key, value in given.items() if value is not None}
        operation = self._begin(name, "being plugged in")
        plugged: dict[str, Any] = await self._run(name, operation, self._plug(operation, wanted, until, timeout))
        return plugged

    async def unplug(self, name: str, timeout: float = DEFAULT_TIMEOUT_S) -> dict[str, Any]:
        """`endpoint-unplug`. HotPlugError, or the error of who refused."""
        _check_timeout(timeout)
        operation = self._begin(name, "being unplugged")
        await self._run(name, operation, self._unplug(operation, name, timeout))
        return {}

    # what the owner feeds

    def qemu_event(self, name: str, data: Mapping[str, Any]) -> None:
        """An event of QEMU's. Those of no interest are ignored."""
        device = data.get("device")
        if not isinstance(device, str):
            return  # of a part of a device, or of one without a name
        operation = self._operations.get(device)
        if name == "DEVICE_DELETED":
            self._removal(device)
            if operation is not None:
                operation.deleted = True
                operation.changed.set()
        elif name == "DEVICE_UNPLUG_GUEST_ERROR" and operation is not None:
            operation.refused = "the guest refuses to give it back"
            operation.changed.set()

    def vdev_event(self, name: str, data: Mapping[str, Any]) -> None:
        """An event of vdev's, by the name it has in the schema."""
        operation = self._operations.get(str(data.get("endpoint")))
        if name == "ENDPOINT_STAGE" and operation is not None:
            operation.stage = max(operation.stage, STAGES.index(data["stage"]))
            operation.changed.set()

    def lost(self, who: str) -> None:
        """QEMU or vdev (`who`, in words) is gone: what waits for it ends with an error."""
        for operation in self._operations.values():
            operation.lost = f"{who} is gone"
            operation.changed.set()

    async def close(self) -> None:
        """End all operations where they are."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # operations

    def _begin(self, name: str, words: str) -> _Operation:
        under_way = self._operations.get(name)
        if under_way is not None:
            raise HotPlugError(f"{name} is {under_way.words} at this moment (wait for the answer to that)")
        if name in self._removals:
            raise HotPlugError(f"{name} is being taken away at this moment (try again)")
        if len(self._operations) >= MAX_OPERATIONS:
            raise HotPlugError(f"{MAX_OPERATIONS} endpoints are being plugged and unplugged (wait for one of them)")
        operation = self._operations[name] = _Operation(words)
        return operation

    async def _run(self, name: str, operation: _Operation, job: Coroutine[Any, Any, Any]) -> Any:
        """The value of `job`, which goes on without its client."""

        def ended(task: asyncio.Task[Any]) -> None:
            self._operations.pop(name, None)
            error = None if task.cancelled() else task.exception()
            if error is not None and operation.abandoned:
                log.info("%s was %s for a client that is gone: %s", name, operation.words, error)

        task = self._start(job)
        task.add_done_callback(ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            operation.abandoned = True
            operation.changed.set()
            raise

    def _start(self, job: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _plug(
        self, operation: _Operation, wanted: Mapping[str, object], until: str | None, timeout: float
    ) -> dict[str, Any]:
        name = str(wanted["name"])
        deadline = _now() + timeout
        new = await self._ask(self._vdev, "vdev", "endpoint-add", wanted)
        try:
            if operation.abandoned or operation.lost:
                raise HotPlugError(operation.lost or "its client is gone")
            await self._ask(self._qemu, "QEMU", "device_add", vfio_user_device(name, new["bdf"], new["path"]))
            await self._check_address(operation, name, new["bdf"], deadline)
        except BaseException as error:
            raise await self._undone(name, error) from error
        goal = STAGES.index(until or new["until"])
        await self._reach(operation, name, goal, deadline)
        return await self._endpoint(name)

    async def _undone(self, name: str, error: BaseException) -> BaseException:
        """`error` once the endpoint is gone again, or what else is to be said."""
        if not isinstance(error, VdevError):
            return error  # this process ends
        try:
            await self._removal(name)
        except VdevError as left:
            return HotPlugError(f"{error}; and {name} could not be taken back: {left}")
        return error

    async def _check_address(self, operation: _Operation, name: str, bdf: str, deadline: float) -> None:
        """The endpoint is where VIOT has it, or QEMU is asked to take it back. HotPlugError."""
        found = function_addresses(await self._ask(self._qemu, "QEMU", "query-pci", {})).get(name)
        if operation.deleted:
            raise _removed_by_others(name)
        if found == parse_bdf(bdf):
            return
        shown = "is nowhere" if found is None else f"is at {format_bdf(found)}"
        problem = f"{name} should be at {bdf} and {shown}: did the guest number its buses anew?"
        await self._ask(self._qemu, "QEMU", "device_del", {"id": name})
        while not operation.deleted:
            if operation.refused or operation.lost or _now() > deadline:
                raise HotPlugError(f"{problem} {operation.lost or 'the guest does not give it back'}")
            await operation.wait(LOOK_S)
        raise HotPlugError(problem)

    async def _reach(self, operation: _Operation, name: str, goal: int, deadline: float) -> None:
        """Wait until the guest has got as far as `goal`. HotPlugError when it does not."""
        while True:
            if operation.lost:
                raise HotPlugError(f"{operation.lost}; {name} was plugged in")
            try:
                found = await self._endpoint(name)
            except VdevError:
                if not operation.deleted:
                    raise
            if operation.deleted:
                raise _removed_by_others(name)
            at = max(operation.stage, STAGES.index(found["stage"]))
            if at >= goal or operation.abandoned:
                return
            if _now() > deadline:
                cure = "query-endpoints shows how it goes on, endpoint-unplug takes it out"
                problem = f"the time is over and {name} is {STAGES[at]}, not {STAGES[goal]}"
                raise HotPlugError(f"{problem}; it stays plugged in ({cure})")
            await operation.wait(min(LOOK_S, max(deadline - _now(), SHORT_LOOK_S)))

    async def _unplug(self, operation: _Operation, name: str, timeout: float) -> None:
        deadline = _now() + timeout
        endpoint = await self._endpoint(name)
        if all(slot["bdf"] != endpoint["bdf"] for slot in await self._ask(self._vdev, "vdev", "query-slots", {})):
            cure = "those in a configuration with slots, and behind a root port, can"
            raise HotPlugError(f"{name} at {endpoint['bdf']} is in no slot and cannot be unplugged ({cure})")
        stage = endpoint["stage"]
        if stage == "absent" and not await self._is_in_qemu(name):
            await self._removal(name)
            return
        try:
            await self._ask(self._qemu, "QEMU", "device_del", {"id": name})
        except VdevError as error:
            if "already in the process of unplug" not in str(error):
                raise
        while not operation.deleted:
            if operation.lost or operation.refused:
                raise HotPlugError(f"{name} is still plugged in: {operation.lost or operation.refused}")
            if operation.abandoned:
                return
            if _now() > deadline:
                cure = "it is gone when the guest gives it back, or at the next machine reset"
                raise HotPlugError(
                    f"the time is over and the guest has not given {name} back; the request stands ({cure})"
                )
            await operation.wait(min(LOOK_S, max(deadline - _now(), SHORT_LOOK_S)))
        await self._removal(name)

    async def _is_in_qemu(self, name: str) -> bool:
        return name in function_addresses(await self._ask(self._qemu, "QEMU", "query-pci", {}))

    async def _endpoint(self, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = await self._ask(self._vdev, "vdev", "query-endpoints", {"endpoint": name})
        return found[0]

    # taking away

    def _removal(self, name: str) -> asyncio.Task[bool]:
        """The task that has vdev forget `name` once QEMU has let go of it; whether it was one of ours."""
        task = self._removals.get(name)
        if task is None:
            task = self._removals[name] = self._start(self._remove(name))
            task.add_done_callback(lambda done: self._removed(name, done))
        return task

    def _removed(self, name: str, task: asyncio.Task[bool]) -> None:
        del self._removals[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("%s was deleted by QEMU and cannot be taken away: %s", name, error)

    async def _remove(self, name: str) -> bool:
        deadline = _now() + RELEASE_S
        while (stage := await self._stage(name)) != "absent":
            if stage is None:
                return False
            if _now() > deadline:
                raise HotPlugError(f"QEMU is still connected to {name} after {RELEASE_S:.0f} s")
            await asyncio.sleep(SHORT_LOOK_S)
        try:
            await self._ask(self._vdev, "vdev", "endpoint-remove", {"name": name})
        except VdevError:
            if await self._stage(name) is not None:
                raise
            # Another bridge of this VM saw the same DEVICE_DELETED.
        return True

    async def _stage(self, name: str) -> str | None:
        """How far the guest is with `name`; None for what is none of ours, or gone already."""
        try:
            return str((await self._endpoint(name))["stage"])
        except VdevError as error:
            if hasattr(error, "error_class"):
                return None
            raise

    async def _ask(self, whom: Ask, who: str, command: str, arguments: Mapping[str, object]) -> Any:
        """What `command` returns; HotPlugError when there is no answer in time."""
        try:
            async with asyncio.timeout(ANSWER_S):
                return await whom(command, arguments)
        except TimeoutError:
            raise HotPlugError(f"{who} does not answer {command} within {ANSWER_S:.0f} s") from None


def _now() -> float:
    return asyncio.get_running_loop().time()


def _removed_by_others(name: str) -> HotPlugError:
    return HotPlugError(f"{name} was plugged in and has been removed again by somebody else")


def _check_timeout(timeout: float) -> None:
    if not 0 < timeout <= MAX_TIMEOUT_S:
        raise HotPlugError(f"timeout: {timeout:g} is not above 0 and up to {MAX_TIMEOUT_S:.0f} seconds")
