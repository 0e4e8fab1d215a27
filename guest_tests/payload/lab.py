"""What the checks share: the opened device, buffers, and the two verdicts "worked" and "was refused"."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from . import accel, vfio
from .guest import endpoint_id as endpoint_id

T = TypeVar("T")

MIB = 1 << 20
PAGE = 4096

# The address plan: what the device sees. Far from the MSI window at 0xfee00000, inside any 32-bit aperture.
RING_IOVA = 0x0100_0000
SOURCE_IOVA = 0x1000_0000
TARGET_IOVA = 0x2000_0000
PAIR_IOVA = 0x3000_0000
SCATTER_IOVA = 0x4000_0000
NOWHERE_IOVA = 0x7000_0000

MARKER = 0xA5  # fills a target before a copy that must not reach it


class CheckFailed(Exception):
    """A check found something other than it should; the text says what."""


def expect(condition: bool, problem: str) -> None:
    """Raise CheckFailed(problem) unless `condition`."""
    if not condition:
        raise CheckFailed(problem)


@dataclass(frozen=True)
class Finding:
    """What a passing check saw: a sentence for people, and numbers for tests."""

    detail: str
    data: dict[str, Any] = field(default_factory=dict)


class Log(Protocol):
    """What the checks need of the kernel log."""

    def mark(self) -> int: ...
    def find(self, *needles: str, since: int = 0) -> list[str]: ...
    def wait_for(self, *needles: str, since: int, timeout_s: float = 2.0) -> str | None: ...


class Lab:
    """Everything opened so far. Reading a part that no check has opened yet fails the check that needs it."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.bdf = ""
        self.group = -1
        self.accelerators: dict[str, int] = {}  # BDF -> IOMMU group of every one, the lab's own among them
        self.power_on: dict[str, int] = {}
        self.source = vfio.Buffer(MIB)
        self.target = vfio.Buffer(MIB)
        self.ring = vfio.Buffer(accel.MEMORY_NBYTES)
        self._container: vfio.Container | None = None
        self._device: vfio.Device | None = None
        self._engine: accel.Accelerator | None = None
        self._bars: list[vfio.Bar] = []

    def opened(self, container: vfio.Container, device: vfio.Device) -> None:
        """Remember the container and the device."""
        self._container, self._device = container, device

    def started(self, engine: accel.Accelerator, registers: vfio.Bar, devmem: vfio.Bar) -> None:
        """Remember the engine's driver and the mapped BARs."""
        self._engine, self._bars = engine, [registers, devmem]

    def close(self) -> None:
        """Close all that was opened; what the device could still reach is dropped by the kernel."""
        device, container = self.device, self.container
        self._engine = self._device = self._container = None
        while self._bars:
            self._bars.pop().close()
        device.close()
        container.close()

    @property
    def container(self) -> vfio.Container:
        """The VFIO container."""
        return _opened(self._container)

    @property
    def device(self) -> vfio.Device:
        """The accelerator's function."""
        return _opened(self._device)

    @property
    def engine(self) -> accel.Accelerator:
        """The accelerator's driver."""
        return _opened(self._engine)

    @property
    def devmem(self) -> vfio.Bar:
        """The accelerator's memory BAR."""
        return _opened(self._bars[-1] if self._bars else None)

    def recover(self) -> None:
        """Put the engine back to work after a check that failed half-way; silent where nothing is open."""
        if self._device is None or self._engine is None:
            return
        with contextlib.suppress(OSError, accel.AcceleratorTimeout):
            self._device.set_command(on=vfio.COMMAND_MEMORY | vfio.COMMAND_BUS_MASTER)
            self._engine.start()

    def randomise_source(self) -> bytes:
        """New random content for the source, also returned; the target gets the marker."""
        content = os.urandom(self.source.nbytes)
        self.source.memory[:] = content
        self.target.fill(MARKER)
        return content

    def run_ok(self, operation: accel.Operation) -> accel.Completion:
        """Run an operation that must succeed."""
        return run_ok(self.engine, operation)

    def run_refused(self, operation: accel.Operation, iova: int, access: int) -> dict[str, Any]:
        """Run an operation the IOMMU must refuse at `iova`; returns the facts, the kernel's line among them."""
        return run_refused(self.log, self.engine, self.bdf, operation, (iova, access))

    def expect_untouched(self, buffer: vfio.Buffer, start: int = 0) -> None:
        """Fail unless `buffer` still holds nothing but the marker from byte `start` on."""
        rest = buffer.memory[start:]
        expect(rest == bytes([MARKER]) * len(rest), "memory changed although the access was refused")

    @contextlib.contextmanager
    def both_mapped(self) -> Iterator[None]:
        """Source readable and target writable by the device, for the length of the block."""
        with (
            self.container.mapped(SOURCE_IOVA, self.source, vfio.READ),
            self.container.mapped(TARGET_IOVA, self.target, vfio.WRITE),
        ):
            yield


def _opened(part: T | None) -> T:
    if part is None:
        raise CheckFailed("not run: an earlier check did not open the device")
    return part


def copy(nbytes: int = MIB, src: int = SOURCE_IOVA, dst: int = TARGET_IOVA, flags: int = 0) -> accel.Operation:
    """A COPY; by default the whole source to the whole target."""
    return accel.Operation(accel.COPY, src=src, dst=dst, nbytes=nbytes, flags=flags)


def run_ok(engine: accel.Accelerator, operation: accel.Operation) -> accel.Completion:
    """Run an operation that must succeed."""
    completion = engine.run(operation)
    expect(completion.status == accel.OK, f"the device answered: {completion.describe()}")
    return completion


def run_refused(
    log: Log, engine: accel.Accelerator, bdf: str, operation: accel.Operation, fault: tuple[int, int]
) -> dict[str, Any]:
    """Run an operation the IOMMU must refuse with `fault` (IOVA, access); see `Lab.run_refused`."""
    iova, access = fault
    mark = log.mark()
    completion = engine.run(operation)
    expect(completion.status == accel.TRANSLATION_FAULT, f"not refused, the device answered: {completion.describe()}")
    expect(completion.fault_iova == iova, f"the fault is at {completion.fault_iova:#x}, expected {iova:#x}")
    expect(completion.access == access, f"the fault's access is {completion.access}, expected {access}")
    needles = (f"page fault from EP {endpoint_id(bdf)} at {iova:#x} ",)
    line = log.wait_for(*needles, since=mark)
    expect(line is not None, f"the kernel's log has no line '{needles[0].strip()}' within 2 s")
    kind = "write" if access == accel.WRITE else "read"
    return {
        "endpoint": endpoint_id(bdf),
        "iova": iova,
        "access": kind,
        "kernel": line,
        "copy_ms": completion.ms,
    }


@contextlib.contextmanager
def running_engine(container: vfio.Container, bdf: str, ring_iova: int) -> Iterator[accel.Accelerator]:
    """Accelerator `bdf` of one of the container's groups, running for the length of the block, its ring at `ring_iova`.

    It is reset at the end. Raises OSError, AcceleratorTimeout.
    """
    with contextlib.closing(vfio.Device(container, bdf)) as device:
        device.set_command(on=vfio.COMMAND_MEMORY | vfio.COMMAND_BUS_MASTER)
        ring = vfio.Buffer(accel.MEMORY_NBYTES)
        with contextlib.closing(device.bar(0)) as registers, container.mapped(ring_iova, ring):
            engine = accel.Accelerator(registers, ring.memory, ring_iova)
            engine.start()
            yield engine
            engine.reset()
