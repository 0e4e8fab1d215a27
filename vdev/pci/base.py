"""`PciFunction`: what every function of ours shares. Subclasses implement the hooks at the end.

Gates, from outermost to innermost: a surprise-removed function answers all-ones; DMA needs bus master on and the
function not stopped. QEMU itself gates BAR accesses by memory enable, so `memory_enabled` only informs.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntFlag
from functools import partial

from vdev.events import FunctionReset, InterruptRaised, RegisterWritten, Trace, flag_words
from vdev.memory import RegionTable
from vdev.pci import capabilities
from vdev.pci.config_space import Capability, ConfigSpace, Identity
from vdev.pci.function import Bar, Interrupts
from vdev.pci.msix import MsixLayout, MsixTable, PendingBits
from vdev.wire import pci

# Control registers in extended capabilities whose changes are traced: capability, offset, name, flags.
_TRACED_CONTROLS: tuple[tuple[int, int, str, type[IntFlag]], ...] = (
    (pci.ExtCapId.ATS, pci.ATS_CONTROL, "ats_control", pci.AtsControl),
    (pci.ExtCapId.PRI, pci.PRI_CONTROL, "pri_control", pci.PriControl),
    (pci.ExtCapId.PASID, pci.PASID_CONTROL, "pasid_control", pci.PasidControl),
)

_MSIX_BITS = pci.MSIX_ENABLE | pci.MSIX_FUNCTION_MASK  # the rest is the table's size


_SNAPSHOT_NBYTES = 64  # a read that long is QEMU's, of everything at once; guests read 4 bytes at most


def _ignore_vector(vector: int) -> None:
    """Until the transport connects there is nobody to interrupt."""


def _ignore_message(vector: int, address: int, data: int) -> None:
    """Likewise."""


def _untranslated(address: int) -> int:
    """Messages go where the driver says."""
    return address


def _ignore_reset() -> None:
    """Nobody else keeps state about the function."""


class PciFunction:
    """A PCI Express endpoint function; implements `function.Function`.

    `memory` is this connection's view of guest RAM and `raise_vector` its interrupts; both belong to the transport.
    `was_reset` is called after every reset, for whoever keeps state about the function: a crashed worker may run again.
    `was_device_reset` is called after those QEMU asked for by DEVICE_RESET, which a function-level reset is not.
    `was_sized` is called when somebody asks how large a BAR is: the guest goes through its devices (QEMU never asks).
    """

    def __init__(
        self,
        name: str,
        identity: Identity,
        bars: tuple[Bar, ...],
        msix: MsixLayout,
        *,
        standard: tuple[Capability, ...] = (),
        extended: tuple[Capability, ...] = (),
    ) -> None:
        """`standard` and `extended` follow the PCIe and MSI-X capabilities; ValueError for a layout QEMU dies of."""
        self.name = name
        self.bars = bars
        self.msix_vectors = msix.vectors
        self.memory = RegionTable()
        self.raise_vector: Callable[[int], None] = _ignore_vector
        self.raise_message: Callable[[int, int, int], None] = _ignore_message  # vector, address, data
        self.void_messages: Callable[[], None] = _ignore_reset
        self.msix_table: MsixTable | None = None  # None: QEMU has it
        self.translate_message: Callable[[int], int | None] = _untranslated  # of a table of ours; None: refused
        self.was_reset: Callable[[], None] = _ignore_reset
        self.was_device_reset: Callable[[], None] = _ignore_reset
        self.was_sized: Callable[[], None] = _ignore_reset
        self.trace: Trace | None = None
        # Injected faults: in front of interrupts, and what a read at an offset of BAR 0 shows in place of what is there
        self.interrupts: Interrupts | None = None
        self.registers: Callable[[int, bytes], bytes] | None = None
        self.config = ConfigSpace(identity, bars)
        self.removed = False  # surprise removal: all-ones on a live connection
        self.stopped = False
        self._sizes = {bar.index: bar.nbytes for bar in bars}
        if self._sizes.get(msix.bar, 0) < max(msix.table_stop, msix.pba_stop):
            raise ValueError(f"MSI-X table or PBA leaves BAR {msix.bar}")
        self._msix = msix
        self._pending = PendingBits(msix.vectors)
        self._add_capabilities(standard, extended)
        for bar in bars:
            address_bits = -bar.nbytes & 0xFFFFFFFF  # of the lower half
            self.config.watch(pci.BAR0 + 4 * bar.index, 4, partial(self._bar_written, address_bits))
        self._was_bus_master = False

    def _add_capabilities(self, standard: tuple[Capability, ...], extended: tuple[Capability, ...]) -> None:
        config, layout = self.config, self._msix
        self._pcie = config.add_capability(capabilities.pcie_endpoint())
        table, pba = (layout.bar, layout.table_offset), (layout.bar, layout.pba_offset)
        self._msix_control = config.add_capability(capabilities.msix(layout.vectors, table, pba)) + pci.MSIX_CONTROL
        self.standard_offsets = tuple(config.add_capability(capability) for capability in standard)
        for capability in extended:
            config.add_extended(capability)
        config.watch(pci.COMMAND, 2, self._command_written)
        config.watch(self._pcie + pci.DEVCTL, 2, self._devctl_written)
        config.watch(self._msix_control, 2, self._msix_control_written)
        for cap_id, register, name, flags in _TRACED_CONTROLS:
            at = config.find(cap_id, extended=True)
            if at is not None:
                config.watch(at + register, 2, partial(self._trace_change, name, flags))
        self._pasid = config.find(pci.ExtCapId.PASID, extended=True)
        self._pasid_capability = 0
        if self._pasid is not None:
            self._pasid_capability = config.get(self._pasid + pci.PASID_CAPABILITY, 2)
            config.watch(self._pasid + pci.PASID_CONTROL, 2, self._pasid_control_written)

    @property
    def dma_enabled(self) -> bool:
        """Whether the function may reach memory now."""
        return self.bus_master and not self.stopped and not self.removed

    @property
    def bus_master(self) -> bool:
        """The bus master bit."""
        return bool(self.config.get(pci.COMMAND, 2) & pci.Command.BUS_MASTER)

    @property
    def memory_enabled(self) -> bool:
        """The memory space bit: whether its BARs answer on the bus."""
        return bool(self.config.get(pci.COMMAND, 2) & pci.Command.MEMORY) and not self.removed

    @property
    def pasid_control(self) -> int:
        """What the driver has enabled, `wire.pci.PasidControl`; 0 without a PASID capability."""
        return 0 if self._pasid is None else self.config.get(self._pasid + pci.PASID_CONTROL, 2)

    @property
    def pasid_rights(self) -> int:
        """What the driver can enable beside PASIDs as such: PASID_EXECUTE, PASID_PRIVILEGED."""
        return self._pasid_capability & (pci.PASID_EXECUTE | pci.PASID_PRIVILEGED)

    @property
    def pasid_bits(self) -> int:
        """The width of the PASID capability; 0 for none."""
        return self._pasid_capability >> pci.PASID_WIDTH_SHIFT

    @property
    def ats_enabled(self) -> bool:
        """Whether an ATS capability is there and enabled."""
        return self._control_bit(pci.ExtCapId.ATS, pci.ATS_CONTROL, pci.ATS_ENABLE)

    @property
    def pri_enabled(self) -> bool:
        """Whether a PRI capability is there and enabled."""
        return self._control_bit(pci.ExtCapId.PRI, pci.PRI_CONTROL, pci.PRI_ENABLE)

    def _control_bit(self, cap_id: int, register: int, bit: int) -> bool:
        offset = self.config.find(cap_id, extended=True)
        return offset is not None and bool(self.config.get(offset + register, 2) & bit)

    def keep_msix_table(self) -> None:
        """From now on MSI-X is between the guest and us: to be called before QEMU connects.

        QEMU is shown a vendor-specific capability in the place of MSI-X. It finds capabilities in the one long read it
        begins with, keeps only the links between them, and passes a guest's reads of the rest on to us.
        """
        self.msix_table = MsixTable(self.msix_vectors)

    def config_read(self, offset: int, nbytes: int) -> bytes:
        """Any width, also QEMU's 4096 bytes at once; zeros beyond the space."""
        if self.removed:
            return b"\xff" * nbytes
        data = self.config.read(offset, nbytes)
        at = self._msix_control - pci.MSIX_CONTROL - offset
        if self.msix_table is None or nbytes < _SNAPSHOT_NBYTES or not 0 <= at < nbytes:
            return data
        return data[:at] + bytes([pci.CapId.VENDOR]) + data[at + 1 :]

    def config_write(self, offset: int, data: bytes) -> None:
        """Any width; masks and side effects apply before this returns."""
        if not self.removed:
            self.config.write(offset, data)

    def bar_read(self, bar: int, offset: int, nbytes: int) -> bytes:
        """Exactly `nbytes` bytes; zeros outside the BAR."""
        if self.removed:
            return b"\xff" * nbytes
        inside = min(nbytes, self._sizes.get(bar, 0) - offset)
        if inside <= 0:
            return bytes(nbytes)
        if bar == self._msix.bar:
            if self._msix.pba_offset <= offset < self._msix.pba_stop:
                return self._pending.read(offset - self._msix.pba_offset, nbytes)
            if self._msix.table_offset <= offset < self._msix.table_stop:
                table = self.msix_table
                return bytes(nbytes) if table is None else table.read(offset - self._msix.table_offset, nbytes)
        shown = self.read_register(bar, offset, inside)[:inside].ljust(nbytes, b"\0")
        return shown if self.registers is None or bar else self.registers(offset, shown)

    def bar_write(self, bar: int, offset: int, data: bytes) -> None:
        """Writes outside the BAR, to the PBA, and to an MSI-X table that is QEMU's, are dropped."""
        inside = min(len(data), self._sizes.get(bar, 0) - offset)
        if self.removed or inside <= 0:
            return
        if bar == self._msix.bar:
            if self._msix.pba_offset <= offset < self._msix.pba_stop:
                return
            if self._msix.table_offset <= offset < self._msix.table_stop:
                if self.msix_table is not None:
                    self.msix_table.write(offset - self._msix.table_offset, data[:inside])
                    self._send_pending()
                return
        self.write_register(bar, offset, data[:inside])

    def signal(self, vector: int) -> None:
        """Interrupt the driver. QEMU remembers a masked vector and delivers it later; we only show it pending.

        A message is a memory write, so without bus master there is none.
        """
        if not 0 <= vector < self.msix_vectors or self.removed or not self.bus_master:
            return
        if self.interrupts is None or not self.interrupts.take(vector):
            self.deliver(vector)

    def deliver(self, vector: int) -> None:
        """As `signal`, past whatever faults are injected there."""
        if self.removed or not self.bus_master:
            return
        if self.msix_table is not None:
            self._send(vector, self.msix_table)
            return
        if self.config.get(self._msix_control, 2) & pci.MSIX_FUNCTION_MASK:
            self._pending.set(vector)
        self.raise_vector(vector)
        if self.trace is not None:
            self.trace(InterruptRaised(self.name, vector))

    def _send(self, vector: int, table: MsixTable) -> None:
        """The message of `vector`, or its pending bit while it is masked."""
        control = self.config.get(self._msix_control, 2)
        if not control & pci.MSIX_ENABLE:
            return
        message = None if control & pci.MSIX_FUNCTION_MASK else table.message(vector)
        if message is None:
            self._pending.set(vector)
            return
        address = self.translate_message(message[0])
        if address is None:
            return  # lost, as any write that the IOMMU refuses
        self.raise_message(vector, address, message[1])
        if self.trace is not None:
            self.trace(InterruptRaised(self.name, vector))

    def _send_pending(self) -> None:
        """Something may be masked no longer."""
        for vector in range(self.msix_vectors):
            if self._pending.take(vector):
                self.deliver(vector)  # still masked: it is pending again

    def stop_dma(self) -> None:
        """Refuse DMA until the driver turns bus master on again or the function is reset."""
        self.stopped = True
        self._bus_master_may_have_changed()

    def quiesce(self) -> None:
        """The IOMMU in front of this function is about to be reset: no DMA of it may outlive this call."""
        self.on_quiesce()

    def reset(self) -> None:
        """DEVICE_RESET: power-on values, DMA off first, then `on_system_reset`."""
        self._reset(function_level=False)
        self.was_device_reset()

    def function_level_reset(self) -> None:
        """FLR: power-on values but for what is sticky, DMA off first, then `on_reset`."""
        self._reset(function_level=True)

    def remove(self) -> None:
        """Surprise removal on a live connection: all-ones from now on, no DMA that lands afterwards, no interrupt."""
        self.removed = True
        self._bus_master_may_have_changed()

    def bring_back(self) -> None:
        """As after power-on, but where it was: QEMU has the BARs."""
        bars = self.config.read(pci.BAR0, 4 * pci.BAR_COUNT)
        self.removed = False
        self._reset(function_level=False, kind="power-on")
        self.config.set(pci.BAR0, len(bars), int.from_bytes(bars, "little"))

    def memory_changed(self) -> None:
        """The transport changed `memory`; override where views are cached."""

    def disconnected(self) -> None:
        """The connection is gone; what comes back, if anything does, is a machine that starts anew."""
        self._reset(function_level=False)

    def _reset(self, *, function_level: bool, kind: str = "system") -> None:
        if self.trace is not None:
            self.trace(FunctionReset(self.name, "function-level" if function_level else kind))
        self.config.reset(function_level=function_level)
        self.stopped = False
        self.forget_interrupts()
        if self.msix_table is not None:
            self.msix_table.reset()
        self._bus_master_may_have_changed()
        if function_level:
            self.on_reset()
        else:
            self.on_system_reset()
        self.was_reset()

    def forget_interrupts(self) -> None:
        """None of before comes any more."""
        self._pending.clear()
        if self.interrupts is not None:
            self.interrupts.forget()

    def _trace_change(self, name: str, flags: type[IntFlag], before: int, after: int) -> None:
        if self.trace is not None and before != after:
            self.trace(RegisterWritten(self.name, name, after, flag_words(flags(after))))

    def _command_written(self, before: int, after: int) -> None:
        if (before ^ after) & pci.Command.BUS_MASTER:  # firmware sizes BARs with the memory bit: of no interest
            self._trace_change("command", pci.Command, before, after)
        if after & pci.Command.BUS_MASTER:
            self.stopped = False
        self._bus_master_may_have_changed()

    def _bus_master_may_have_changed(self) -> None:
        enabled = self.dma_enabled
        if enabled != self._was_bus_master:
            self._was_bus_master = enabled
            if not enabled:
                self.void_messages()  # also those of before a function-level reset
            self.on_bus_master(enabled)

    def _bar_written(self, address_bits: int, before: int, after: int) -> None:
        """All ones ask for the size (PCI, 6.2.5.1). No address looks like that: it would end where the space does."""
        if after & address_bits == address_bits:
            self.was_sized()

    def _devctl_written(self, before: int, after: int) -> None:
        if after & pci.DEVCTL_FLR:
            self.function_level_reset()

    def _pasid_control_written(self, before: int, after: int) -> None:
        if before & ~after:
            self.on_pasid_rights_lost()

    def _msix_control_written(self, before: int, after: int) -> None:
        self._trace_change("msix_control", pci.MsixControl, before & _MSIX_BITS, after & _MSIX_BITS)
        if self.msix_table is not None and after & pci.MSIX_ENABLE:
            self._send_pending()
        elif not after & pci.MSIX_FUNCTION_MASK:
            self._pending.clear()

    # Hooks. None may block or raise on what a guest wrote.

    def on_reset(self) -> None:
        """Any reset, DMA is off already: registers to power-on values."""

    def on_system_reset(self) -> None:
        """The whole machine and not only this function was reset; for most functions that is the same."""
        self.on_reset()

    def retire(self) -> None:
        """The function is gone for good and never used again: let go of large memory, which cycles would keep."""

    def on_bus_master(self, enabled: bool) -> None:
        """`dma_enabled` changed to `enabled`."""

    def on_pasid_rights_lost(self) -> None:
        """The driver took back something of the PASID capability's control: what it let through may not land."""

    def on_kernel_pasid(self, pasid: int) -> None:
        """The host has attached `pasid` for what the guest's kernel maps for this function; 0: it has none."""

    def on_quiesce(self) -> None:
        """Stop DMA for an IOMMU reset. The safe default is the gate; a function that can abort its work and be
        started again by its own registers overrides this."""
        self.stop_dma()

    def read_register(self, bar: int, offset: int, nbytes: int) -> bytes:
        """`nbytes` bytes inside the BAR, never the MSI-X table or PBA."""
        return bytes(nbytes)

    def write_register(self, bar: int, offset: int, data: bytes) -> None:
        """A write inside the BAR, never the MSI-X table or PBA."""
