"""The user's monitor: a QMP socket of ours in front of QEMU's second one, with `guard` in between.

As with QEMU's own socket one client is served at a time and the next one waits. Bytes and file descriptors go through
as they come, except for the few commands the guard knows. Each direction waits for its receiver, so a client that does
not read holds up itself alone.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from qmp_bridge.guard import Judged, Rule, answer, judge
from qmp_bridge.json_stream import MAX_NBYTES, JsonStream
from qmp_bridge.run_state import RunState
from vdev.errors import ConfigError

_CHUNK = 1 << 16
_MAX_FDS = 16  # QEMU takes as many with one message
_BACKLOG = 16
_LINGER_SECONDS = 5.0  # for answers to a client that has closed its sending side
_RETRY_SECONDS = 0.5  # when this process is out of file descriptors


class Relay:
    """Listens at `path` (mode 0600) from the constructor on, serves in `run`, and is gone after `close`."""

    def __init__(self, path: str, qemu_path: str, run_state: RunState, say: Callable[[str], None]) -> None:
        """Raises ConfigError when there can be no such socket. `say` hears of clients that are turned away."""
        self._path = path
        self._qemu_path = qemu_path
        self._run_state = run_state
        self._say = say
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            os.fchmod(self._listener.fileno(), 0o600)  # bind() gives the path this mode, whatever the umask
            self._listener.bind(path)
            self._listener.listen(_BACKLOG)
        except OSError as error:
            self._listener.close()
            raise ConfigError("runtime directory", f"no socket {path}: {error.strerror}") from None

    def close(self) -> None:
        """Stop listening and remove the socket. Idempotent."""
        self._listener.close()
        Path(self._path).unlink(missing_ok=True)

    async def run(self) -> None:
        """Serve one client after the other until cancelled. Raises VmDied when the backend does not listen."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                self._say(f"monitor: cannot accept a client: {error.strerror}")
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            with closing(client):
                await self._serve(client)

    async def _serve(self, client: socket.socket) -> None:
        uid = _peer_uid(client)
        if uid not in (0, os.geteuid()):
            self._say(f"monitor: refused a client of user {uid}")
            return
        client.setblocking(False)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as qemu:
            try:
                await asyncio.get_running_loop().sock_connect(qemu, self._qemu_path)
            except OSError as error:
                self._say(f"monitor: QEMU does not answer: {error.strerror}")
                return
            await _Session(client, qemu, self._run_state).run()


class _Session:
    """One client and its connection to QEMU."""

    def __init__(self, client: socket.socket, qemu: socket.socket, run_state: RunState) -> None:
        self._client = client
        self._qemu = qemu
        self._run_state = run_state
        self._fds: list[int] = []  # received, and to go on with the next bytes
        self._unanswered = 0  # commands we have a part in

    async def run(self) -> None:
        """Until either end hangs up. Raises VmDied when the backend does not listen."""
        up, down = asyncio.ensure_future(self._to_qemu()), asyncio.ensure_future(self._to_client())
        try:
            await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
            if not down.done() and up.exception() is None:
                # The client has said all it wants to say, and may still want to hear.
                self._qemu.shutdown(socket.SHUT_WR)
                await asyncio.wait([down], timeout=_LINGER_SECONDS)
        finally:
            up.cancel()
            down.cancel()
            results = await asyncio.gather(up, down, return_exceptions=True)
            while self._fds:
                os.close(self._fds.pop())
        for result in results:  # either end may go at any time
            if isinstance(result, BaseException) and not isinstance(result, ConnectionError | asyncio.CancelledError):
                raise result
        if self._unanswered:
            await self._run_state.settle()  # QEMU forgets commands of a client that left

    async def _to_qemu(self) -> None:
        stream = JsonStream()
        while data := await self._receive():
            out = bytearray()
            for piece in stream.feed(data):
                judged = judge(piece.data) if piece.is_value else Judged(piece.data)
                self._unanswered += judged.rule is not None
                if judged.rule is Rule.STOPS:
                    await self._send(out)
                    out.clear()
                    await self._run_state.before_stop()
                out += judged.data
            await self._send(out)

    async def _to_client(self) -> None:
        loop = asyncio.get_running_loop()
        pending = bytearray()
        while data := await loop.sock_recv(self._qemu, _CHUNK):
            pending += data
            end = pending.rfind(b"\n", len(pending) - len(data)) + 1
            if not end and len(pending) <= MAX_NBYTES:
                continue
            whole = bytes(pending[: end or len(pending)])
            del pending[: end or len(pending)]
            out = bytearray()
            for line in whole.splitlines(keepends=True):
                answered = answer(line)
                if answered.awaited or (answered.nameless and self._unanswered):
                    await loop.sock_sendall(self._client, out)
                    out.clear()
                    await self._run_state.settle()
                    self._unanswered -= answered.awaited
                out += answered.line
            await loop.sock_sendall(self._client, out)
        await loop.sock_sendall(self._client, pending)

    async def _receive(self) -> bytes:
        """The client's next bytes, none at its end; file descriptors that come with them are kept."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._client, _CHUNK, _MAX_FDS, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                await _ready(self._client, loop.add_reader, loop.remove_reader)
            else:
                self._fds += fds
                return data

    async def _send(self, data: bytes | bytearray) -> None:
        """All of `data` to QEMU, the kept file descriptors with its first byte."""
        loop = asyncio.get_running_loop()
        while data and self._fds:
            try:
                sent = socket.send_fds(self._qemu, [data], self._fds[:_MAX_FDS])
            except BlockingIOError:
                await _ready(self._qemu, loop.add_writer, loop.remove_writer)
            else:
                data = data[sent:]
                while self._fds:
                    os.close(self._fds.pop())
        await loop.sock_sendall(self._qemu, data)


async def _ready(sock: socket.socket, add: Callable[..., object], remove: Callable[[socket.socket], object]) -> None:
    """Wait until `sock` can be read or written."""
    ready = asyncio.Event()
    add(sock, ready.set)
    try:
        await ready.wait()
    finally:
        remove(sock)


def _peer_uid(sock: socket.socket) -> int:
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", raw)
    return int(uid)
