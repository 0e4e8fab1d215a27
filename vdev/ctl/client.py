"""Blocking clients of both sockets. They give up when no answer comes in time."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from vdev.errors import VdevError

RECV_NBYTES = 1 << 16
MAX_MESSAGE_NBYTES = 64 << 20  # of one answer; the largest page of mappings has less than one MiB
GREETING_S = 10.0


class Client(Protocol):
    """A connection to whoever answers commands."""

    def execute(self, name: str, arguments: Mapping[str, Any], timeout: float) -> Any:
        """What command `name` returns. VdevError: it is refused, or not answered within `timeout` seconds."""

    def events(self) -> Iterator[dict[str, Any]]:
        """Our events from now on, without the prefix, until the other side ends."""

    def lines(self) -> Iterator[dict[str, Any]]:
        """What follows the answer of a command that streams."""

    def close(self) -> None:
        """Disconnect."""


class _Stream:
    """JSON objects of a socket, one after the other, wherever lines end."""

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self.sock = sock
        self._path = path
        self._buffer = b""
        self._looked = 0  # so many bytes of the buffer contain no whole line
        self._decode = json.JSONDecoder().raw_decode

    def send(self, message: object, timeout: float) -> None:
        self.sock.settimeout(timeout)
        try:
            self.sock.sendall(json.dumps(message).encode() + b"\n")
        except TimeoutError:
            raise VdevError(f"{self._path}: takes no command since {timeout:g} seconds") from None
        except OSError as error:
            raise VdevError(f"{self._path}: hung up: {error.strerror}") from None

    def next(self, deadline: float | None) -> dict[str, Any] | None:
        """The next object; None when the other side has ended. VdevError when none comes before `deadline`."""
        while True:
            message = self._take()
            if message is not None:
                return message
            try:
                self.sock.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.001))
                data = self.sock.recv(RECV_NBYTES)
            except TimeoutError:
                raise VdevError(
                    f"{self._path}: no answer in time: its process is stuck or stopped, "
                    "or it is QEMU's own monitor and another client is connected"
                ) from None
            except ConnectionError:
                return None
            if not data:
                return None
            self._buffer += data
            if len(self._buffer) > MAX_MESSAGE_NBYTES:
                raise VdevError(f"{self._path}: an answer of more than {MAX_MESSAGE_NBYTES >> 20} MiB")

    def _take(self) -> dict[str, Any] | None:
        """A whole object at the front of the buffer. Tried when a line has ended, not for each piece."""
        whole = self._buffer.rfind(b"\n", self._looked) + 1
        if not whole:
            return None
        self._looked = len(self._buffer)
        text = self._buffer[:whole].decode(errors="replace").lstrip()
        try:
            message, end = self._decode(text)
        except ValueError:
            if text and text[0] != "{":
                raise VdevError(f"{self._path}: does not speak JSON, but {text[:40]!r}") from None
            return None
        self._buffer, self._looked = text[end:].encode() + self._buffer[whole:], 0
        if not isinstance(message, dict):
            raise VdevError(f"{self._path}: sent {text[:40]!r} where an object is expected")
        return message


def _returned(answer: Mapping[str, Any]) -> Any:
    if "error" in answer:
        raise VdevError(str(answer["error"].get("desc", answer["error"])))
    return answer["return"]


class ControlClient:
    """Of vdev's control socket."""

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self._stream = _Stream(sock, path)
        self._path = path

    def execute(self, name: str, arguments: Mapping[str, Any], timeout: float) -> Any:
        """See Client."""
        self._stream.send({"execute": name, "arguments": arguments}, timeout)
        answer = self._stream.next(time.monotonic() + timeout)
        if answer is None:
            raise VdevError(f"{self._path}: hung up instead of answering {name}")
        return _returned(answer)

    def lines(self) -> Iterator[dict[str, Any]]:
        """See Client."""
        while (message := self._stream.next(None)) is not None:
            yield message

    def events(self) -> Iterator[dict[str, Any]]:
        """See Client."""
        self.execute("events-follow", {}, GREETING_S)
        return self.lines()

    def close(self) -> None:
        """See Client."""
        self._stream.sock.close()


class QmpClient:
    """Of a monitor, where our names have a prefix."""

    def __init__(self, sock: socket.socket, path: Path, prefix: str) -> None:
        """Negotiate. VdevError: whoever is there does not greet as a monitor does; a busy one of QEMU's never does."""
        self._stream = _Stream(sock, path)
        self._path = path
        self._prefix = prefix
        self._next_id = 0
        try:
            greeting = self._stream.next(time.monotonic() + GREETING_S)
            if greeting is None or "QMP" not in greeting:
                raise VdevError(f"{path}: is no QMP monitor")
            self._ask("qmp_capabilities", {}, GREETING_S)
        except BaseException:
            sock.close()
            raise

    def execute(self, name: str, arguments: Mapping[str, Any], timeout: float) -> Any:
        """See Client."""
        return self._ask(self._prefix + name, arguments, timeout)

    def _ask(self, name: str, arguments: Mapping[str, Any], timeout: float) -> Any:
        self._next_id += 1
        self._stream.send({"execute": name, "arguments": arguments, "id": self._next_id}, timeout)
        deadline = time.monotonic() + timeout
        while (answer := self._stream.next(deadline)) is not None:
            if answer.get("id") == self._next_id:
                return self._result(name, answer)
            if "event" not in answer:
                raise VdevError(f"{self._path}: {_returned(answer)!r} where the answer to {name} is expected")
        raise VdevError(f"{self._path}: hung up instead of answering {name}")

    def _result(self, name: str, answer: Mapping[str, Any]) -> Any:
        error = answer.get("error")
        if error is not None and error.get("class") == "CommandNotFound" and name.startswith(self._prefix):
            raise VdevError(
                f"{self._path}: this monitor is QEMU's alone: {error.get('desc')} "
                "(qmp-bridge attach puts ours in front; --socket control.sock asks vdev itself)"
            )
        return _returned(answer)

    def events(self) -> Iterator[dict[str, Any]]:
        """See Client. Those of QEMU are left out."""
        while (message := self._stream.next(None)) is not None:
            name = message.get("event", "")
            if name.startswith(self._prefix):
                yield {**message, "event": name.removeprefix(self._prefix)}

    def lines(self) -> Iterator[dict[str, Any]]:
        """See Client. On QMP no command streams."""
        return iter(())

    def close(self) -> None:
        """See Client."""
        self._stream.sock.close()
