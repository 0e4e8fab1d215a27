"""Keeps the backend frozen exactly while QEMU's VM is stopped, whoever stopped it.

vfio-user has no message for it, so the launcher tells the backend. What counts is what QEMU says on the launcher's own
monitor: STOP and RESUME events and the answers to query-status, in the order they come. A `stop` that we see on its way
to QEMU freezes first, so that no DMA lands once its client has the reply; every such reply is preceded by a
query-status, which brings all events up to it with it. For a stop of another origin (a guest's panic, an I/O error, the
watchdog) there is only the event: DMA may land for the millisecond it takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from qemu.qmp import QMPError

from qmp_bridge.control_client import ControlClient


class RunState:
    """One VM's. `saw` is fed from the monitor's stream, `follow` runs as long as the VM does."""

    def __init__(self, control: ControlClient, query_status: Callable[[], Awaitable[object]]) -> None:
        """`query_status` asks QEMU; its answer must have gone through `saw` when it returns."""
        self._control = control
        self._query_status = query_status
        self._running = True
        self._stop_announced = False
        self._told = False  # what the backend knows: is it frozen?
        self._lock = asyncio.Lock()  # one at a time talks to the backend
        self._commands = asyncio.Lock()  # of those that stop or continue, one at a time is on its way
        self._changed = asyncio.Event()

    @property
    def frozen(self) -> bool:
        """Whether the backend should be frozen."""
        return self._stop_announced or not self._running

    def saw(self, running: bool, *, change: bool) -> None:
        """QEMU said whether the VM runs: by an event (`change`), or because it was asked.

        An answer may be older than a stop that was announced meanwhile; an event is what the stop was announced for.
        """
        self._running = running
        if change:
            self._stop_announced = False
        self._changed.set()

    async def follow(self) -> None:
        """Tell the backend of every change, from QEMU's present state on. Raises VmDied when it does not listen."""
        await self._ask_qemu()
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._tell(confirm=False)

    @asynccontextmanager
    async def command(self, *, stops: bool) -> AsyncIterator[None]:
        """Around a command that stops the VM or continues it, one at a time: whatever several clients send at once, the
        backend is frozen before each `stop` and in step with QEMU after each. Raises VmDied.
        """
        async with self._commands:
            if stops:
                await self.before_stop()
            try:
                yield
            finally:
                await self.settle()

    async def before_stop(self) -> None:
        """A `stop` is on its way to QEMU: freeze now. `settle` must follow when it was answered. Raises VmDied."""
        self._stop_announced = True
        await self._tell(confirm=True)

    async def settle(self) -> None:
        """Ask QEMU and put the backend into the state it names, confirmed by the backend. Raises VmDied."""
        await self._ask_qemu()
        self._stop_announced = False
        await self._tell(confirm=True)

    async def _ask_qemu(self) -> None:
        with suppress(QMPError, EOFError, OSError):  # QEMU is going: then there is nothing to keep in step with
            await self._query_status()

    async def _tell(self, *, confirm: bool) -> None:
        """Freeze or thaw the backend if it is not what it should be; with `confirm` in any case."""
        async with self._lock:
            while confirm or self._told != self.frozen:
                frozen, confirm = self.frozen, False
                await self._control.execute("freeze" if frozen else "thaw", by="the launcher: QEMU's run state")
                self._told = frozen
