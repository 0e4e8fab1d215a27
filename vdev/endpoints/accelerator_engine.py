"""The accelerator's engine: the descriptor ring, the completions and the rules of CONTROL (docs/accelerator.md).

Without a latency no DMA is ever outstanding between two calls. With one, a slice of an operation is translated in one
call and its bytes move in a later one (`accelerator_ops`); whatever stops the engine drops it at once. Either way the
DMA has stopped when a call that stops it returns. The ring's own DMA is never outstanding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vdev.endpoints.accelerator_ops import Door, Doors, Operation, check_descriptor, doors_of
from vdev.endpoints.accelerator_regs import Registers, words
from vdev.errors import DmaDelayed, DmaError, TranslationFault
from vdev.iommu.tag import Tag
from vdev.wire.accelerator import (
    COMPLETION_NBYTES,
    COMPLETION_STATUS_OFFSET,
    DESCRIPTOR_NBYTES,
    Access,
    Completion,
    CompletionStatus,
    Control,
    Descriptor,
    ErrorCode,
    Flag,
    Op,
    Register,
)

SLICE_NBYTES = 256 * 1024  # the most one `run` moves: tens of microseconds at memmove speed
DESCRIPTOR_COST_NBYTES = 16 * 1024  # what a descriptor costs beside its bytes: small ones share a slice, 16 at most
VECTOR_COMPLETION = 0
VECTOR_ERROR = 1

_REFUSED = (
    CompletionStatus.TRANSLATION_FAULT,
    CompletionStatus.UNSUPPORTED_REQUEST,
    CompletionStatus.COMPLETER_ABORT,
)
_NO_ACCESS = (0, Access.NONE)


@dataclass(frozen=True, slots=True)
class _Owed:
    """A completion that is to be written later: its operation ended while DMA was held, or its own write was delayed.
    It belongs to the ring the operation came from, whatever the driver writes into the registers meanwhile: they are
    the driver's once ENABLE is cleared."""

    descriptor: Descriptor
    status: CompletionStatus
    result: int
    refused: tuple[int, Access]
    ring: tuple[int, int]  # COMPLETION_BASE and RING_SIZE
    has_record: bool = False  # all but the status is there already


class Host(Protocol):
    """What the engine needs of the function it lives in."""

    @property
    def dma_enabled(self) -> bool: ...

    def interrupt(self, vector: int) -> None:
        """Raise an MSI-X vector."""


class Engine:
    """Registers and ring of one accelerator. Never raises on anything a guest does."""

    def __init__(
        self, host: Host, door: Doors, devmem: memoryview, release: Callable[[], None], latency_ns: int = 0
    ) -> None:
        """`release` orders a completion's body before its status byte (a no-op where stores stay in order).

        `latency_ns`: how long after its translation a slice of an operation moves its bytes.
        """
        self.lands_ns: int | None = None  # when the slice in flight does; None: there is none
        self.registers = Registers(len(devmem))
        self._host = host
        self._door = door
        self._ring_door: Door = door  # for descriptors and completions
        self._devmem = devmem
        self._release = release
        self._latency_ns = latency_ns
        self._detour = False
        self._flies = bool(latency_ns)  # operations are in flight
        self.waits = False  # for an access that is delayed: its door tells when to go on
        self._operation: Operation | None = None
        self._owed: _Owed | None = None
        self.on_error: Callable[[ErrorCode, int], None] | None = None

    @property
    def has_work(self) -> bool:
        """Whether `run` has something to do."""
        registers = self.registers
        if self._owed is not None:
            return True
        return registers.running and (self._operation is not None or registers.ring_head != registers.ring_tail)

    def write(self, offset: int, data: bytes) -> None:
        """A write to BAR0."""
        for at, value in words(offset, data):
            if at == Register.CONTROL:
                self._write_control(value)
            elif at == Register.RING_TAIL:
                self._write_tail(value)
            else:
                self.registers.write_word(at, value)

    def reset(self) -> None:
        """Power-on state, now; the operation under way is forgotten and nothing of it lands any more."""
        self._forget_late()
        self._drop_operation()
        self.registers.reset()

    def stop(self, code: ErrorCode) -> None:
        """DMA was taken away from outside: halt without another DMA and without an interrupt."""
        self._forget_late()
        if self.registers.running:
            self._halt(code, 0, interrupt=False)

    def fly(self, detour: bool) -> None:
        """Where accesses take a detour, operations are in flight, if only for a moment: they can be delayed there."""
        self._detour = detour
        in_flight = self._operation is not None and self._operation.begun > 0
        self._flies = detour or bool(self._latency_ns) or in_flight

    def give_back(self) -> None:
        """What is in flight must wait for longer than its latency: it is translated anew when the engine goes on."""
        self.lands_ns = None
        if self._operation is not None:
            self._operation.give_back()

    def run(self, now_ns: int) -> None:
        """One slice of work: SLICE_NBYTES of a long operation, or several short ones.

        With a latency it ends when a slice is in flight: there is nothing to do before `lands_ns`.
        """
        if self.waits:
            self.waits = False
            if self._operation is None:
                self.lands_ns = None
        if self._owed is not None:
            self._pay()
            if self.waits:
                return
        budget = SLICE_NBYTES
        # With pages so small that one `views` covers less than a slice, a byte costs as much as many.
        weight = max(SLICE_NBYTES // self._door.slice_nbytes, 1)
        while budget > 0 and self.has_work:
            operation = self._operation or self._fetch()
            if operation is None:
                if self.waits:
                    return
                budget -= DESCRIPTOR_COST_NBYTES
                continue
            before = operation.done
            self._step(operation, max(budget // weight, 1), now_ns)
            if self.lands_ns is not None:
                return
            budget -= max((operation.done - before) * weight, DESCRIPTOR_COST_NBYTES)

    def _write_control(self, value: int) -> None:
        if value & Control.RESET:
            self.reset()
            return
        registers = self.registers
        registers.irq_enable = bool(value & Control.IRQ_ENABLE)
        if value & Control.ENABLE and not registers.running:
            self._enable()
        elif not value & Control.ENABLE and registers.running:
            self._disable()

    def _enable(self) -> None:
        registers = self.registers
        if not self._host.dma_enabled:
            self._error(ErrorCode.BUS_MASTER_OFF, 0, interrupt=False)
        elif not registers.config_is_valid():
            self._error(ErrorCode.BAD_CONFIG, 0)
        else:
            self._owed = None  # a new start: its slot belongs to the new ring now
            self._ring_door = self._door.tagged(Tag(registers.ring_pasid)) if registers.ring_pasid else self._door
            registers.running, registers.halted = True, False
            registers.ring_head = registers.ring_tail = 0

    def _disable(self) -> None:
        """ENABLE was cleared: an operation under way ends here, with a completion that says so."""
        operation = self._drop_operation()
        if operation is not None and self._door.frozen:
            # The completion is written in the first slice that may.
            ring = self.registers.completion_base, self.registers.ring_size
            self._owed = _Owed(operation.descriptor, CompletionStatus.ABORTED, operation.done, _NO_ACCESS, ring)
        elif operation is not None:
            self._complete(operation.descriptor, CompletionStatus.ABORTED, operation.done)
        self.registers.running = False
        while self._owed is not None and not self._door.frozen:
            self._door.hurry()  # nothing may come after this write
            self._pay()
        if self._owed is None:
            self._door.forget()
        self.waits = False

    def _write_tail(self, value: int) -> None:
        registers = self.registers
        if not registers.running:
            self._error(ErrorCode.NOT_RUNNING, 0)
        elif value >= registers.ring_size:
            self._error(ErrorCode.BAD_TAIL, 0)
        else:
            registers.ring_tail = value

    def _fetch(self) -> Operation | None:
        """Take the descriptor at RING_HEAD; None when it was refused at once or the ring broke."""
        registers = self.registers
        try:
            data = self._ring_door.read(
                registers.ring_base + registers.ring_head * DESCRIPTOR_NBYTES, DESCRIPTOR_NBYTES
            )
        except DmaDelayed:
            self._wait()
            return None
        except DmaError as error:
            self._halt(ErrorCode.RING_FETCH, error.iova)
            return None
        descriptor = Descriptor.parse(data)
        verdict = check_descriptor(descriptor, len(self._devmem))
        if verdict != CompletionStatus.OK:
            self._complete(descriptor, verdict, 0)
            return None
        self._operation = Operation(descriptor, doors_of(descriptor, self._door), self._devmem)
        return self._operation

    def _drop_operation(self) -> Operation | None:
        """The operation under way, of which nothing moves any more."""
        self.give_back()
        operation, self._operation = self._operation, None
        return operation

    def _step(self, operation: Operation, budget: int, now_ns: int) -> None:
        try:
            if self._flies and operation.descriptor.op != Op.NOP:
                ended = self._fly(operation, budget, now_ns)
            else:
                ended = operation.run(budget)
        except DmaError as error:
            self._door.forget()
            self._complete(operation.descriptor, _status_of(error), operation.done, (error.iova, operation.access))
            return
        if ended:
            self._complete(operation.descriptor, operation.status, operation.result)

    def _fly(self, operation: Operation, budget: int, now_ns: int) -> bool:
        """Land the slice in flight if it is time, else see to it that one is. Returns and raises as `Operation.run`."""
        lands_ns, self.lands_ns = self.lands_ns, None
        if operation.is_cancelled:
            operation.give_back()
        elif lands_ns is not None and now_ns >= lands_ns and not operation.is_late:
            self._flies = self._detour or bool(self._latency_ns)
            return operation.land()
        if not operation.begun:
            operation.begin(budget)
            lands_ns = now_ns + self._latency_ns
        self.lands_ns = lands_ns
        self.waits = operation.is_late
        return False

    def _wait(self) -> None:
        """An access of the ring's own is delayed: nothing else is done until it may be tried again."""
        self.waits = True
        self.lands_ns = 0  # it is no operation that lands

    def _forget_late(self) -> None:
        self._owed = None
        self.waits = False
        self._door.forget()

    def _pay(self) -> None:
        """Write the completion that is owed."""
        owed, self._owed = self._owed, None
        assert owed is not None
        self._complete(owed.descriptor, owed.status, owed.result, owed.refused, owed.ring, has_record=owed.has_record)

    def _complete(
        self,
        descriptor: Descriptor,
        status: CompletionStatus,
        result: int,
        refused: tuple[int, Access] = _NO_ACCESS,
        ring: tuple[int, int] | None = None,
        has_record: bool = False,
    ) -> None:
        """Write the completion of the descriptor at RING_HEAD and move on; a refused write halts the engine."""
        registers = self.registers
        self._drop_operation()
        completion_base, ring_size = ring or (registers.completion_base, registers.ring_size)
        iova, access = refused
        pasid = descriptor.pasid if status in _REFUSED else 0
        record = Completion(descriptor.tag, CompletionStatus.PENDING, 0, pasid, result, iova, access, 0)
        slot = completion_base + registers.ring_head * COMPLETION_NBYTES
        try:
            if not has_record:
                self._ring_door.write(slot, record.pack())
                self._release()
                has_record = True
            self._ring_door.write(slot + COMPLETION_STATUS_OFFSET, bytes((status,)))
        except DmaDelayed:
            self._owed = _Owed(descriptor, status, result, refused, (completion_base, ring_size), has_record)
            self._wait()
            return
        except DmaError as error:
            self._halt(ErrorCode.COMPLETION_WRITE, error.iova)
            return
        registers.ring_head = (registers.ring_head + 1) % ring_size
        registers.completed += 1
        registers.faulted += status in _REFUSED
        if descriptor.flags & Flag.IRQ:
            self._interrupt(VECTOR_COMPLETION)

    def _halt(self, code: ErrorCode, iova: int, *, interrupt: bool = True) -> None:
        """RING_HEAD stays at the entry that could not be served, for the driver to look at."""
        self._drop_operation()
        self.registers.running, self.registers.halted = False, True
        self._error(code, iova, interrupt=interrupt)

    def _error(self, code: ErrorCode, iova: int, *, interrupt: bool = True) -> None:
        self.registers.error, self.registers.error_iova = int(code), iova
        if self.on_error is not None:
            self.on_error(code, iova)
        if interrupt:
            self._interrupt(VECTOR_ERROR)

    def _interrupt(self, vector: int) -> None:
        if self.registers.irq_enable:
            self._host.interrupt(vector)


def _status_of(error: DmaError) -> CompletionStatus:
    """What an operation ends with whose access was refused."""
    if isinstance(error, TranslationFault):
        return CompletionStatus.TRANSLATION_FAULT
    if error.reason == "completer-abort":
        return CompletionStatus.COMPLETER_ABORT
    return CompletionStatus.UNSUPPORTED_REQUEST
