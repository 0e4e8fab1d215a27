"""The barrier: known machines only, really performed by the kernel."""

from __future__ import annotations

import ctypes
import platform

import pytest

from vdev.errors import VdevError
from vdev.transports.fence import FutexFence, make_ordering


class CountingWake:
    """Stands where the futex call stands."""

    def __init__(self, result: int = 0) -> None:
        self.calls = 0
        self.result = result

    def __call__(self) -> int:
        self.calls += 1
        return self.result


def fence_with(machine: str, wake: CountingWake) -> FutexFence:
    """A fence for `machine` whose system call is `wake`."""
    fence = FutexFence(machine)
    fence._wake = wake
    return fence


@pytest.mark.parametrize("machine", ["riscv64", "ppc64le", "i686", "armv7l", "aarch64_be", ""])
def test_an_unknown_machine_is_refused_by_name(machine: str) -> None:
    with pytest.raises(VdevError, match="no memory barrier known") as caught:
        FutexFence(machine)

    assert repr(machine) in str(caught.value)


def test_this_machine_has_a_barrier_that_the_kernel_performs() -> None:
    ordering = make_ordering()

    ordering.acquire()
    ordering.release()
    ordering.full()


def test_a_kernel_that_refuses_the_call_is_noticed() -> None:
    fence = fence_with("x86_64", CountingWake(result=-1))

    with pytest.raises(VdevError, match="no memory barrier in this environment"):
        fence.check()


def test_on_x86_only_full_calls_the_kernel() -> None:
    wake = CountingWake()
    fence = fence_with("x86_64", wake)

    fence.acquire()
    fence.release()
    calls_for_the_weak_ones = wake.calls
    fence.full()

    assert (calls_for_the_weak_ones, wake.calls) == (0, 1)


@pytest.mark.parametrize("machine", ["aarch64", "arm64"])
def test_on_arm_every_barrier_calls_the_kernel(machine: str) -> None:
    wake = CountingWake()
    fence = fence_with(machine, wake)

    fence.acquire()
    fence.release()
    fence.full()

    assert wake.calls == 3


@pytest.mark.skipif(platform.machine() != "x86_64", reason="checks the x86-64 number against a call that must fail")
def test_the_call_made_is_futex_on_an_aligned_word() -> None:
    # FUTEX_WAKE on an address that is not aligned is refused with EINVAL, by futex and by no neighbouring call.
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    fence = FutexFence("x86_64")
    number, address, operation, count = fence._wake.args  # type: ignore[attr-defined]  # it is a partial

    assert address % 4 == 0
    assert syscall(number, ctypes.c_void_p(address + 1), operation, count) == -1
    assert ctypes.get_errno() == 22
