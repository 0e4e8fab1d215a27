"""The one connection to QEMU's monitor: commands out, some with file descriptors; replies and events in.

What QEMU writes is one JSON object a line. A reply is taken apart only so far as to find the id we gave its command;
the rest goes on as it is.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from qmp_bridge.bridge.messages import GENERIC_ERROR, error_body
from qmp_bridge.errors import Refused
from vdev.errors import VdevError

MAX_IN_BAND = 7  # commands in flight; QEMU queues 8, and reads nothing more when they are waiting
MAX_LINE_NBYTES = 64 << 20  # of QEMU's; the longest, of query-qmp-schema, has some 200 KiB
TAKE_FDS = frozenset({"getfd", "add-fd"})
_CHUNK = 1 << 16
_ID = "vdev."
_ERROR = re.compile(rb'\{"id": "vdev\.(\d+)", ("error": .*\})\}\r?\n?', re.DOTALL)
_RETURN = re.compile(rb'\{("return": .*), "id": "vdev\.(\d+)"\}\r?\n?', re.DOTALL)
_SPARE_NAME = "__org.vdev_spare"
RETRY_SECONDS = 0.1


OnEvent = Callable[[bytes, Mapping[str, Any]], None]


class NoMonitor(VdevError):
    """There is no QMP monitor to connect to; the text says what there is instead, and what to do."""


class QemuGone(VdevError):
    """The connection to QEMU's monitor ended."""


@dataclass(slots=True)
class _Outgoing:
    data: bytes
    fds: list[int]  # ours

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


@dataclass(slots=True)
class _Call:
    on_reply: Callable[[bytes], None]
    done: asyncio.Future[bytes]
    in_band: bool


class Upstream:
    """A negotiated connection. `run` reads until it ends; then every command in flight has had an error for a reply."""

    def __init__(
        self,
        sock: socket.socket,
        incoming: AsyncIterator[bytes],
        greeting: Mapping[str, Any],
        on_event: OnEvent,
    ) -> None:
        """`sock` is negotiated, non-blocking and ours from now on, `incoming` its lines; `on_event` gets QEMU's events,
        as they came and parsed, in order with the replies.
        """
        self.greeting = greeting
        self.gone = ""  # why, once the connection has ended
        self._sock = sock
        self._incoming = incoming
        self._outgoing: deque[_Outgoing] = deque()
        self._on_event = on_event
        self._calls: dict[int, _Call] = {}
        self._numbers = itertools.count(1)
        self._in_band = asyncio.Semaphore(MAX_IN_BAND)  # first come, first served: no client is passed over
        self._fds = asyncio.Lock()  # of those commands that take file descriptors one at a time

    @property
    def capabilities(self) -> list[str]:
        """What QEMU offers."""
        return list(self.greeting["QMP"]["capabilities"])

    async def call(
        self,
        name: str,
        arguments: Mapping[str, object],
        on_reply: Callable[[bytes], None],
        *,
        oob: bool = False,
        fds: Sequence[int] = (),
    ) -> bytes:
        """Have QEMU execute a command. The reply's member besides the id goes to `on_reply`, in order with QEMU's
        events, and is returned. `fds` stay the caller's.

        The reply comes even if the caller is cancelled: QEMU forgets nothing.
        """
        if name not in TAKE_FDS:
            return await self._call(name, arguments, on_reply, oob, ())
        async with self._fds:
            body = await self._call(name, arguments, on_reply, oob, fds)
            if fds and body.startswith(b'"error"'):
                await self._drop_fds()
            return body

    async def execute(self, name: str, arguments: Mapping[str, object] | None = None) -> Any:
        """What the command returns. Raises Refused for QEMU's error, QemuGone."""
        body = await self.call(name, arguments or {}, _ignore)
        if self.gone and not body.startswith(b'"return"'):
            raise QemuGone(self.gone)
        reply = json.loads(b"{%s}" % body)
        if "error" in reply:
            raise Refused(reply["error"]["class"], reply["error"]["desc"])
        return reply["return"]

    async def _call(
        self,
        name: str,
        arguments: Mapping[str, object],
        on_reply: Callable[[bytes], None],
        oob: bool,
        fds: Sequence[int],
    ) -> bytes:
        if not oob:
            await self._in_band.acquire()
        # From here on nothing waits before the call is on its way, so that it cannot be cancelled half-way.
        try:
            outgoing = _Outgoing(b"", [os.dup(fd) for fd in fds])
        except OSError as error:
            if not oob:
                self._in_band.release()
            raise Refused(GENERIC_ERROR, f"the file descriptor cannot be passed on: {error.strerror}") from None
        number = next(self._numbers)
        call = _Call(on_reply, asyncio.get_running_loop().create_future(), not oob)
        self._calls[number] = call
        if self.gone:
            outgoing.close()
            self._answer(number, self._gone_body())
            return await call.done
        request: dict[str, object] = {"exec-oob" if oob else "execute": name, "id": f"{_ID}{number}"}
        if arguments:
            request["arguments"] = arguments
        outgoing.data = json.dumps(request).encode() + b"\n"
        self._outgoing.append(outgoing)
        self._write()
        return await asyncio.shield(call.done)

    async def _drop_fds(self) -> None:
        """QEMU refused a command without taking what came with it, which the next one would get: replace it."""
        while not self.gone:
            try:
                spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    await self._call("getfd", {"fdname": _SPARE_NAME}, _ignore, False, (spare,))
                finally:
                    os.close(spare)
            except (OSError, Refused):  # no file descriptor is left: nobody else's command may go before this
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await self._call("closefd", {"fdname": _SPARE_NAME}, _ignore, False, ())
                return

    def _write(self) -> None:
        """Send what can be sent, a command's file descriptors with its first byte. `run` finds that QEMU is gone."""
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._sock)
        while self._outgoing and not self.gone:
            first = self._outgoing[0]
            try:
                sent = socket.send_fds(self._sock, [first.data], first.fds)
            except BlockingIOError:
                loop.add_writer(self._sock, self._write)
                return
            except OSError:
                with suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
                return
            first.close()
            first.data = first.data[sent:]
            if not first.data:
                self._outgoing.popleft()

    async def run(self) -> str:
        """Read until QEMU hangs up; why it ended."""
        reason = "it closed its monitor"
        try:
            async for line in self._incoming:
                self._line(line)
        except OSError as error:
            reason = error.strerror or str(error)
        finally:
            self._end(reason)
        return reason

    def close(self) -> None:
        """End the connection. Idempotent."""
        self._end("the bridge ends")

    def _end(self, reason: str) -> None:
        if not self.gone:
            asyncio.get_running_loop().remove_writer(self._sock)
            self._sock.close()
            self.gone = reason
        while self._outgoing:
            self._outgoing.popleft().close()
        for number in list(self._calls):
            self._answer(number, self._gone_body())

    def _gone_body(self) -> bytes:
        return error_body(f"QEMU is gone: {self.gone}")

    def _line(self, line: bytes) -> None:
        if match := _RETURN.fullmatch(line):
            self._answer(int(match[2]), match[1])
        elif match := _ERROR.fullmatch(line):
            self._answer(int(match[1]), match[2])
        else:
            self._other_line(line)

    def _other_line(self, line: bytes) -> None:
        """An event; or a reply that is written in another way than QEMU 11 does."""
        try:
            message = json.loads(line, strict=False)
        except (ValueError, RecursionError):
            return
        match message:
            case {"event": str()}:
                self._on_event(line.rstrip() + b"\r\n", message)
            case {"id": str(own), "return": value}:
                self._answer(int(own.removeprefix(_ID)), b'"return": ' + json.dumps(value).encode())
            case {"error": error}:
                # Without an id QEMU could not read what we sent: then it is the oldest it has not answered.
                own = message.get("id") or next((str(key) for key, call in self._calls.items() if call.in_band), "0")
                self._answer(int(str(own).removeprefix(_ID)), b'"error": ' + json.dumps(error).encode())

    def _answer(self, number: int, body: bytes) -> None:
        call = self._calls.pop(number, None)
        if call is None:
            return
        if call.in_band:
            self._in_band.release()
        call.on_reply(body)
        if not call.done.done():
            call.done.set_result(body)


def _ignore(body: bytes) -> None:
    """For replies that only the caller wants."""


async def connect(path: str, on_event: OnEvent, seconds: float) -> Upstream:
    """A negotiated connection to the QMP socket at `path`. Raises NoMonitor."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        async with asyncio.timeout(seconds):
            await asyncio.get_running_loop().sock_connect(sock, path)
            return await _negotiate(sock, on_event)
    except TimeoutError:
        sock.close()
        raise NoMonitor(
            f"{path} says nothing within {seconds:.0f} s: is somebody connected to it? QEMU serves one client of a"
            " monitor at a time (end that client, or give QEMU one more monitor)"
        ) from None
    except OSError as error:
        sock.close()
        raise NoMonitor(f"{path}: {error.strerror or error}") from None
    except BaseException:
        sock.close()
        raise


async def _negotiate(sock: socket.socket, on_event: OnEvent) -> Upstream:
    loop = asyncio.get_running_loop()
    incoming = lines(sock)
    greeting = await _greeting(incoming)
    offered = greeting["QMP"]["capabilities"]
    enable = {"enable": ["oob"]} if "oob" in offered else {}
    request = {"execute": "qmp_capabilities", "arguments": enable}
    await loop.sock_sendall(sock, json.dumps(request).encode() + b"\n")
    reply = json.loads(await anext(incoming))
    if "return" not in reply:
        raise NoMonitor(f"it refuses to negotiate: {reply}")
    return Upstream(sock, incoming, greeting, on_event)


async def _greeting(incoming: AsyncIterator[bytes]) -> dict[str, Any]:
    first = b""
    try:
        first = await anext(incoming)
        greeting = json.loads(first)
    except StopAsyncIteration:
        raise NoMonitor("it hangs up at once; that is no QMP monitor of a running QEMU") from None
    except ValueError:
        raise NoMonitor(f"it does not speak QMP, but says {first[:60]!r} (is it a human monitor?)") from None
    match greeting:
        case {"QMP": {"version": {}, "capabilities": [*_]}}:
            return dict(greeting)
    raise NoMonitor(f"it does not greet as a QMP monitor does, but says {first[:60]!r}")


async def lines(sock: socket.socket) -> AsyncIterator[bytes]:
    """The lines that come from `sock`, with their ends. OSError when there is none in MAX_LINE_NBYTES."""
    loop = asyncio.get_running_loop()
    pending = bytearray()
    while data := await loop.sock_recv(sock, _CHUNK):
        begin = len(pending)
        pending += data
        end = pending.rfind(b"\n", begin) + 1
        if end:
            whole = bytes(pending[:end])
            del pending[:end]
            for line in whole.splitlines(keepends=True):
                yield line
        elif len(pending) > MAX_LINE_NBYTES:
            raise OSError("a line without end")
