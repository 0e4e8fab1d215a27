"""A request type as a unit serves it, and the answer to a request that fits none, by the table in engine.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from vdev.wire import viommu as wire
from vdev.wire.record import Record

OK_TAIL = wire.TAILS[wire.S_OK]


@dataclass(slots=True)
class Kind:
    """One request type. `handler` is called with the engine and the parsed request."""

    name: str
    record: type[Record]
    nbytes: int  # of the device-readable part
    properties_nbytes: int  # before the tail in the device-writable part
    handler: Callable[[Any, Any], bytes | None]  # None: the answer comes later
    feature: int  # that must be offered, or of the PASID extension accepted
    handled: int = 0


def answer_unfit(
    kind: Kind | None, readable: bytes | memoryview, writable_nbytes: int, mode: Literal["compat", "strict"]
) -> tuple[int | None, bytes, str]:
    """Of a request that cannot be parsed: status (None: unwritten), reply, problem. `kind` None is an unknown type."""
    short = len(readable) < (wire.HEAD_NBYTES if kind is None else kind.nbytes)
    problem = "too short" if short or kind is not None else "unknown type"
    strict = mode == "strict"
    # D15: too short; D11, D47: unknown type or PROBE not offered
    if writable_nbytes < wire.TAIL_NBYTES or (strict and (short or kind is None)):
        return None, b"", problem
    # D51: otherwise the writable part is smaller than probe_size
    status = wire.S_INVAL if short or kind is not None else wire.S_UNSUPP
    place = min(kind.properties_nbytes if kind is not None else 0, writable_nbytes - wire.TAIL_NBYTES)
    return status, bytes(place) + wire.TAILS[status], problem


def status_name(status: int | None) -> str:
    """A word for queries."""
    return "unwritten" if status is None else wire.STATUS_NAMES[status]
