"""One client of a monitor, in a process of its own: blocking, and without an event loop of its own to measure."""

from __future__ import annotations

import json
import select
import socket
import time
from collections import defaultdict
from dataclasses import dataclass, field

CHUNK = 1 << 18
ANSWER_S = 60.0  # beyond it the monitor counts as dead
WARM_UP_S = 0.5
SILENT_ASKS = 100  # for what nobody reads afterwards: some 500 KB, more than any socket holds
# Each is answered with errors and leaves nothing open behind it.
MALFORMED = (
    b'{"execute": }\n',
    b'{"execute": "query-status"]\n',
    b"}{\n",
    b'{"execute": "query-status", "nonsense": 1}\n',
    b'["execute", "query-status"]\n',
    b'{"execute": 17}\n',
    b'{"execute": "query-\xff\xff"}\n',
    b"\x01\x02\n",
    b"nonsense\n",
    b'{"execute": "query-status", "arguments": [[[[[[[[]]]]]]]]}\n',
)
GARBAGE = b"".join(MALFORMED) * 4


@dataclass
class Found:
    """What one client found: nanoseconds of each command by row, and counts of what else there was."""

    ns: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    events: int = 0
    errors: int = 0


class Connection:
    """A negotiated one. Every command has an id, and its reply is the line that ends with it."""

    def __init__(self, path: str) -> None:
        self.found = Found()
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(ANSWER_S)
        self._sock.connect(path)
        self._rest = b""
        self._line()
        self._number = 0
        self.execute("qmp_capabilities")

    def _line(self) -> bytes:
        parts = [self._rest]
        while b"\n" not in parts[-1]:
            parts.append(self._sock.recv(CHUNK))
            if not parts[-1]:
                raise ConnectionError("the monitor hung up")
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line

    def execute(self, name: str) -> int:
        """Nanoseconds until the reply was there. Events on the way are counted. Raises ConnectionError."""
        self._number += 1
        request = json.dumps({"execute": name, "id": self._number}).encode()
        ending = b'"id": %d}' % self._number
        started = time.monotonic_ns()
        self._sock.sendall(request)
        while not (line := self._line()).rstrip().endswith(ending):
            if b'"event"' not in line:
                raise ConnectionError(f"a reply to something else: {line[:200]!r}")
            self.found.events += 1
        return time.monotonic_ns() - started

    def send(self, data: bytes) -> None:
        """Raw bytes."""
        self._sock.sendall(data)

    def pour(self, data: bytes, until: float) -> None:
        """Send `data` over and over and read what comes, as fast as the monitor takes it and speaks."""
        self._sock.setblocking(False)
        left = b""
        while (now := time.monotonic()) < until:
            readable, writable, _ = select.select([self._sock], [self._sock], [], until - now)
            if readable:
                said = self._sock.recv(CHUNK)
                if not said:
                    raise ConnectionError("the monitor hung up")
                self.found.errors += said.count(b'{"error"')
                self.found.events += said.count(b'"event"')
            if writable:
                left = left or data
                left = left[self._sock.send(left) :]


def act(connection: Connection, role: str, begin: float, end: float, pause_s: float) -> None:
    """Play the role from `begin` (CLOCK_MONOTONIC) to `end`. Raises ConnectionError."""
    if role == "silent":
        connection.send(b'{"execute": "query-commands"}' * SILENT_ASKS)
        time.sleep(max(0.0, end - time.monotonic()))
    elif role == "malformed":
        connection.pour(GARBAGE, end)
    else:
        _measure(connection, COMMANDS[role], (begin, end), pause_s)


# What a role executes in turns, and the row it belongs to.
COMMANDS = {
    "asking": (("status", "query-status"),),
    "listing": (("commands", "query-commands"),),
    "alternating": (
        *(("status", "query-status"), ("commands", "query-commands")) * 2,
        ("schema", "query-qmp-schema"),  # keeps QEMU busy for tens of milliseconds: not beside others
        ("", "query-status"),  # and is felt by the next one: not timed
    ),
    "stopper": (("stop", "stop"), ("stop", "cont")),
}
PACED = ("stopper", "listing")  # these have a pause under every load: each of their commands is work for all others
LEAST_PAUSE_S = 0.05


def _measure(
    connection: Connection, commands: tuple[tuple[str, str], ...], span: tuple[float, float], pause_s: float
) -> None:
    """What is begun in `span` counts, and longer where a row has nothing yet; before it is the warm-up."""
    turn, at = 0, time.monotonic()
    rows = {row for row, _ in commands if row}
    while at < span[1] or not rows <= connection.found.ns.keys():
        row, name = commands[turn % len(commands)]
        took = connection.execute(name)
        if row and at >= span[0]:
            connection.found.ns[row].append(took)
        turn += 1
        if pause_s:
            time.sleep(pause_s)
        at = time.monotonic()
