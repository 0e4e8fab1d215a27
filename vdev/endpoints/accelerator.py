"""The accelerator as a PCI function: BARs, capabilities, options, resets. Its registers and ring are in the engine.

BAR0 registers (docs/accelerator.md), BAR2 device memory, BAR4 MSI-X.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from vdev.endpoints.accelerator_engine import Engine
from vdev.endpoints.base import Bay, Options, OptionValue
from vdev.events import DeviceError, RegisterWritten, flag_words
from vdev.functions.base import Progress
from vdev.pci import capabilities
from vdev.pci.base import PciFunction
from vdev.pci.config_space import Capability, Identity
from vdev.pci.function import Bar
from vdev.pci.msix import MsixLayout
from vdev.wire import pci
from vdev.wire.accelerator import Control, ErrorCode, Register

VENDOR_ID = 0x1234
DEVICE_ID = 0x7664
CLASS_CODE = 0x088000  # base system peripheral, other

REGISTER_BAR, DEVMEM_BAR, MSIX_BAR = 0, 2, 4
BAR_NBYTES = 4096
VECTORS = 2

DEVMEM_DEFAULT = 1 << 20
DEVMEM_MIN = 1 << 12
DEVMEM_MAX = 1 << 26  # a function reset clears it in one go: some milliseconds at this size
LATENCY_MAX_US = 1_000_000  # bounds how long an answer of the IOMMU waits for an access in flight
NS_PER_US = 1000
ZEROS = memoryview(bytes(1 << 16))  # cleared piece by piece: to allocate the whole would take longer than to copy


class Accelerator(PciFunction):
    """A DMA engine with copy, fill, compare and checksum; implements `endpoints.base.Endpoint`."""

    in_linux: ClassVar[bool] = False
    option_help: ClassVar[Mapping[str, str]] = {
        "devmem": "size of the device memory in BAR2, a power of two in 4K..64M (default 1M)",
        "pasid_bits": "width of the PASID capability, 1..20; 0 leaves the capability out (default 20)",
        "pasid_execute": "whether it can request execution (default false)",
        "pasid_privileged": "whether it can request privilege (default false)",
        "ats": "whether there is an ATS capability (default true)",
        "latency": "microseconds from the translation of a slice of an operation to its bytes, 0..1000000 (default 0)",
        "pri": "whether there is a PRI capability; needs ats (default: as ats)",
    }

    def __init__(self, name: str, bay: Bay, options: Mapping[str, OptionValue]) -> None:
        """Raises ConfigError for a wrong option."""
        read = Options(name, options, self.option_help)
        devmem_nbytes = read.power_of_two_nbytes("devmem", DEVMEM_DEFAULT, DEVMEM_MIN, DEVMEM_MAX)
        latency_us = read.integer("latency", 0, 0, LATENCY_MAX_US)
        super().__init__(
            name,
            Identity(VENDOR_ID, DEVICE_ID, CLASS_CODE, subsystem_vendor=VENDOR_ID, subsystem=DEVICE_ID),
            (
                Bar(REGISTER_BAR, BAR_NBYTES),
                Bar(DEVMEM_BAR, devmem_nbytes, prefetchable=True),
                Bar(MSIX_BAR, BAR_NBYTES),
            ),
            MsixLayout(VECTORS, MSIX_BAR),
            extended=_extended_capabilities(read),
        )
        self._devmem = memoryview(bytearray(devmem_nbytes))
        self._wake, self._wake_at = bay.wake, bay.wake_at
        self._door = bay.open_door(self)
        self._engine = Engine(self, self._door, self._devmem, bay.ordering.release, latency_us * NS_PER_US)
        self._engine.on_error = self._error_raised
        self._door.diverted = self._engine.fly
        self._door.resumed = partial(bay.wake, self)

    def interrupt(self, vector: int) -> None:
        """An MSI-X message is a memory write: without bus mastering there is none."""
        if self.dma_enabled:
            self.signal(vector)

    def run_slice(self, now_ns: int) -> Progress:
        """At most one slice of DMA."""
        if not self.dma_enabled:
            self._engine.stop(ErrorCode.BUS_MASTER_OFF)
        if self._door.frozen:
            return Progress.IDLE
        self._engine.run(now_ns)
        if self._engine.lands_ns is not None:
            if not self._engine.waits:
                self._wake_at(self, self._engine.lands_ns)
            return Progress.IDLE
        return Progress.BUSY if self._engine.has_work else Progress.IDLE

    def freeze(self, frozen: bool) -> None:
        """Hold all DMA where it is (QMP `stop`), or let it go on; the guest notices nothing."""
        self._door.frozen = frozen
        if frozen:
            self._engine.give_back()  # nobody knows for how long, and somebody may wait for it
        if not self._engine.has_work:
            return
        if frozen:
            self._door.count_untried("frozen")
        else:
            self._wake(self)

    def describe(self) -> dict[str, int | bool]:
        """State for queries: plain data."""
        registers = self._engine.registers
        return {
            "running": registers.running,
            "halted": registers.halted,
            "ring_head": registers.ring_head,
            "ring_tail": registers.ring_tail,
            "error": registers.error,
            "completed": registers.completed,
            "faulted": registers.faulted,
        }

    def read_register(self, bar: int, offset: int, nbytes: int) -> bytes:
        """Registers by their rules; device memory at any width."""
        if bar == REGISTER_BAR:
            return self._engine.registers.read(offset, nbytes)
        if bar == DEVMEM_BAR:
            return bytes(self._devmem[offset : offset + nbytes])
        return bytes(nbytes)

    def write_register(self, bar: int, offset: int, data: bytes) -> None:
        """Registers by their rules; device memory at any width."""
        if bar == DEVMEM_BAR:
            self._devmem[offset : offset + len(data)] = data
        elif bar == REGISTER_BAR:
            if self.trace is not None:
                self.trace(_register_written(self.name, offset, data))
            had_work = self._engine.has_work
            self._engine.write(offset, data)
            if self._engine.has_work:
                if self._door.frozen and not had_work:
                    self._door.count_untried("frozen")
                self._wake(self)

    def _error_raised(self, code: ErrorCode, iova: int) -> None:
        if self.trace is not None:
            self.trace(DeviceError(self.name, code.name, iova))

    def on_reset(self) -> None:
        """Registers to power-on values; device memory too, so that no later owner reads what an earlier one left."""
        self._engine.reset()
        for at in range(0, len(self._devmem), len(ZEROS)):
            self._devmem[at : at + len(ZEROS)] = ZEROS[: len(self._devmem) - at]

    def retire(self) -> None:
        """Device memory may be large."""
        self._devmem.release()

    def on_bus_master(self, enabled: bool) -> None:
        """Without bus mastering the engine halts; the driver enables it again."""
        if not enabled:
            if self._engine.has_work:
                self._door.count_untried("bus-master-off")
            self._engine.stop(ErrorCode.BUS_MASTER_OFF)

    def on_pasid_rights_lost(self) -> None:
        """Nothing in flight lands: it is translated anew, and what needs the right is refused then."""
        self._engine.give_back()
        if self._engine.has_work and not self._door.frozen:
            self._wake(self)

    def on_kernel_pasid(self, pasid: int) -> None:
        """KERNEL_PASID shows it."""
        self._engine.registers.kernel_pasid = pasid

    def on_quiesce(self) -> None:
        """The IOMMU is about to be reset and old IOVAs mean nothing any more; ENABLE starts the engine again."""
        self._engine.stop(ErrorCode.STOPPED)


def _register_written(function: str, offset: int, data: bytes) -> RegisterWritten:
    value = int.from_bytes(data, "little")
    base = max((register for register in Register if register <= offset), default=Register.ID)
    name = base.name + (f"+{offset - base:#x}" if offset != base else "")
    return RegisterWritten(function, name, value, flag_words(Control(value)) if base is Register.CONTROL else "")


def _extended_capabilities(read: Options) -> tuple[Capability, ...]:
    """AER, then what the options ask for. No ACS: that is for functions with peers in one device."""
    ats = read.boolean("ats", True)
    pri = read.boolean("pri", ats)
    if pri and not ats:
        raise read.error("pri", "needs ats", "set ats: true, or pri: false")
    pasid_bits = read.integer("pasid_bits", pci.PASID_WIDTH_MAX, 0, pci.PASID_WIDTH_MAX)
    execute, privileged = read.boolean("pasid_execute", False), read.boolean("pasid_privileged", False)
    if not pasid_bits and (execute or privileged):
        raise read.error(
            "pasid_execute" if execute else "pasid_privileged", "needs a PASID capability", "set pasid_bits"
        )
    out = [capabilities.aer()]
    if ats:
        out.append(capabilities.ats())
    if pri:
        out.append(capabilities.pri())
    if pasid_bits:
        out.append(capabilities.pasid(pasid_bits, execute=execute, privileged=privileged))
    return tuple(out)
