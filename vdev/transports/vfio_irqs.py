"""The MSI-X vectors of one connection: eventfds QEMU handed over, and what SET_IRQS does to them.

QEMU keeps the vector table and every mask, so a vector with an eventfd is simply signalled. A vector without one
while MSI-X is on is masked in QEMU's eyes: its interrupt is remembered and delivered when the eventfd comes, as a
pending bit would be. At worst a driver sees one interrupt too many, never one too few.
"""

from __future__ import annotations

import contextlib
import errno
import os

from vdev.errors import MessageError
from vdev.transports.stream import ReceivedFds
from vdev.wire import vfio_user as wire

_ONE_DATA_KIND = (wire.SET_DATA_NONE, wire.SET_DATA_BOOL, wire.SET_DATA_EVENTFD)


class Vectors:
    """Owns the eventfds of `count` MSI-X vectors. While `held` is true, interrupts are remembered, not signalled."""

    def __init__(self, count: int, *, held: bool = False) -> None:
        self.count = count
        self._held = held
        self._eventfds: list[int | None] = [None] * count
        self._pending: set[int] = set()
        self._enabled = False

    @property
    def assigned(self) -> int:
        """How many vectors have an eventfd."""
        return sum(fd is not None for fd in self._eventfds)

    def info(self, index: int) -> wire.IrqInfo:
        """DEVICE_GET_IRQ_INFO; MessageError for ERR and REQ, which makes QEMU do without them and not warn."""
        if index > wire.IRQ_MSIX:
            raise MessageError(errno.EINVAL, f"there is no interrupt of index {index}")
        count = self.count if index == wire.IRQ_MSIX else 0
        flags = wire.IRQ_FLAG_EVENTFD if count else 0
        return wire.IrqInfo(wire.IrqInfo.layout.size, flags, index, count)

    def set(self, request: wire.SetIrqs, data: memoryview, fds: ReceivedFds) -> None:
        """DEVICE_SET_IRQS: takes `fds` when it assigns them; MessageError, with nothing changed, otherwise."""
        self._check(request, data, fds)
        if request.index != wire.IRQ_MSIX:  # INTx and MSI are not there, and switching them off is no error
            return
        kind = request.flags & wire.SET_DATA_MASK
        span = range(request.start, request.start + request.count)
        if kind == wire.SET_DATA_NONE and request.count == 0:
            self.disable()
        elif kind == wire.SET_DATA_EVENTFD:
            self._enabled = True
            # Without fds the range is de-assigned; [0, 1) without fds is also QEMU's way to switch MSI-X on.
            given: list[int | None] = [*fds.take()] or [None] * len(span)
            for vector, fd in zip(span, given, strict=True):
                self._assign(vector, fd)
        else:
            for position, vector in enumerate(span):
                if kind == wire.SET_DATA_NONE or data[position]:
                    self.fire(vector)

    def fire(self, vector: int) -> None:
        """Signal `vector`; one that does not exist is dropped, since guests choose the number."""
        if not 0 <= vector < self.count:
            return
        fd = self._eventfds[vector]
        if fd is not None and not self._held:
            _signal(fd)
        elif self._enabled:
            self._pending.add(vector)

    def hold(self, held: bool) -> None:
        """Signal nothing from now on, or signal what was remembered. Idempotent."""
        self._held = held
        if not held:
            for vector in sorted(self._pending):
                self._signal_pending(vector)

    def reset(self) -> None:
        """The function was reset: remembered interrupts are void. QEMU takes its eventfds back itself."""
        self._pending.clear()

    def disable(self) -> None:
        """MSI-X is off: close every eventfd, forget what was pending; also the end of the connection."""
        self._enabled = False
        self._pending.clear()
        for vector in range(self.count):
            self._assign(vector, None)

    def _assign(self, vector: int, fd: int | None) -> None:
        """Replace the eventfd of `vector`, which takes ownership of `fd`."""
        old, self._eventfds[vector] = self._eventfds[vector], fd
        if old is not None:
            os.close(old)
        if vector in self._pending and not self._held:
            self._signal_pending(vector)

    def _signal_pending(self, vector: int) -> None:
        fd = self._eventfds[vector]
        if fd is not None:
            self._pending.discard(vector)
            _signal(fd)

    def _check(self, request: wire.SetIrqs, data: memoryview, fds: ReceivedFds) -> None:
        kind, action = request.flags & wire.SET_DATA_MASK, request.flags & wire.SET_ACTIONS
        count = self.info(request.index).count
        problem = ""
        if request.argsz < request.layout.size or request.flags & ~(wire.SET_DATA_MASK | wire.SET_ACTIONS):
            problem = f"argsz {request.argsz}, flags {request.flags:#x}"
        elif kind not in _ONE_DATA_KIND or action.bit_count() != 1:
            problem = f"flags {request.flags:#x} do not name one kind of data and one action"
        elif request.start + request.count > count:
            problem = f"vectors {request.start}+{request.count} of {count}"
        elif request.count == 0 and kind != wire.SET_DATA_NONE:
            problem = "data for no vectors"
        elif kind == wire.SET_DATA_BOOL and len(data) < request.count:
            problem = f"{len(data)} bytes for {request.count} vectors"
        elif len(fds) not in ((0, request.count) if kind == wire.SET_DATA_EVENTFD else (0,)):
            problem = f"{len(fds)} fds for {request.count} vectors"
        elif not fds.all_eventfds():
            problem = "an fd is not an eventfd"
        if problem:
            raise MessageError(errno.EINVAL, f"SET_IRQS of index {request.index}: {problem}")
        if action != wire.SET_ACTION_TRIGGER:
            raise MessageError(errno.ENOTSUP, f"SET_IRQS of index {request.index}: masking is QEMU's")


def _signal(eventfd: int) -> None:
    # A full counter refuses one more; QEMU has more than enough to read then. It must not stop the loop instead, and
    # QEMU shares the flag that says so: what it does with it between this line and the next stops only itself.
    os.set_blocking(eventfd, False)
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(eventfd, 1)
