"""What needs an endpoint: probes of QEMU's own device with its iommu-testdev, which writes four bytes, behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from guest_tests.payload.bar import Registers
from guest_tests.payload.direct import READ, WRITE, DmaBuffer, Viommu
from guest_tests.payload.direct.wire import Fault, Reason
from tests.qtest.asker import MSI, joined
from tests.qtest.machine import qtest_machine
from tests.qtest.subjects import QEMU, QEMU_BDF, QEMU_DEVICE, Subject

NEEDED = 11  # the first QEMU with an iommu-testdev
_BDF, ENDPOINT = "00:05.0", 0x28
IOVA, PAGE = 0x1000, 4096
# Registers of iommu-testdev.
_TRIGGER, _IOVA_LOW, _IOVA_HIGH, _NBYTES, _RESULT, _ARM, _ATTRIBUTES, _GPA_LOW, _GPA_HIGH = (
    0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18, 0x1C, 0x20,
)  # fmt: skip
_WORDS = {0: "written", 0xDEAD0002: "refused", 0xDEAD0004: "lost"}


@dataclass(slots=True)
class Writer:
    """The open IOMMU, the test device's registers, and memory it is to write to; `bypass` is 0."""

    viommu: Viommu
    registers: Registers
    buffer: DmaBuffer

    def write(self, iova: int, gpa: int | None = None) -> str:
        """Write four bytes at `iova`; whether they came to `gpa`, by default the buffer's, and the faults."""
        result = self.send(iova, self.buffer.gpa if gpa is None else gpa)
        return " ".join([_WORDS.get(result, hex(result)), *map(fault_words, self.viommu.faults())])

    def send(self, iova: int, gpa: int) -> int:
        """Write four bytes at `iova`, read them back at `gpa`; the device's result."""
        for register, value in (
            (_IOVA_LOW, iova & 0xFFFFFFFF), (_IOVA_HIGH, iova >> 32), (_NBYTES, 4),
            (_GPA_LOW, gpa & 0xFFFFFFFF), (_GPA_HIGH, gpa >> 32), (_ATTRIBUTES, 0), (_ARM, 1),
        ):  # fmt: skip
            self.registers.write32(register, value)
        self.registers.read32(_TRIGGER)
        return self.registers.read32(_RESULT)

    def map(self, access: int) -> None:
        """ATTACH to domain 1, MAP the buffer's page at IOVA."""
        self.viommu.attach(domain=1, endpoint=ENDPOINT)
        self.viommu.map(domain=1, iova=IOVA, gpa=self.buffer.gpa, nbytes=PAGE, access=access)


def fault_words(fault: Fault) -> str:
    """A report in words."""
    reason = fault.reason.name if isinstance(fault.reason, Reason) else str(fault.reason)
    flags = fault.access.name or "neither READ nor WRITE"
    return f"({reason}, {flags}, {'no address' if fault.address is None else 'address'})"


@contextmanager
def writer(directory: Path) -> Iterator[tuple[Subject, Registers]]:
    """A machine with both devices."""
    devices = (*QEMU_DEVICE, "-device", f"iommu-testdev,addr={_BDF[3:]}")
    with qtest_machine(directory, devices) as machine:
        subject = Subject.at(QEMU, machine, QEMU_BDF, ENDPOINT)
        yield subject, machine.function(_BDF).bar(0)


def dma_answer(subject: Subject, registers: Registers, id: str) -> str:
    """What QEMU's device does in probe `id`."""
    with subject.open() as viommu, subject.machine.pool.alloc() as buffer:
        viommu.bypass = False
        return DMA_PROBES[id](Writer(viommu, registers, buffer))


def _d14(w: Writer) -> str:
    """DMA of an endpoint that was detached, `bypass` 0; `bypass` 1"""
    blocked = w.write(w.buffer.gpa)
    w.viommu.bypass = True
    return joined(blocked, w.write(w.buffer.gpa))


def _d28(w: Writer) -> str:
    """MAP, DMA write, DETACH, DMA write, `bypass` 0"""
    w.map(READ | WRITE)
    before = w.write(IOVA)
    w.viommu.detach(domain=1, endpoint=ENDPOINT)
    return joined(before, w.write(IOVA))


def _d35(w: Writer) -> str:
    """DMA write through a mapping with READ alone"""
    w.map(READ)
    return w.write(IOVA)


def _d37(w: Writer) -> str:
    """DMA write at an offset into a mapping; at its end"""
    w.map(READ | WRITE)
    return joined(w.write(IOVA + 0x124, w.buffer.gpa + 0x124), w.write(IOVA + PAGE))


def _d57(w: Writer) -> str:
    """The reserved bytes of a report, in hexadecimal"""
    w.map(READ)
    return _of_report(w, lambda raw: raw[1:4].hex() + " " + raw[12:16].hex())


def _d58(w: Writer) -> str:
    """The flags of the report of a refused write"""
    w.map(READ)
    return _of_report(w, lambda raw: f"{int.from_bytes(raw[4:8], 'little'):#x}")


def _d59(w: Writer) -> str:
    """The endpoint in a report, that of the device being 0x28"""
    w.map(READ)
    return _of_report(w, lambda raw: f"{int.from_bytes(raw[8:12], 'little'):#x}")


def _of_report(w: Writer, words: Callable[[bytes], str]) -> str:
    """Words for what the last refused write was reported with."""
    w.send(IOVA, w.buffer.gpa)
    return joined(*(words(fault.raw) for fault in w.viommu.faults()))


def _d60(w: Writer) -> str:
    """The report of an access that no mapping covers"""
    w.map(READ)
    return w.write(IOVA + 8 * PAGE)


def _g22(w: Writer) -> str:
    """DMA write of the last two bytes of a mapping and of two behind it"""
    w.map(READ | WRITE)
    return w.write(IOVA + PAGE - 2, w.buffer.gpa + PAGE - 2)


def _g21(w: Writer) -> str:
    """DMA write to the MSI region, attached: reported?"""
    w.map(READ)
    return "reported" if "(" in w.write(MSI) else "not reported"


DMA_PROBES: dict[str, Callable[[Writer], str]] = {
    "D14": _d14, "D28": _d28, "D35": _d35, "D37": _d37, "D57": _d57, "D58": _d58, "D59": _d59, "D60": _d60,
    "G21": _g21, "G22": _g22,
}  # fmt: skip
