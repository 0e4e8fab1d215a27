"""The accelerator with no kernel driver: DMA that the IOMMU lets through, or does not.

Registers and ring are docs/accelerator.md's; `payload/accel.py` is the driver, this puts memory and exceptions to it.
The engine reads descriptors and writes completions by DMA as well: they lie at `ring_iova`, which the test, or
`start_in`, must have mapped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType

from .. import accel as engine
from .. import guest
from ..bar import Registers
from . import wait
from .errors import DirectError
from .function import Function, PciFunction
from .memory import Allocator
from .viommu import Viommu
from .wire import Access

RING_IOVA = 0x0100_0000
RING_NBYTES = engine.MEMORY_NBYTES
REGISTERS_BAR, DEVMEM_BAR = 0, 2
TIMEOUT_S = 5.0
_LOOK_S = 0.02
_ERRORS = (
    "none",
    "RING_FETCH",
    "COMPLETION_WRITE",
    "BAD_CONFIG",
    "BAD_TAIL",
    "NOT_RUNNING",
    "BUS_MASTER_OFF",
    "STOPPED",
)


class AccelError(DirectError):
    """An operation was not done; `completion` is what the engine wrote about it."""

    def __init__(self, completion: engine.Completion) -> None:
        super().__init__(f"{completion.describe()}, after {completion.result} bytes")
        self.completion = completion
        self.nbytes_done = completion.result


class TranslationFault(AccelError):
    """The IOMMU refused an access at `fault_iova`."""

    def __init__(self, completion: engine.Completion) -> None:
        super().__init__(completion)
        self.fault_iova = completion.fault_iova
        self.access = Access(completion.access)
        self.pasid = completion.pasid


class UnsupportedRequest(AccelError):
    """The IOMMU let the access pass, and nothing is there: `fault_iova` says where."""

    def __init__(self, completion: engine.Completion) -> None:
        super().__init__(completion)
        self.fault_iova = completion.fault_iova


class CompleterAbort(AccelError):
    """The IOMMU let the access pass, and whoever has the memory gave it up: `fault_iova` says where."""

    def __init__(self, completion: engine.Completion) -> None:
        super().__init__(completion)
        self.fault_iova = completion.fault_iova


class Mismatch(AccelError):
    """COMPARE found the first difference at byte `offset`."""

    def __init__(self, completion: engine.Completion) -> None:
        super().__init__(completion)
        self.offset = completion.result


class BadDescriptor(AccelError):
    """The engine makes no sense of the descriptor."""


class Aborted(AccelError):
    """ENABLE was cleared under the operation."""


class EngineStopped(DirectError):
    """The engine does not run: `error` is the ERROR register, `error_iova` what belongs to it."""

    def __init__(self, error: int, error_iova: int, words: str) -> None:
        name = _ERRORS[error] if error < len(_ERRORS) else str(error)
        super().__init__(f"{words}: ERROR {name} at {error_iova:#x}")
        self.error = error
        self.error_iova = error_iova


_OUTCOMES: dict[int, type[AccelError]] = {
    engine.TRANSLATION_FAULT: TranslationFault,
    engine.UNSUPPORTED_REQUEST: UnsupportedRequest,
    engine.MISMATCH: Mismatch,
    engine.BAD_DESCRIPTOR: BadDescriptor,
    engine.ABORTED: Aborted,
    engine.COMPLETER_ABORT: CompleterAbort,
}


def find_accels() -> list[str]:
    """BDFs of all accelerators."""
    return guest.find_pci(engine.VENDOR_ID, engine.DEVICE_ID)


class Accel:
    """One accelerator, reset and not started. `endpoint` is what the IOMMU knows it by."""

    def __init__(self, function: Function, memory: Allocator) -> None:
        """Reset the engine. Raises OSError, OutOfDmaMemory, AcceleratorTimeout, DirectError if it is no accelerator."""
        function.awake()
        self.function = function
        self.endpoint = function.endpoint
        self.domain = -1  # where `start_in` put it
        self.registers: Registers = function.bar(REGISTERS_BAR)
        self.devmem: Registers = function.bar(DEVMEM_BAR)
        if (identity := self.registers.read32(engine.ID)) != engine.ID_VALUE:
            raise DirectError(f"{function.bdf}: ID register reads {identity:#x}, expected {engine.ID_VALUE:#x}")
        self._release = ExitStack()  # gives the function back, if `open` took it
        self._memory = memory.arena()
        self.ring = self._memory.alloc(RING_NBYTES)
        self.engine = engine.Accelerator(self.registers, self.ring.memory, RING_IOVA)
        self.engine.reset()

    @classmethod
    def open(cls, target: str | Function, memory: Allocator) -> Accel:
        """`target` is a BDF, taken and given back with `close`, or a function taken already."""
        with ExitStack() as undo:
            function = undo.enter_context(PciFunction(target)) if isinstance(target, str) else target
            accel = cls(function, memory)
            accel._release = undo.pop_all()
        return accel

    # life

    def start(self, ring_iova: int | None = None, ring_pasid: int = 0) -> Accel:
        """Start the engine, with its ring where the device finds it at `ring_iova`; returns itself.

        Without one the ring is at its guest-physical address: right for an endpoint that bypasses the IOMMU.
        With a `ring_pasid` the device reaches its ring, and writes completions, in that PASID's address space.
        The engine touches its ring with the first operation. Raises EngineStopped.
        """
        where = self.ring.gpa if ring_iova is None else ring_iova
        self.engine = engine.Accelerator(self.registers, self.ring.memory, where, ring_pasid)
        self.engine.start()
        if not self.is_running:
            raise self._stopped("the engine did not start")
        return self

    def start_in(self, viommu: Viommu, domain: int = 1, ring_iova: int = RING_IOVA) -> Accel:
        """Attach to `domain`, map the ring there at `ring_iova`, start; returns itself. Raises what these raise."""
        viommu.attach(domain=domain, endpoint=self.endpoint)
        viommu.map_buffer(domain, ring_iova, self.ring)
        self.domain = domain
        return self.start(ring_iova)

    def reset(self) -> None:
        """Reset the engine: nothing of it lands in memory any more."""
        self.engine.reset()

    def close(self) -> None:
        """Reset the engine and free its ring; give the function back if `open` took it. Twice is once."""
        with self._release:
            if not self.ring.is_free:
                self.engine.reset()
                self._memory.close()

    def __enter__(self) -> Accel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # operations: each raises the AccelError that fits, EngineStopped, or AcceleratorTimeout

    def copy(self, src_iova: int, dst_iova: int, nbytes: int, *, flags: int = 0, pasid: int = 0) -> engine.Completion:
        """COPY; `flags` may say that an address is an offset into device memory (engine.FLAG_SRC_DEVMEM, ...)."""
        return self.do(engine.Operation(engine.COPY, src_iova, dst_iova, nbytes, flags=flags, pasid=pasid))

    def fill(self, dst_iova: int, nbytes: int, pattern: int, *, pasid: int = 0) -> engine.Completion:
        """FILL with the 64-bit `pattern`."""
        return self.do(engine.Operation(engine.FILL, dst=dst_iova, nbytes=nbytes, arg=pattern, pasid=pasid))

    def compare(self, src_iova: int, dst_iova: int, nbytes: int, *, pasid: int = 0) -> engine.Completion:
        """COMPARE; raises Mismatch where they differ."""
        return self.do(engine.Operation(engine.COMPARE, src_iova, dst_iova, nbytes, pasid=pasid))

    def checksum(self, src_iova: int, nbytes: int, *, pasid: int = 0) -> int:
        """CHECKSUM: the CRC-32."""
        return self.do(engine.Operation(engine.CHECKSUM, src_iova, nbytes=nbytes, pasid=pasid)).result

    def nop(self) -> engine.Completion:
        """NOP: only the ring's own DMA."""
        return self.do(engine.Operation(engine.NOP))

    def do(self, operation: engine.Operation, timeout_s: float = TIMEOUT_S) -> engine.Completion:
        """Any operation that is to succeed."""
        completion = self.run(operation, timeout_s)
        if completion.status != engine.OK:
            raise _OUTCOMES.get(completion.status, AccelError)(completion)
        return completion

    def run(self, operation: engine.Operation, timeout_s: float = TIMEOUT_S) -> engine.Completion:
        """Any operation, whatever becomes of it. Raises EngineStopped, AcceleratorTimeout."""
        (completion,) = self.run_all([operation], timeout_s)
        return completion

    def run_all(self, operations: Sequence[engine.Operation], timeout_s: float = TIMEOUT_S) -> list[engine.Completion]:
        """Operations that are outstanding together, at most 63, by one doorbell: their completions, in their order.

        A refused one is a completion like any other. Raises EngineStopped, AcceleratorTimeout.
        """
        if not 0 < len(operations) < engine.RING_NENTRIES:
            raise ValueError(f"{len(operations)} operations, the ring holds 1 to {engine.RING_NENTRIES - 1}")
        started = time.monotonic_ns()
        stop = self.engine.submit(*operations) + 1
        indexes = [(stop - len(operations) + number) % engine.RING_NENTRIES for number in range(len(operations))]
        return [self._completed(index, started, timeout_s) for index in indexes]

    def _completed(self, index: int, started: int, timeout_s: float) -> engine.Completion:
        while not wait.until(lambda: self.engine.status_of(index) != engine.PENDING, _LOOK_S):
            if not self.is_running:
                raise self._stopped("the engine stopped")
            if time.monotonic_ns() - started > timeout_s * 1e9:
                raise engine.AcceleratorTimeout(f"no completion within {timeout_s:g} s ({self.engine.describe()})")
        return self.engine.wait(index, started)

    @contextmanager
    def refused(self, iova: int, access: int) -> Iterator[None]:
        """The block's operation must be refused by the IOMMU at `iova` for `access`; AssertionError otherwise."""
        try:
            yield
        except TranslationFault as fault:
            wanted, got = (iova, Access(access)), (fault.fault_iova, fault.access)
            if got != wanted:
                text = f"refused at {got[0]:#x} for {got[1]!r}, expected {wanted[0]:#x} for {wanted[1]!r}"
                raise AssertionError(text) from fault
        else:
            raise AssertionError(f"the IOMMU let it pass; it should refuse {Access(access)!r} at {iova:#x}")

    # registers

    @property
    def is_running(self) -> bool:
        """STATUS says that the ring is served."""
        return bool(self.registers.read32(engine.STATUS) & engine.RUNNING)

    @property
    def error(self) -> int:
        """ERROR: one of engine.ERROR_*, or 0."""
        return self.registers.read32(engine.ERROR)

    @property
    def kernel_pasid(self) -> int:
        """The PASID the host attached for the kernel's own DMA; 0: none."""
        return self.registers.read32(engine.KERNEL_PASID)

    def _stopped(self, words: str) -> EngineStopped:
        read32, read64 = self.registers.read32, self.registers.read64
        return EngineStopped(read32(engine.ERROR), read64(engine.ERROR_IOVA), words)
