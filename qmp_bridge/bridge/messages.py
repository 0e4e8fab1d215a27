"""Requests as QEMU checks them, and replies as QEMU writes them. No I/O."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qmp_bridge.errors import Refused
from vdev.errors import VdevError

COMMAND_NOT_FOUND = "CommandNotFound"
GENERIC_ERROR = "GenericError"
NO_ID = b""  # a client may leave the id out; null is one


class BadEnvelope(VdevError):
    """What came is no request. `own_id` as in Request."""

    def __init__(self, desc: str, own_id: bytes = NO_ID) -> None:
        self.own_id = own_id
        super().__init__(desc)


@dataclass(slots=True)
class Request:
    """One command of a client. `own_id` is its id as JSON text, empty when it has none.

    `fds` came with it; whoever has the request owns them, and `close` closes those nobody took.
    """

    name: str
    arguments: dict[str, Any]
    own_id: bytes
    oob: bool
    fds: list[int] = field(default_factory=list)

    def close(self) -> None:
        """Close the file descriptors nobody took. Idempotent."""
        while self.fds:
            os.close(self.fds.pop())


def read_request(value: object, *, oob: bool) -> Request:
    """The request a value of the stream is; `oob`: whether its client may use exec-oob.

    Raises BadEnvelope in QEMU's words, found by asking QEMU 11.1. Where several things are wrong QEMU names whichever
    its hash table has first; here it is the first in the order of this function.
    """
    if not isinstance(value, dict):
        raise BadEnvelope("QMP input must be a JSON object")
    own_id = json.dumps(value["id"]).encode() if "id" in value else NO_ID
    verbs = [verb for verb in ("execute", "exec-oob") if verb in value and (oob or verb == "execute")]
    for verb in verbs:
        if not isinstance(value[verb], str):
            raise BadEnvelope(f"QMP input member '{verb}' must be a string", own_id)
    if len(verbs) == 2:
        raise BadEnvelope("QMP input member 'execute' clashes with 'exec-oob'", own_id)
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict):
        raise BadEnvelope("QMP input member 'arguments' must be an object", own_id)
    for name in value:
        if name not in (*verbs, "arguments", "id"):
            raise BadEnvelope(f"QMP input member '{name}' is unexpected", own_id)
    if not verbs:
        raise BadEnvelope("QMP input lacks member 'execute'", own_id)
    return Request(value[verbs[0]], arguments, own_id, verbs[0] == "exec-oob")


def reply_line(body: bytes, own_id: bytes) -> bytes:
    """A client's line for a reply's one member besides the id, which QEMU writes after `return` and before `error`."""
    if not own_id:
        return b"{%s}\r\n" % body
    if body.startswith(b'"error"'):
        return b'{"id": %s, %s}\r\n' % (own_id, body)
    return b'{%s, "id": %s}\r\n' % (body, own_id)


def return_body(value: object) -> bytes:
    """The member of a reply that says what a command returned."""
    return b'"return": ' + json.dumps(value).encode()


def error_body(desc: str, error_class: str = GENERIC_ERROR) -> bytes:
    """The member of a reply that says why a command failed."""
    return b'"error": ' + json.dumps({"class": error_class, "desc": desc}).encode()


def event_line(name: str, data: Mapping[str, object], now: float) -> bytes:
    """An event of our own, at `now` seconds since the epoch."""
    seconds, microseconds = divmod(int(now * 1_000_000), 1_000_000)
    timestamp = {"seconds": seconds, "microseconds": microseconds}
    event = {"timestamp": timestamp, "event": name, "data": dict(data)}
    return json.dumps(event).encode() + b"\r\n"


def not_found(name: str) -> Refused:
    """The error for a command nobody knows."""
    return Refused(COMMAND_NOT_FOUND, f"The command {name} has not been found")
