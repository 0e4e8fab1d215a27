"""One descriptor chain: the buffers of one request, readable ones first."""

from __future__ import annotations

from vdev.errors import MemoryAccessError, VdevError
from vdev.memory import Memory

Segments = list[tuple[int, int]]  # (gpa, nbytes), as the driver wrote them

_NOTHING = memoryview(b"")


class RingError(VdevError):
    """The driver broke the rules of the ring; the device needs a reset."""


class RingOutOfReach(RingError):
    """Memory of the ring was unmapped under it, perhaps only for the moment: nothing was taken, try again later."""


def ring_error(what: str, error: MemoryAccessError) -> RingError:
    """What `error` at `what` means for the ring."""
    return (RingOutOfReach if error.lost else RingError)(f"{what}: {error}")


class GuestViews:
    """Segments to views of guest memory, remembering the region of the last one.

    Its own class, so that a chain leads to no queue: a queue dropped at reset frees its views at once,
    without waiting for the cycle collector while the RAM mapping they pin has to go.
    """

    __slots__ = ("_memory", "_near")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.forget()

    def forget(self) -> None:
        """Guest memory changed: the remembered region may be gone."""
        self._near = (0, 0, _NOTHING)  # start, stop, view of one region that allows every access

    def look_up(self, segments: Segments, write: bool) -> list[memoryview]:
        """The guest memory of `segments`, empty ones left out; RingError where it is not RAM of that access."""
        views: list[memoryview] = []
        near_start, near_stop, near_view = self._near
        for gpa, nbytes in segments:
            # Most requests lie in the region of the last one: one slice instead of a lookup.
            if near_start <= gpa and gpa + nbytes <= near_stop:
                if nbytes:
                    offset = gpa - near_start
                    views.append(near_view[offset : offset + nbytes])
                continue
            try:
                views += self._memory.slices(gpa, nbytes, write=write)
            except MemoryAccessError as error:
                raise ring_error("descriptor", error) from error
            self._remember(gpa)
        return views

    def _remember(self, gpa: int) -> None:
        """Keep the region of `gpa` if it allows every access."""
        region = self._memory.find(gpa)
        if region is not None and region.readable and region.writable and region.view is not None:
            self._near = (region.gpa, region.stop, region.view)


class Chain:
    """A chain in flight. Its views go when guest memory changes and are looked up again at the next use."""

    __slots__ = (
        "_readable",
        "_segments",
        "_views",
        "_writable",
        "head",
        "nsegments",
        "readable_nbytes",
        "writable_nbytes",
    )

    def __init__(self, head: int, readable: Segments, writable: Segments, views: GuestViews) -> None:
        """RingError unless all of it is RAM of the right access."""
        self.head = head
        self.nsegments = len(readable) + len(writable)  # what it costs to walk, whatever its bytes
        self._segments = (readable, writable)
        self._views = views
        self._readable: list[memoryview] | None = views.look_up(readable, False)
        self._writable: list[memoryview] | None = views.look_up(writable, True)
        self.readable_nbytes = sum(map(len, self._readable))
        self.writable_nbytes = sum(map(len, self._writable))

    @property
    def readable(self) -> list[memoryview]:
        """Views of the device-readable part, in order; RingError if its memory has gone since."""
        if self._readable is None:
            self._readable = self._views.look_up(self._segments[0], False)
        return self._readable

    @property
    def writable(self) -> list[memoryview]:
        """Views of the device-writable part, in order; RingError if its memory has gone since."""
        if self._writable is None:
            self._writable = self._views.look_up(self._segments[1], True)
        return self._writable

    def read(self, limit: int) -> bytes:
        """A copy of the first `limit` bytes of the readable part, or of all it has: the driver cannot change it."""
        views = self.readable
        if len(views) == 1:
            return views[0][:limit].tobytes()
        parts: list[bytes] = []
        for view in views:
            if limit <= 0:
                break
            part = view[:limit].tobytes()
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Store `data` from the start of the writable part; the bytes that fitted."""
        cursor, nbytes = 0, len(data)
        for view in self.writable:
            if cursor >= nbytes:
                break
            step = min(len(view), nbytes - cursor)
            view[:step] = data[cursor : cursor + step]
            cursor += step
        return cursor

    def drop_views(self) -> None:
        """Forget the views (guest memory changed); they are looked up again when needed."""
        self._readable = self._writable = None

    def finish(self) -> None:
        """The chain is the driver's again: nothing of it can be reached any more."""
        self._readable, self._writable = [], []
        self._segments = ([], [])
