"""Stands in for the bridge's monitor: a QMP server over threads and blocking sockets, for one client at a time."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": ""}, "capabilities": ["oob"]}}
RESUME = {"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}}
WAIT_S = 10.0

Answer = Callable[[Mapping[str, Any]], list[dict[str, Any]]]


def encode(messages: Iterable[Mapping[str, Any]]) -> bytes:
    """As QEMU sends them."""
    return b"".join(json.dumps(message).encode() + b"\r\n" for message in messages)


class FakeMonitor:
    """Answers `qmp_capabilities` itself and everything else by `answer`, whose messages go out as they are.

    With a `farewell` these messages follow the negotiation, and then it hangs up.
    """

    def __init__(
        self,
        path: Path,
        answer: Answer,
        greeting: bytes = encode([GREETING]),
        farewell: list[dict[str, Any]] | None = None,
    ) -> None:
        self.seen: list[dict[str, Any]] = []
        self._answer = answer
        self._greeting = greeting
        self._farewell = farewell
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        # Nobody came, or whoever did has gone.
        with suppress(OSError), self._listener.accept()[0] as sock:
            sock.settimeout(WAIT_S)
            sock.sendall(self._greeting)
            for line in sock.makefile("rb"):
                request = json.loads(line)
                self.seen.append(request)
                known = request["execute"] == "qmp_capabilities"
                messages = [{"return": {}, "id": request["id"]}] if known else self._answer(request)
                # An event may come between any two, as QEMU's do.
                sock.sendall(encode([RESUME, *messages, *(self._farewell or ())]))
                if self._farewell is not None:
                    return

    def close(self) -> None:
        """End it; whoever is connected must be gone."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


@contextmanager
def monitor(path: Path, answer: Answer, **more: Any) -> Iterator[FakeMonitor]:
    """A monitor at `path` for the length of the block."""
    fake = FakeMonitor(path, answer, **more)
    try:
        yield fake
    finally:
        fake.close()
