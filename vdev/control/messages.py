"""The control socket's messages: one JSON object a line, in the spirit of QMP.

A request is {"execute": NAME, "arguments": {...}, "id": ANY}; its answer is {"return": ..., "id": ANY} or
{"error": {"class": ..., "desc": ...}, "id": ANY}. Error classes are QMP's.
"""

from __future__ import annotations

from typing import Any

import msgspec

MAX_LINE_NBYTES = 64 << 10  # of a request; a client can make us buffer twice that


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """One command."""

    execute: str
    arguments: dict[str, Any] = {}
    id: Any = None


class ErrorBody(msgspec.Struct, rename={"error_class": "class"}):
    """Why a command failed; clients must not parse `desc`."""

    error_class: str
    desc: str


class Ready(msgspec.Struct):
    """The one line `vdev serve` prints on standard output when every socket listens."""

    ready: bool
    sockets: dict[str, str]  # function name -> path
    control: str
