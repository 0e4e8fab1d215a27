"""How a request is laid out in a ring, and what came back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import DirectError
from .vring import Segment
from .wire import STATUSES, TAIL_NBYTES, Request, Status


@dataclass(frozen=True, slots=True)
class Layout:
    """How a request is spread over descriptors. By default one for what is read and one for what is written.

    `readable` and `writable` are the sizes of the descriptors, which add up to the parts' sizes (0 is a size, too);
    `piece_nbytes` cuts every part in pieces of that many bytes instead. `indirect` puts them in a table of their own.
    """

    readable: Sequence[int] | None = None
    writable: Sequence[int] | None = None
    piece_nbytes: int | None = None
    indirect: bool = False

    def segments(self, nreadable: int, nwritable: int) -> list[Segment]:
        """The descriptors for parts of these sizes, readable ones first. Raises ValueError if they do not add up."""
        if self is DIRECT and nreadable and nwritable:
            return [Segment(nreadable), Segment(nwritable, True)]  # nearly every request there is
        reads = self._sizes("readable", self.readable, nreadable)
        writes = self._sizes("writable", self.writable, nwritable)
        return [*(Segment(size) for size in reads), *(Segment(size, is_writable=True) for size in writes)]

    def _sizes(self, part: str, sizes: Sequence[int] | None, nbytes: int) -> Sequence[int]:
        if sizes is not None:
            if sum(sizes) != nbytes:
                raise ValueError(
                    f"{part} descriptors {list(sizes)} add up to {sum(sizes)}, the part has {nbytes} bytes"
                )
            return sizes
        step = self.piece_nbytes or max(nbytes, 1)
        return [min(step, nbytes - at) for at in range(0, nbytes, step)]


DIRECT = Layout()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the device made of one request.

    `used_nbytes` is the used length. `written` is the whole writable part as it is afterwards; bytes the device left
    alone are 0xEE. The status is in the tail, the last four bytes that were written: None where there is no tail.
    """

    used_nbytes: int
    written: bytes

    @property
    def tail(self) -> bytes | None:
        """The last four bytes that were written, or None if there are fewer."""
        if not TAIL_NBYTES <= self.used_nbytes <= len(self.written):
            return None
        return self.written[self.used_nbytes - TAIL_NBYTES : self.used_nbytes]

    @property
    def status(self) -> Status | int | None:
        """The status; a plain number where the specification has no name for it."""
        tail = self.tail
        if tail is None:
            return None
        return STATUSES.get(tail[0], tail[0])

    @property
    def ok(self) -> bool:
        """Whether the status is OK."""
        return self.status == Status.OK


class RequestRefused(DirectError):
    """The device answered `request` with another status than OK; `status` is None where it wrote no tail."""

    def __init__(self, request: Request | bytes, answer: Answer) -> None:
        self.status = answer.status
        self.answer = answer
        self.request = request
        super().__init__(f"{request!r} was answered {status_words(answer)}")


def status_words(answer: Answer) -> str:
    """`NOENT (6)`, a bare number, or that nothing was written."""
    status = answer.status
    if status is None:
        return f"nothing (used length {answer.used_nbytes} of {len(answer.written)})"
    return f"{status.name} ({status.value})" if isinstance(status, Status) else f"status {status}"
