"""One process of ours: started in its own process group, watched through a pidfd, ended by handle only."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from qmp_bridge.errors import VmDied


class Child:
    """A running process. The constructor starts it; must be called inside the event loop that watches it.

    Its own process group keeps a Ctrl-C at the terminal from it: the launcher ends things in the right order.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str], stderr: Path, pipe_stdout: bool = False
    ) -> None:
        """Start `command` with `env` added to our environment. VmDied when that is impossible."""
        self.name = name
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        with stderr.open("ab") as log:
            try:
                self._popen = subprocess.Popen(
                    list(command),
                    env={**os.environ, **env},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if pipe_stdout else log,
                    stderr=log,
                    process_group=0,
                )
            except OSError as error:
                raise VmDied(f"{name} cannot be started: {error}") from None
        self._pidfd = os.pidfd_open(self._popen.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """The process id; not for signals, which go through `kill` and `stop`."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether the process has not been seen to end."""
        return not self.exited.done()

    async def stdout(self) -> asyncio.StreamReader:
        """Its standard output, where `pipe_stdout` was given. To be asked for once."""
        assert self._popen.stdout is not None
        reader = asyncio.StreamReader(loop=self._loop)
        transport, _ = await self._loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader, loop=self._loop), self._popen.stdout
        )
        # Without this the transport outlives the loop when nobody reads to the end.
        self.exited.add_done_callback(lambda _: self._loop.call_later(0.1, transport.close))
        return reader

    def kill(self) -> None:
        """End it at once and reap it. Blocks for the instant SIGKILL takes; idempotent."""
        if self.running:
            self._popen.kill()
            self._popen.wait()
            self._reap()

    async def stop(self, grace: float) -> None:
        """Ask it to end (SIGTERM), and after `grace` seconds make it. If this is cancelled, it is killed."""
        try:
            if self.running:
                self._popen.send_signal(signal.SIGTERM)
            await self.ended_within(grace)
        finally:
            self.kill()

    async def ended_within(self, seconds: float) -> bool:
        """Wait for the end; False when it runs on."""
        await asyncio.wait([self.exited], timeout=seconds)
        return not self.running

    def describe_exit(self) -> str:
        """How it ended, in words."""
        status = self.exited.result()
        if status >= 0:
            return f"{self.name} exited with status {status}"
        try:
            return f"{self.name} was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"{self.name} was ended by signal {-status}"

    def _reap(self) -> None:
        if self.exited.done():
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.exited.set_result(self._popen.wait())


def last_lines(path: Path, count: int) -> list[str]:
    """The last `count` lines of a log that may not exist; only its last 64 KiB are looked at."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 65536, 0))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []
