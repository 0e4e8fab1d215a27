"""A guest at work in a served process, and what the process looked like before somebody else did his worst to it."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from tests.support.hostile_peer import Peer
from tests.support.serve_guest import Ram
from tests.support.serve_process import ServeProcess
from tests.support.serve_scene import DOMAIN, SOURCE_GPA, SOURCE_IOVA, TARGET_GPA, TARGET_IOVA, Scene
from vdev.wire.accelerator import CompletionStatus

PAGE_NBYTES = 4096
SETTLE_S = 20.0
LOOK_S = 0.01


class Worker:
    """Maps, copies and unmaps without a pause; `copies` counts the rounds whose every byte was right."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.copies = 0
        self.stopping = False

    async def run(self) -> None:
        """Until `stopping`. AssertionError when a copy goes wrong, TimeoutError when the device does not answer."""
        await self.scene.attach()
        await self.scene.map_buffers(PAGE_NBYTES)
        while not self.stopping:
            content = self.copies.to_bytes(8, "little") * (PAGE_NBYTES // 8)
            self.scene.put(SOURCE_GPA, content)
            done = await self.scene.accel.copy(SOURCE_IOVA, TARGET_IOVA, PAGE_NBYTES)
            assert done.status == CompletionStatus.OK
            assert self.scene.get(TARGET_GPA, PAGE_NBYTES) == content
            for iova in (SOURCE_IOVA, TARGET_IOVA):
                assert await self.scene.unit.unmap(DOMAIN, iova, PAGE_NBYTES) == 0
            assert await self.scene.map_buffers(PAGE_NBYTES) == [0, 0]
            self.copies += 1

    async def more_than(self, copies: int) -> None:
        """Wait until two more rounds than `copies` are done: one may have been under way."""
        await _until(lambda: self.copies > copies + 1)


@asynccontextmanager
async def working(process: ServeProcess) -> AsyncIterator[Worker]:
    """A worker on the second unit and accelerator of `process`; its failure is the block's."""
    async with AsyncExitStack() as stack:
        ram = stack.enter_context(Ram())
        worker = Worker(await Scene.enter(stack, process.directory, ram, 1))
        async with asyncio.TaskGroup() as group:
            group.create_task(worker.run())
            try:
                await worker.more_than(0)
                yield worker
            finally:
                worker.stopping = True  # not cancelled: its client has no patience for answers nobody waits for


class Watch:
    """fds, RAM mappings, resident memory and the length of the log of a process, at the time this is made."""

    def __init__(self, pid: int, log: Path) -> None:
        self._pid = pid
        self._log = log
        self.fds = self.open_fds()
        self.maps = self.ram_maps()
        self._resident = self._resident_nbytes()
        self._log_nbytes = log.stat().st_size

    def open_fds(self) -> Counter[str]:
        """What the process has open now, by name; sockets and pipes without their numbers."""
        found: Counter[str] = Counter()
        for entry in os.listdir(f"/proc/{self._pid}/fd"):
            with suppress(OSError):  # closed meanwhile
                found[os.readlink(f"/proc/{self._pid}/fd/{entry}").split("[")[0]] += 1
        return found

    def ram_maps(self) -> list[str]:
        """Its mappings of memfds now: guests' RAM, and that of hostile peers."""
        return [line for line in Path(f"/proc/{self._pid}/maps").read_text().splitlines() if "/memfd:" in line]

    def _resident_nbytes(self) -> int:
        return int(Path(f"/proc/{self._pid}/statm").read_text().split()[1]) * PAGE_NBYTES

    def grown_nbytes(self) -> int:
        """By how much the process is larger now."""
        return self._resident_nbytes() - self._resident

    def lines(self) -> list[str]:
        """What was logged since."""
        with self._log.open("rb") as log:
            log.seek(self._log_nbytes)
            return log.read().decode().splitlines()

    async def settled(self) -> None:
        """Wait until fds and mappings are those of the beginning (goodbyes may be under way). No error when not."""
        with suppress(TimeoutError):
            await _until(lambda: self.open_fds() == self.fds and self.ram_maps() == self.maps)

    async def said(self, words: str) -> None:
        """Wait until the log says so; TimeoutError when it does not."""
        await _until(lambda: any(words in line for line in self.lines()))


async def served_again(path: Path) -> None:
    """Wait until somebody is served at `path`: a control client is answered, another one hung up on."""
    with Peer(path) as peer:
        if path.name == "control.sock":
            peer.send(b'{"execute": "query-status"}\n')
            await asyncio.to_thread(peer.lines, 1)
        else:
            await asyncio.to_thread(peer.wait_for_the_end)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SETTLE_S):
        while not condition():  # noqa: ASYNC110 - another process has no event for us
            await asyncio.sleep(LOOK_S)
