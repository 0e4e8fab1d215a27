"""A full memory barrier from Python, for the one place where a driver needs it.

A driver publishes its index, then looks whether the device wants a kick; the device asks for kicks, then looks at the
index once more. Unless both sides put a store-load barrier in between, each may miss the other and a kick is lost.
futex(2) FUTEX_WAKE on a word nobody waits on has that barrier in the kernel, on x86-64 and arm64, and never sleeps.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from functools import cache, partial

_FUTEX_WAKE_PRIVATE = 1 | 128
_SYS_FUTEX = {"x86_64": 202, "aarch64": 98}
_WORD = ctypes.c_uint32(0)


def full() -> None:
    """Everything before this is visible before anything after it."""
    _wake()()


@cache
def _wake() -> Callable[[], int]:
    syscall = ctypes.PyDLL(None).syscall  # keeps the GIL: the call does not block
    syscall.restype = ctypes.c_long
    syscall.argtypes = (ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
    return partial(syscall, _SYS_FUTEX[platform.machine()], ctypes.addressof(_WORD), _FUTEX_WAKE_PRIVATE, 1)
