"""What a stopped VM's functions keep to themselves: completions, interrupts, DMA outside slices; who froze it, when."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.accelerator import Rig, descriptor
from vdev.control.run_state import RunState, RunStateChanged
from vdev.endpoints.accelerator_engine import SLICE_NBYTES
from vdev.errors import ConfigError
from vdev.transports.stream import ReceivedFds
from vdev.transports.vfio_irqs import Vectors
from vdev.wire import vfio_user as wire
from vdev.wire.accelerator import CompletionStatus, Control, ErrorCode, Flag, Op, Register, Status

A, B = 0x100_0000, 0x200_0000
LONG = 4 * SLICE_NBYTES
IRQ = Control.IRQ_ENABLE


@pytest.fixture
def rig() -> Rig:
    """An engine in the middle of a long copy, whose DMA has just been held."""
    rig = Rig(ram_nbytes=2 * LONG)
    rig.map(A, 0, LONG)
    rig.map(B, LONG, LONG)
    rig.start()
    rig.put(descriptor(Op.COPY, tag=3, flags=Flag.IRQ, src=A, dst=B, nbytes=LONG))
    rig.engine.run(0)
    rig.door.frozen = True
    return rig


def test_clearing_enable_while_dma_is_held_writes_its_completion_later(rig: Rig) -> None:
    accesses = rig.door.accesses
    rig.write32(Register.CONTROL, IRQ)
    held = (rig.door.accesses, rig.read32(Register.STATUS), list(rig.host.vectors))

    rig.door.frozen = False
    rig.run()

    assert held == (accesses, 0, [])
    assert rig.completion().status == CompletionStatus.ABORTED
    assert rig.completion().result == SLICE_NBYTES
    assert rig.read32(Register.RING_HEAD) == 1
    assert rig.host.vectors == [0]


def test_a_completion_that_waits_goes_where_its_ring_was_whatever_the_registers_say_by_then(rig: Rig) -> None:
    rig.write32(Register.CONTROL, IRQ)
    rig.write32(Register.RING_SIZE, 0)
    rig.write32(Register.COMPLETION_BASE, 0x7000)

    rig.door.frozen = False
    rig.run()

    assert rig.completion().status == CompletionStatus.ABORTED
    assert rig.read32(Register.COMPLETED) == 1


@pytest.mark.parametrize("control", [Control.RESET, Control.ENABLE])
def test_a_completion_that_waits_is_void_after_a_reset_or_a_new_start(rig: Rig, control: Control) -> None:
    rig.write32(Register.CONTROL, IRQ)
    rig.write32(Register.CONTROL, control)

    rig.door.frozen = False
    rig.run()

    assert rig.completion().status == CompletionStatus.PENDING
    assert rig.read32(Register.COMPLETED) == 0


def test_a_completion_that_waits_is_void_when_dma_is_taken_away(rig: Rig) -> None:
    rig.write32(Register.CONTROL, IRQ)
    rig.engine.stop(ErrorCode.BUS_MASTER_OFF)

    rig.door.frozen = False
    rig.run()

    assert rig.completion().status == CompletionStatus.PENDING
    assert rig.read32(Register.STATUS) & Status.RUNNING == 0


class Irqs:
    """Two MSI-X vectors with eventfds of ours, held from the beginning."""

    def __init__(self) -> None:
        self.vectors = Vectors(2, held=True)
        self.fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
        self.assign(0, 2)

    def assign(self, start: int, count: int) -> None:
        request = wire.SetIrqs(wire.SetIrqs.layout.size, 0x24, wire.IRQ_MSIX, start, count)
        with ReceivedFds([os.dup(fd) for fd in self.fds[start : start + count]]) as fds:
            self.vectors.set(request, memoryview(b""), fds)

    def fired(self) -> list[int]:
        counts = []
        for fd in self.fds:
            try:
                counts.append(os.eventfd_read(fd))
            except BlockingIOError:
                counts.append(0)
        return counts


@pytest.fixture
def irqs() -> Iterator[Irqs]:
    irqs = Irqs()
    yield irqs
    irqs.vectors.disable()
    for fd in irqs.fds:
        os.close(fd)


def test_held_interrupts_come_once_when_they_are_let_go(irqs: Irqs) -> None:
    irqs.vectors.fire(1)
    irqs.vectors.fire(1)
    held = irqs.fired()

    irqs.vectors.hold(False)
    irqs.vectors.hold(False)

    assert held == [0, 0]
    assert irqs.fired() == [0, 1]


def test_a_new_eventfd_does_not_let_a_held_interrupt_out(irqs: Irqs) -> None:
    irqs.vectors.fire(0)
    irqs.assign(0, 2)
    held = irqs.fired()

    irqs.vectors.hold(False)

    assert held == [0, 0]
    assert irqs.fired() == [1, 0]


def test_a_reset_forgets_held_interrupts(irqs: Irqs) -> None:
    irqs.vectors.fire(0)
    irqs.vectors.reset()
    irqs.vectors.hold(False)
    assert irqs.fired() == [0, 0]


def test_a_frozen_vm_says_since_when_and_by_whom_and_the_first_one_stays_named() -> None:
    now, events, applied = [10.0], list[object](), list[bool]()
    state = RunState(lambda: now[0], events.append, applied.append)
    running = state.describe()

    first = state.freeze("the launcher")
    now[0] = 12.5
    second = state.freeze("somebody else")
    thawed = [state.thaw("a person"), state.thaw("a person")]

    assert running == {}
    assert first == {"frozen": {"since": 10.0, "seconds": 0.0, "by": "the launcher"}}
    assert second == {"frozen": {"since": 10.0, "seconds": 2.5, "by": "the launcher"}}
    assert thawed == [{}, {}]
    assert applied == [True, False]
    assert events == [RunStateChanged(True, "the launcher"), RunStateChanged(False, "a person")]


def test_a_name_too_long_for_the_log_is_refused() -> None:
    applied = list[bool]()
    state = RunState(lambda: 0.0, list[object]().append, applied.append)

    with pytest.raises(ConfigError, match="by: 201 characters"):
        state.freeze("x" * 201)

    assert (state.frozen, applied) == (False, [])
