"""A stand-in for the guest's VFIO device: an IOMMU and an accelerator in a few lines, with flaws on request.

The guest's checks run against it on the host. Without flaws every check must pass; with a flaw the check that exists
for it must fail. That is how we know that the checks can fail.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass

from guest_tests.payload import accel, vfio
from guest_tests.payload.lab import Lab


@dataclass
class _Mapping:
    iova: int
    nbytes: int
    buffer: vfio.Buffer
    offset: int
    access: int


class _Refused(Exception):
    def __init__(self, iova: int, access: int) -> None:
        super().__init__()
        self.iova = iova
        self.access = access


class FakeLog:
    """A kernel log made of a list."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def mark(self) -> int:
        return len(self.lines)

    def find(self, *needles: str, since: int = 0) -> list[str]:
        return [line for line in self.lines[since:] if all(needle in line for needle in needles)]

    def wait_for(self, *needles: str, since: int, timeout_s: float = 2.0) -> str | None:
        return next(iter(self.find(*needles, since=since)), None)


class FakeContainer(vfio.Container):
    """Mappings in a list; `flaws` make it wrong."""

    def __init__(self, flaws: frozenset[str], log: FakeLog) -> None:
        self.flaws = flaws
        self.log = log
        self.mappings: list[_Mapping] = []

    def map(self, iova: int, buffer: vfio.Buffer, access: int, *, offset: int = 0, nbytes: int | None = None) -> None:
        length = buffer.nbytes - offset if nbytes is None else nbytes
        self.mappings.append(_Mapping(iova, length, buffer, offset, access))

    def unmap(self, iova: int, nbytes: int) -> None:
        if "keeps-mappings" not in self.flaws:
            self.mappings = [m for m in self.mappings if not iova <= m.iova < iova + nbytes]

    def close(self) -> None:
        self.mappings.clear()

    def translate(self, iova: int, nbytes: int, access: int) -> list[memoryview]:
        """The memory behind a range, piece by piece; refuses and logs what the IOMMU would."""
        pieces, at = [], iova
        while at < iova + nbytes:
            mapping = next((m for m in self.mappings if m.iova <= at < m.iova + m.nbytes), None)
            allowed = mapping is not None and (mapping.access & access or "ignores-permissions" in self.flaws)
            if mapping is None or not allowed:
                at = iova if "names-the-start" in self.flaws else at
                self._complain(at, access)
                raise _Refused(at, access)
            start = mapping.offset + at - mapping.iova
            length = min(iova + nbytes, mapping.iova + mapping.nbytes) - at
            pieces.append(mapping.buffer.memory[start : start + length])
            at += length
        return pieces

    def _complain(self, iova: int, access: int) -> None:
        if "silent-kernel" not in self.flaws:
            self.log.lines.append(f"virtio_iommu virtio0: page fault from EP 256 at {iova:#x} [{' RW'[access]}]")


class FakeAccelerator(vfio.Bar):
    """BAR0 whose doorbell executes the ring at once."""

    def __init__(self, container: FakeContainer, flaws: frozenset[str]) -> None:
        self.container = container
        self.flaws = flaws
        self.values: dict[int, int] = {}
        self.devmem = bytearray(1 << 20)
        self.bus_master = True
        self.events: list[int] = []
        self.reset()

    def reset(self) -> None:
        self.values = {accel.ID: accel.ID_VALUE, accel.VERSION: 1}

    def read32(self, offset: int) -> int:
        return self.values.get(offset, 0)

    def read64(self, offset: int) -> int:
        return self.read32(offset)

    def write64(self, offset: int, value: int) -> None:
        self.values[offset] = value

    def write32(self, offset: int, value: int) -> None:
        if offset == accel.CONTROL and value & accel.RESET:
            self.reset()
            return
        self.values[offset] = value
        if offset == accel.RING_TAIL:
            self._doorbell()

    def close(self) -> None:
        self.values.clear()

    def _doorbell(self) -> None:
        if not self.bus_master and "ignores-bus-master" not in self.flaws:
            return
        while (head := self.read32(accel.RING_HEAD)) != self.read32(accel.RING_TAIL):
            self._execute(head)
            self.values[accel.RING_HEAD] = (head + 1) % self.read32(accel.RING_SIZE)

    def _execute(self, head: int) -> None:
        at = self.read64(accel.RING_BASE) + head * accel.DESCRIPTOR.size
        (raw,) = self.container.translate(at, accel.DESCRIPTOR.size, vfio.READ)
        op, flags, tag, _, src, dst, nbytes, arg = accel.DESCRIPTOR.unpack(raw)
        status, result, iova, access = accel.OK, nbytes, 0, 0
        try:
            status, result = self._operate(accel.Operation(op, src, dst, nbytes, arg, flags))
        except _Refused as refused:
            status, iova, access = accel.TRANSLATION_FAULT, refused.iova, refused.access
        self.values[accel.COMPLETED] = self.read32(accel.COMPLETED) + 1
        at = self.read64(accel.COMPLETION_BASE) + head * accel.COMPLETION.size
        (record,) = self.container.translate(at, accel.COMPLETION.size, vfio.WRITE)
        record[:] = accel.COMPLETION.pack(tag, status, 0, 0, result, iova, access, 0)
        if flags & accel.FLAG_IRQ and self.events and "no-interrupt" not in self.flaws:
            os.eventfd_write(self.events[0], 1)

    def _operate(self, work: accel.Operation) -> tuple[int, int]:
        if work.op == accel.FILL:
            pieces = self.container.translate(work.dst, work.nbytes, vfio.WRITE)
            _scatter(pieces, work.arg.to_bytes(8, "little") * (work.nbytes // 8))
            return accel.OK, work.nbytes
        source = self._load(work.src, work.nbytes, bool(work.flags & accel.FLAG_SRC_DEVMEM))
        if work.op == accel.CHECKSUM:
            return accel.OK, zlib.crc32(source)
        if work.op == accel.COMPARE:
            other = self._load(work.dst, work.nbytes, False)
            differing = [at for at in range(0, work.nbytes, 4096) if source[at : at + 4096] != other[at : at + 4096]]
            if not differing:
                return accel.OK, work.nbytes
            return accel.MISMATCH, next(at for at in range(differing[0], work.nbytes) if source[at] != other[at])
        self._store(work, source)
        return accel.OK, work.nbytes

    def _load(self, src: int, nbytes: int, from_device: bool) -> bytes:
        if from_device:
            return bytes(self.devmem[src : src + nbytes])
        return b"".join(self.container.translate(src, nbytes, vfio.READ))

    def _store(self, work: accel.Operation, data: bytes) -> None:
        if work.flags & accel.FLAG_DST_DEVMEM:
            self.devmem[work.dst : work.dst + work.nbytes] = data
            return
        if "corrupts" in self.flaws:
            data = bytes([data[0] ^ 1]) + data[1:]
        _scatter(self.container.translate(work.dst, work.nbytes, vfio.WRITE), data)


def _scatter(pieces: list[memoryview], data: bytes) -> None:
    at = 0
    for piece in pieces:
        piece[:] = data[at : at + len(piece)]
        at += len(piece)


class FakeDevmem(vfio.Bar):
    """BAR2 of a FakeAccelerator."""

    def __init__(self, accelerator: FakeAccelerator) -> None:
        self._accelerator = accelerator

    def read32(self, offset: int) -> int:
        return int.from_bytes(self._accelerator.devmem[offset : offset + 4], "little")


class FakeDevice(vfio.Device):
    """The PCI function around a FakeAccelerator."""

    def __init__(self, accelerator: FakeAccelerator) -> None:
        self._accelerator = accelerator
        self.flags = vfio.DEVICE_CAN_RESET

    def command(self) -> int:
        return vfio.COMMAND_MEMORY | (vfio.COMMAND_BUS_MASTER if self._accelerator.bus_master else 0)

    def set_command(self, *, on: int = 0, off: int = 0) -> int:
        self._accelerator.bus_master = bool((self.command() | on) & ~off & vfio.COMMAND_BUS_MASTER)
        if not self._accelerator.bus_master:
            self._accelerator.values[accel.ERROR] = accel.ERROR_BUS_MASTER_OFF
        return self.command()

    def nvectors(self) -> int:
        return 2

    def enable_msix(self, eventfds: list[int]) -> None:
        self._accelerator.events = list(eventfds)

    def disable_msix(self) -> None:
        self._accelerator.events = []

    def reset(self) -> None:
        if "reset-forgets" not in self._accelerator.flaws:
            self._accelerator.reset()


def fake_lab(*flaws: str) -> Lab:
    """A lab with an opened and started fake accelerator that has these flaws."""
    from guest_tests.payload.checks_open import read_registers
    from guest_tests.payload.lab import RING_IOVA

    chosen = frozenset(flaws)
    log = FakeLog()
    container = FakeContainer(chosen, log)
    accelerator = FakeAccelerator(container, chosen)
    lab = Lab(log)
    lab.bdf = "0000:01:00.0"
    lab.opened(container, FakeDevice(accelerator))
    lab.power_on = read_registers(accelerator)
    container.map(RING_IOVA, lab.ring, vfio.READ | vfio.WRITE)
    engine = accel.Accelerator(accelerator, lab.ring.memory, RING_IOVA)
    engine.start()
    lab.started(engine, accelerator, FakeDevmem(accelerator))
    return lab
