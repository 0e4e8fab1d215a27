"""4096 bytes of configuration space: values, write masks, write-1-to-clear masks, and the two capability lists.

A register that acts when it is written (FLR, PRI control, bus master) is a watched range: the masks decide what is
stored, then the watcher sees the value before and after and may correct it. Nothing here raises on what a guest does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vdev.pci.function import CONFIG_NBYTES, Bar
from vdev.wire import pci

CapabilityWatcher = Callable[["ConfigSpace", int, int, int], None]  # (config, capability offset, before, after)


@dataclass(frozen=True, slots=True)
class Identity:
    """What the header says the function is. `class_code` is the 24-bit base class, subclass, interface."""

    vendor: int
    device: int
    class_code: int
    revision: int = 1
    subsystem_vendor: int = 0
    subsystem: int = 0


@dataclass(frozen=True, slots=True)
class Field:
    """One register of a capability: power-on `value`, writable and write-1-to-clear bits; `sticky` survives an FLR."""

    offset: int
    nbytes: int
    value: int = 0
    writable: int = 0
    w1c: int = 0
    sticky: bool = False
    on_write: CapabilityWatcher | None = None


@dataclass(frozen=True, slots=True)
class Capability:
    """A capability before it has its place: the builder writes the header, `fields` the rest."""

    cap_id: int
    nbytes: int
    fields: tuple[Field, ...] = ()
    version: int = 1  # extended capabilities only


class ConfigSpace:
    """The configuration space of one type 0 function."""

    def __init__(self, identity: Identity, bars: tuple[Bar, ...]) -> None:
        """Raises ValueError for BARs that would make QEMU abort or that collide."""
        self._data = bytearray(CONFIG_NBYTES)
        self._power_on = bytearray(CONFIG_NBYTES)
        self._writable = bytearray(CONFIG_NBYTES)
        self._w1c = bytearray(CONFIG_NBYTES)
        self._sticky = bytearray(CONFIG_NBYTES)
        self._watchers: list[tuple[int, int, Callable[[int, int], None]]] = []
        self._offsets: dict[tuple[bool, int], int] = {}
        self._standard_end = pci.FIRST_CAPABILITY
        self._extended_end = pci.FIRST_EXTENDED
        self._last_link: dict[bool, int] = {}
        self._define_header(identity)
        self._define_bars(bars)

    def read(self, offset: int, nbytes: int) -> bytes:
        """`nbytes` bytes; what lies beyond the space is zero."""
        return bytes(self._data[offset : offset + nbytes]).ljust(nbytes, b"\0")

    def get(self, offset: int, nbytes: int) -> int:
        """The register as a number."""
        return int.from_bytes(self._data[offset : offset + nbytes], "little")

    def set(self, offset: int, nbytes: int, value: int) -> None:
        """Store from the device's side: masks and watchers do not apply."""
        self._data[offset : offset + nbytes] = value.to_bytes(nbytes, "little")

    def write(self, offset: int, data: bytes) -> None:
        """A driver's write of any width: masks first, then the watchers of every register it touched."""
        stop = min(offset + len(data), CONFIG_NBYTES)
        touched = [w for w in self._watchers if w[0] < stop and offset < w[0] + w[1]]
        before = [self.get(start, nbytes) for start, nbytes, _ in touched]
        for at in range(offset, stop):
            given, mask = data[at - offset], self._writable[at]
            kept = (self._data[at] & ~mask) | (given & mask)
            self._data[at] = kept & ~(given & self._w1c[at])
        for (start, nbytes, watcher), old in zip(touched, before, strict=True):
            watcher(old, self.get(start, nbytes))

    def reset(self, *, function_level: bool = False) -> None:
        """Back to power-on values; a function-level reset keeps the sticky bits."""
        if not function_level:
            self._data[:] = self._power_on
            return
        keep = int.from_bytes(self._sticky, "little")
        now = int.from_bytes(self._data, "little") & keep
        fresh = int.from_bytes(self._power_on, "little") & ~keep
        self._data[:] = (now | fresh).to_bytes(CONFIG_NBYTES, "little")

    def define(self, field: Field, base: int = 0) -> None:
        """Install a register at `base + field.offset`: its power-on value and masks."""
        start, stop = base + field.offset, base + field.offset + field.nbytes
        for store, value in (
            (self._data, field.value),
            (self._power_on, field.value),
            (self._writable, field.writable),
            (self._w1c, field.w1c),
            (self._sticky, (1 << 8 * field.nbytes) - 1 if field.sticky else 0),
        ):
            store[start:stop] = value.to_bytes(field.nbytes, "little")
        watcher = field.on_write
        if watcher is not None:
            self.watch(start, field.nbytes, lambda before, after: watcher(self, base, before, after))

    def watch(self, offset: int, nbytes: int, watcher: Callable[[int, int], None]) -> None:
        """Call `watcher(before, after)` after every driver's write that touches the register."""
        self._watchers.append((offset, nbytes, watcher))

    def add_capability(self, capability: Capability) -> int:
        """Append to the standard list; returns its offset. Raises ValueError when the 256 bytes are full."""
        offset = self._standard_end
        end = offset + _round_up(capability.nbytes, 4)
        if end > pci.STANDARD_NBYTES:
            raise ValueError(f"capability {capability.cap_id:#x} does not fit below {pci.STANDARD_NBYTES:#x}")
        self._link(False, self._last_link.get(False, pci.CAPABILITY_POINTER), offset)
        self.define(Field(0, 1, capability.cap_id), offset)
        self._place(capability, offset, extended=False)
        self._last_link[False] = offset + 1
        self._standard_end = end
        return offset

    def add_extended(self, capability: Capability) -> int:
        """Append to the extended list (it starts at 0x100); returns its offset. ValueError when full."""
        offset = self._extended_end
        # QEMU asserts at least 8 bytes between two extended capabilities: multiples of 8 give that for free.
        end = offset + _round_up(max(capability.nbytes, 8), 8)
        if end > CONFIG_NBYTES:
            raise ValueError(f"extended capability {capability.cap_id:#x} does not fit")
        if True in self._last_link:
            self._link(True, self._last_link[True], offset)
        self.define(Field(0, 4, capability.cap_id | capability.version << 16), offset)
        self._place(capability, offset, extended=True)
        self._last_link[True] = offset
        self._extended_end = end
        return offset

    def find(self, cap_id: int, *, extended: bool = False) -> int | None:
        """Offset of the first capability with that id, None when there is none."""
        return self._offsets.get((extended, cap_id))

    def _place(self, capability: Capability, offset: int, *, extended: bool) -> None:
        for field in capability.fields:
            self.define(field, offset)
        self._offsets.setdefault((extended, capability.cap_id), offset)

    def _link(self, extended: bool, at: int, target: int) -> None:
        if extended:
            word = self.get(at, 4) & 0x000FFFFF | target << 20
            self.define(Field(0, 4, word), at)
        else:
            self.define(Field(0, 1, target), at)

    def _define_header(self, identity: Identity) -> None:
        header = pci.Type0Header(
            vendor=identity.vendor,
            device=identity.device,
            command=0,
            status=pci.STATUS_CAPABILITIES,
            revision=identity.revision,
            class_code=identity.class_code.to_bytes(3, "little"),
            cache_line_size=0,
            latency_timer=0,
            header_type=0,
            bist=0,
            bars=bytes(4 * pci.BAR_COUNT),
            cardbus_cis=0,
            subsystem_vendor=identity.subsystem_vendor,
            subsystem=identity.subsystem,
            rom=0,
            capabilities=0,
            reserved=bytes(7),
            interrupt_line=0,
            interrupt_pin=0,  # MSI-X only: no INTx to emulate
            min_grant=0,
            max_latency=0,
        ).pack()
        self.define(Field(0, len(header), int.from_bytes(header, "little")))
        command = int(
            pci.Command.MEMORY
            | pci.Command.BUS_MASTER
            | pci.Command.PARITY
            | pci.Command.SERR
            | pci.Command.INTX_DISABLE
        )
        self.define(Field(pci.COMMAND, 2, writable=command))
        self.define(Field(pci.STATUS, 2, pci.STATUS_CAPABILITIES, w1c=pci.STATUS_ERRORS))
        self.define(Field(pci.CACHE_LINE_SIZE, 1, writable=0xFF))
        self.define(Field(pci.INTERRUPT_LINE, 1, writable=0xFF))

    def _define_bars(self, bars: tuple[Bar, ...]) -> None:
        taken: set[int] = set()
        for bar in bars:
            registers = {bar.index, bar.index + 1} if bar.is_64bit else {bar.index}
            if taken & registers or not registers <= set(range(pci.BAR_COUNT)):
                raise ValueError(f"BAR {bar.index} collides or does not exist")
            if bar.nbytes < 16 or bar.nbytes & (bar.nbytes - 1) or (not bar.is_64bit and bar.nbytes > 1 << 31):
                raise ValueError(f"BAR {bar.index}: {bar.nbytes:#x} bytes is not a power of two a BAR can have")
            taken |= registers
            nbytes = 4 * len(registers)
            flags = (pci.BAR_64BIT if bar.is_64bit else 0) | (pci.BAR_PREFETCHABLE if bar.prefetchable else 0)
            address_bits = ((1 << 8 * nbytes) - 1) & ~(bar.nbytes - 1)
            # Sticky: QEMU emulates the BARs and does not clear its copy on a guest's FLR, so neither do we.
            self.define(Field(pci.BAR0 + 4 * bar.index, nbytes, flags, writable=address_bits, sticky=True))


def _round_up(nbytes: int, multiple: int) -> int:
    return -(-nbytes // multiple) * multiple
