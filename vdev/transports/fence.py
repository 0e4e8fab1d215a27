"""Memory barriers from Python that order our accesses to guest memory against the guest's CPUs.

**full()** is a futex(2) FUTEX_WAKE on a private word nobody waits on. It never sleeps and wakes nobody. Before the
kernel looks for waiters it must order the caller's earlier stores before that look, or every futex-based lock would
lose wake-ups, which is the very race we have. It does so with an explicit `smp_mb()` (futex_hb_waiters_pending, the
"full barrier (B)" of the ordering comment in kernel/futex):

 * x86-64: a locked instruction. TSO allows one reordering only, a store after a later load, because stores wait
   in the store buffer; a locked instruction drains it.
 * arm64: `dmb ish`, which orders all earlier loads and stores before all later ones for every observer in the
   inner shareable domain: all CPUs of the machine, therefore all vCPUs.

Kernels built without CONFIG_SMP compile it away, and have no second CPU to be ordered against. A system call as
such is no barrier (on arm64 exception entry and return synchronise the context, not memory), so getpid would not do.

What looks like a barrier and is not one:

 * the GIL, threading.Lock and multiprocessing locks are acquire/release operations. On x86 they happen to use locked
   instructions. On Arm an acquire (ldar, ldaxr, casa) may move up past an earlier plain store and a release may
   move down past a later load, so a lock and unlock between a store and a load orders them not at all;
   and uncontended locks need not touch memory others share.
 * the time the interpreter takes between two byte codes makes the race rare, not impossible.

**acquire() and release()** order everything except a store before a later load. On x86-64 that is what TSO gives
for plain accesses, and each byte code is its own call as far as the C compiler is concerned, so they are empty.
(Block copies are covered: fast-string stores do not pass later stores, and libc ends non-temporal copies with a fence.)
On arm64 plain accesses are not ordered and CPython offers nothing weaker than the system call, so they are full().
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from functools import partial

from vdev.errors import VdevError
from vdev.virtio.ordering import Ordering

_FUTEX_WAKE_PRIVATE = 1 | 128

# Number of futex(2) per machine as platform.machine() names it; little-endian 64-bit machines only (see virtio/queue).
_SYS_FUTEX = {"x86_64": 202, "aarch64": 98, "arm64": 98}
_TOTAL_STORE_ORDER = frozenset({"x86_64"})


class FutexFence:
    """Barriers by futex(2); every one of them is full where `weak` says that plain accesses are not ordered."""

    __slots__ = ("_wake", "_word", "weak")

    def __init__(self, machine: str | None = None) -> None:
        """For `machine`, or this one. VdevError when it is unknown."""
        machine = platform.machine() if machine is None else machine
        number = _SYS_FUTEX.get(machine)
        if number is None or sys.maxsize < 1 << 32 or not sys.platform.startswith("linux"):
            known = ", ".join(sorted(_SYS_FUTEX))
            raise VdevError(f"no memory barrier known for {sys.platform} on {machine!r}: 64-bit Linux on {known} only")
        self.weak = machine not in _TOTAL_STORE_ORDER
        self._word = ctypes.c_uint32(0)  # private: its address is all the kernel looks at
        # PyDLL keeps the GIL: the call never blocks, and giving the GIL away would cost more than the barrier.
        syscall = ctypes.PyDLL(None).syscall
        syscall.restype = ctypes.c_long
        syscall.argtypes = (ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
        self._wake: Callable[[], int] = partial(syscall, number, ctypes.addressof(self._word), _FUTEX_WAKE_PRIVATE, 1)

    def check(self) -> None:
        """VdevError unless the kernel really performs the call (a system-call filter may refuse it)."""
        result = self._wake()
        if result != 0:
            raise VdevError(f"futex(2) answered {result} where 0 was due: no memory barrier in this environment")

    def acquire(self) -> None:
        """Loads after this see at least what was visible to the load before it."""
        if self.weak:
            self.full()

    def release(self) -> None:
        """Stores before this are visible before the stores after it."""
        if self.weak:
            self.full()

    def full(self) -> None:
        """Everything before this is visible before anything after it: also a store before a later load (StoreLoad)."""
        self._wake()


def make_ordering() -> Ordering:
    """The barriers of this machine, tried once. VdevError where there are none: running without would lose kicks."""
    fence = FutexFence()
    fence.check()
    return fence
