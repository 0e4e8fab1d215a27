"""The accelerator as its driver sees it: descriptors, registers, mappings that change under its DMA.

The function with its real door and IOMMU engine, 16 KiB of RAM. Input: one byte chooses granule and options, then
moves (`_MOVES`). Besides that nothing raises: the engine comes to rest, its registers keep to their ranges, it stores
only where a mapping of its domain, or of a pair's that its PASID capability lets it use, lets it write, or did when
what is in flight was translated, and nothing at all while it is halted, frozen or off the bus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.fuzz.reader import WORD, Reader
from tests.support.bay import bay
from tests.support.pasid_allocator import PlainAllocator
from vdev.endpoints.accelerator import Accelerator
from vdev.functions.base import Progress, Worker
from vdev.functions.dma import DmaDoor
from vdev.iommu.engine import Engine
from vdev.iommu.pasid_set import PasidSet
from vdev.iommu.settings import EndpointSettings, Limits, PasidSettings, ReservedRegion, UnitSettings
from vdev.memory import Region
from vdev.pci.base import PciFunction
from vdev.wire import accelerator as acc
from vdev.wire import pci
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire

PAGE = 0x1000
RAM_GPA, PAGES = 0x10_0000, 4
RAM_NBYTES = PAGES * PAGE
RING, COMPLETIONS = 0x0, 0x1000  # IOVAs: the first two pages
RING_SIZE = 8
ENDPOINT = 0x100
MASTER = int(pci.Command.MEMORY | pci.Command.BUS_MASTER).to_bytes(2, "little")
MEMORY_ONLY = int(pci.Command.MEMORY).to_bytes(2, "little")
MSI = ReservedRegion(0x8000, 0x9000, is_msi=True)
PASIDS, PASID_ONLY = 32, 64  # bits of the first byte
MAX_SLICES = 8192
MAX_RUNS = 32
REGISTERS = tuple(acc.Register)
_Request = wire.Attach | wire.Detach | wire.Map | wire.Unmap | pasid_wire.AttachPasid | pasid_wire.DetachPasid
SIZES = (1, 7, 64, 256, PAGE, PAGE + 1, 3 * PAGE, 0, acc.MAX_OPERATION_NBYTES, acc.MAX_OPERATION_NBYTES + 1, WORD)
FAR = (WORD, WORD - PAGE + 1, 1 << 63, 1 << 32, MSI.start, MSI.stop - 8)


class Scene:
    """An accelerator, its IOMMU, its RAM and what is checked of them."""

    def __init__(self, kind: int) -> None:
        settings = UnitSettings(
            "unit",
            page_size_mask=(1 << 64) - (1 if kind & 1 else PAGE),
            boot_bypass=bool(kind & 2),
            pasids=bool(kind & PASIDS),
            limits=Limits(max_mappings=16, max_pending_faults=4),
        )
        pasid = PasidSettings(execute=True) if kind & PASIDS else None
        self.allocator = PlainAllocator()
        self.engine = Engine(
            settings, [EndpointSettings(ENDPOINT, "accel", (MSI,), pasid=pasid)], pasids=PasidSet(self.allocator)
        )
        self.engine.set_features(-1)
        self.ram = memoryview(bytearray(RAM_NBYTES))
        self.now_ns = self.runs = 0
        self.due_ns = 0
        latency = 5 if kind & 16 else 0
        options: dict[str, int | str | bool] = {"devmem": PAGE, "pasid_bits": 0 if kind & 4 else 20, "latency": latency}
        options["pasid_execute"] = not kind & 4
        self.moves = _MOVES + _PASID_MOVES if kind & PASIDS else _MOVES
        self.function = Accelerator("accel", bay(self._door, wake_at=self._wake_at), options)
        self.function.memory.add(Region(RAM_GPA, RAM_NBYTES, self.ram))
        self.function.raise_vector = self._interrupted
        self.door: DmaDoor
        self._set_up(0 if kind & 8 else 2 if kind & PASIDS else PAGES)
        self.door.pasid_only = bool(kind & PASID_ONLY)
        if kind & PASIDS:
            self._set_up_pasids()

    def _door(self, function: PciFunction) -> DmaDoor:
        self.door = DmaDoor(self.engine, ENDPOINT, function)
        return self.door

    def _wake_at(self, worker: Worker, when_ns: int) -> None:
        self.due_ns = when_ns

    def _interrupted(self, vector: int) -> None:
        assert 0 <= vector < self.function.msix_vectors
        assert self.function.bus_master, "an interrupt without bus master"

    def _set_up(self, pages: int) -> None:
        """Bus master on, a domain, its first pages mapped to RAM, the ring's registers written and ENABLE set."""
        self.function.config_write(pci.COMMAND, MASTER)
        if pages:
            self._ask(wire.Attach(wire.T_ATTACH, bytes(3), 1, ENDPOINT))
            self._ask(wire.Map(wire.T_MAP, bytes(3), 1, 0, pages * PAGE - 1, RAM_GPA, 3))
        self.enable(Reader(b""))

    def _set_up_pasids(self) -> None:
        """PASIDs enabled, 1 attached to a domain with the half of RAM that the RID lacks, 2 mirroring, 3 only had."""
        self.config(Reader(b"\3"))
        for choice in (0, 0, 0):
            self.pasids(Reader(bytes([choice])))
        self.pair(Reader(bytes([0x10])))
        self.pair(Reader(bytes([0x09])))
        gpa = RAM_GPA + 2 * PAGE
        self._ask(wire.Map(wire.T_MAP, bytes(3), 3, 2 * PAGE, PAGES * PAGE - 1, gpa, 3))

    def _ask(self, request: _Request) -> None:
        assert len(self.engine.handle(request.pack(), 4)) == wire.TAIL_NBYTES
        self.engine.wait = None

    # what a driver does

    def enable(self, given: Reader) -> None:
        """The ring's registers as a driver writes them, or one of them a little off."""
        off, by = given.byte() % 5, given.byte()
        values = {acc.Register.RING_BASE: RING, acc.Register.COMPLETION_BASE: COMPLETIONS}
        self._write(acc.Register.CONTROL, 0)
        for index, (register, value) in enumerate(values.items()):
            self._write64(register, value + (by << 6 if off == index + 1 else 0))
        size = by if by & 0x80 else 1 << by % 12
        self._write(acc.Register.RING_SIZE, size if off == 3 else RING_SIZE)
        self._write(acc.Register.CONTROL, int(acc.Control.ENABLE | acc.Control.IRQ_ENABLE))

    def _write(self, register: int, value: int) -> None:
        self.function.bar_write(0, register, value.to_bytes(4, "little"))

    def _write64(self, register: int, value: int) -> None:
        self.function.bar_write(0, register, value.to_bytes(8, "little"))

    def write_register(self, given: Reader) -> None:
        """Any register, four or eight bytes, any value."""
        choice, nbytes = given.byte(), 8 if given.byte() & 1 else 4
        self.function.bar_write(0, REGISTERS[choice % len(REGISTERS)], given.number(nbytes).to_bytes(nbytes, "little"))

    def describe(self, given: Reader) -> None:
        """A descriptor in the ring as it lies in RAM."""
        index, op, flags = given.byte(), given.byte(), given.byte()
        src, dst, nbytes = _iova(given), _iova(given), SIZES[given.byte() % len(SIZES)]
        pasid = given.byte() if flags & acc.Flag.PASID_VALID else 0
        reserved = bytes([flags >> 7]) + bytes(23)
        entry = acc.Descriptor(op % 6, flags & 0x7F, index, pasid, src, dst, nbytes, 0x0706050403020100, reserved)
        at = index % RING_SIZE * acc.DESCRIPTOR_NBYTES
        self.ram[at : at + acc.DESCRIPTOR_NBYTES] = entry.pack()

    def ring_bell(self, given: Reader) -> None:
        """RING_TAIL."""
        self._write(acc.Register.RING_TAIL, given.byte() & 0x0F)

    def write_ram(self, given: Reader) -> None:
        """Any bytes anywhere in RAM."""
        at, data = given.number(2) % RAM_NBYTES, given.take(given.byte() % 65)
        self.ram[at : at + len(data)] = data[: RAM_NBYTES - at]

    def map(self, given: Reader) -> None:
        """A page or a piece of one, to RAM or past its end, with any rights."""
        choice, rights = given.byte(), given.byte()
        unit = PAGE if self.engine.granule == PAGE else 256
        start, gpa = (choice & 15) * unit, RAM_GPA + (choice >> 4) * unit
        self._ask(wire.Map(wire.T_MAP, bytes(3), 1, start, start + unit * (1 + (rights >> 4)) - 1, gpa, rights & 3))

    def unmap(self, given: Reader) -> None:
        """A range."""
        choice = given.byte()
        unit = PAGE if self.engine.granule == PAGE else 256
        start = (choice & 15) * unit
        self._ask(wire.Unmap(wire.T_UNMAP, bytes(3), 1, start, start + unit * (1 + (choice >> 4)) - 1))

    def attach(self, given: Reader) -> None:
        """Into a domain, out of it, into one that bypasses."""
        choice = given.byte()
        if choice & 1:
            self._ask(wire.Attach(wire.T_ATTACH, bytes(3), 1 + (choice >> 1 & 1), ENDPOINT, choice >> 2 & 1))
        else:
            self._ask(wire.Detach(wire.T_DETACH, bytes(3), 1 + (choice >> 1 & 1), ENDPOINT))

    def config(self, given: Reader) -> None:
        """Bus master, PASID enable."""
        choice = given.byte()
        self.function.config_write(pci.COMMAND, MASTER if choice & 1 else MEMORY_ONLY)
        at = self.function.config.find(pci.ExtCapId.PASID, extended=True)
        if at is not None:
            before = self.function.pasid_control
            self.function.config_write(at + pci.PASID_CONTROL, bytes([choice >> 1 & 7, 0]))
            if before & ~self.function.pasid_control:
                assert not self.engine.in_flight.by_endpoint, "an access in flight after a right was taken back"

    def pasids(self, given: Reader) -> None:
        """PASID_ALLOC, or PASID_FREE of some."""
        choice = given.byte()
        if choice & 1:
            first = 1 + (choice >> 1 & 3)
            free = pasid_wire.PasidFree(pasid_wire.T_PASID_FREE, bytes(3), first, first + (choice >> 3))
            self.engine.handle(free.pack(), 12)
        else:
            self.engine.handle(pasid_wire.PasidAlloc(pasid_wire.T_PASID_ALLOC, bytes(3), 1, 4).pack(), 12)
            self.allocator.answer()
        self.engine.wait = None

    def pair(self, given: Reader) -> None:
        """ATTACH_PASID to a domain or mirroring, or DETACH_PASID."""
        choice = given.byte()
        pasid, domain, mirrors = 1 + (choice & 3), 1 + (choice >> 3 & 3), choice & 12 == 8
        pair = (0 if mirrors else domain, ENDPOINT, pasid)
        if choice & 0x20:
            self._ask(pasid_wire.DetachPasid(pasid_wire.T_DETACH_PASID, bytes(3), *pair))
        else:
            flags = pasid_wire.ATTACH_PASID_F_MIRROR_RID if mirrors else choice >> 6 & 1
            self._ask(pasid_wire.AttachPasid(pasid_wire.T_ATTACH_PASID, bytes(3), *pair, flags))

    # what happens around it

    def stop(self, given: Reader) -> None:
        """Frozen or thawed, quiesced, reset in every way: whatever ran stores nothing more until it is started."""
        choice = given.byte() % 8
        (
            lambda: self.function.freeze(True),
            lambda: self.function.freeze(False),
            self.function.quiesce,
            self.function.reset,
            self.function.disconnected,
            self.function.stop_dma,
            lambda: self._write(acc.Register.CONTROL, int(acc.Control.RESET)),
            self.engine.device_reset,
        )[choice]()
        if choice in (0, 2, 3, 4, 5, 6):
            before = bytes(self.ram)
            assert not self.engine.in_flight.by_endpoint, "an access in flight after it was stopped"
            self._slices(2)
            assert self.ram == before, "a store after it was stopped"

    def run(self, given: Reader) -> None:
        """Some slices, or until it is at rest."""
        self.runs += 1
        nslices = given.byte()
        before, writable = bytes(self.ram), self._writable()
        done = self._slices(nslices % 4 + 1, rest=False) if nslices & 0x80 else self._slices(MAX_SLICES)
        assert done or nslices & 0x80, "the engine does not come to rest"
        expected = bytearray(before)
        for start, stop in writable:
            expected[start:stop] = self.ram[start:stop]
        assert expected == self.ram, "a store that no mapping allows"
        self._check_registers()

    def _slices(self, most: int, *, rest: bool = True) -> bool:
        """Whether it is at rest; with `rest` time passes until what is in flight has landed."""
        for _ in range(most):
            self.now_ns += 1000
            if self.function.run_slice(self.now_ns) is Progress.IDLE:
                if not rest or not self.engine.in_flight.by_endpoint:
                    return True
                self.now_ns = max(self.now_ns, self.due_ns)
        return False

    # what is checked

    def _writable(self) -> list[tuple[int, int]]:
        """The places in RAM the function may write now, from the engine's state as a query shows it."""
        if not self.function.dma_enabled or self.door.frozen:
            return []
        flights = self.engine.in_flight.of(ENDPOINT)
        in_flight = [(gpa, gpa + n) for one in flights if one.access & 2 for gpa, n in one.pieces]
        return self._mapped() + [(max(start - RAM_GPA, 0), max(stop - RAM_GPA, 0)) for start, stop in in_flight]

    def _mapped(self) -> list[tuple[int, int]]:
        saved = self.engine.snapshot()
        domain = next((domain for domain in saved["domains"] if ENDPOINT in domain["endpoints"]), None)
        bypasses = domain["bypass"] if domain is not None else saved["bypass"]
        spans = [] if self.door.pasid_only else [(0, RAM_NBYTES)] if bypasses else _writable_spans(domain)
        if not self.function.pasid_control & pci.PASID_ENABLE:
            return spans
        extension = saved.get("pasids", {"mirrors": [], "held": []})
        usable = {one["pasid"] for one in extension["held"] if not one["freed"]}
        if any(pasid in usable for _, pasid in extension["mirrors"]) and not bypasses:
            spans += _writable_spans(domain)
        for other in saved["domains"]:
            if any(pasid in usable for _, pasid in other.get("pairs", [])):
                assert not other["bypass"], "a pair that bypasses"
                spans += _writable_spans(other)
        return spans

    def _check_registers(self) -> None:
        told = self.function.describe()
        size = int.from_bytes(self.function.bar_read(0, acc.Register.RING_SIZE, 4), "little")
        assert not (told["running"] and told["halted"])
        if told["running"]:
            assert told["ring_head"] < size
            assert told["ring_tail"] < size
        assert told["faulted"] <= told["completed"]
        assert told["error"] in list(acc.ErrorCode)
        assert len(self.engine.pending_faults) <= 4


_MOVES: tuple[Callable[[Scene, Reader], None], ...] = (
    Scene.run,
    Scene.describe,
    Scene.ring_bell,
    Scene.map,
    Scene.unmap,
    Scene.write_register,
    Scene.enable,
    Scene.attach,
    Scene.config,
    Scene.stop,
    Scene.write_ram,
)

_PASID_MOVES: tuple[Callable[[Scene, Reader], None], ...] = (Scene.pair, Scene.pasids)


def one_input(data: bytes) -> None:
    """Play one input in a new scene, and let the engine come to rest."""
    given = Reader(data)
    scene = Scene(given.byte())
    while given.more and scene.runs < MAX_RUNS:
        scene.moves[given.byte() % len(scene.moves)](scene, given)
    scene.run(Reader(b""))


def _writable_spans(domain: dict[str, Any] | None) -> list[tuple[int, int]]:
    mappings = [] if domain is None else domain["mappings"]
    spans = ((gpa - RAM_GPA, gpa - RAM_GPA + stop - start) for start, stop, gpa, flags in mappings if flags & 2)
    return [(max(start, 0), max(min(stop, RAM_NBYTES), 0)) for start, stop in spans]


def _iova(given: Reader) -> int:
    """Two bytes: an IOVA that is probably mapped, or an offset into device memory; sometimes one far away."""
    number = given.number(2)
    return FAR[number % len(FAR)] if number >= 0xFF00 else number % (RAM_NBYTES + PAGE)


def seeds() -> Iterator[bytes]:
    """Every operation over mapped pages, through device memory, cut by an unmap, a freeze and a disable."""

    def entry(
        index: int, op: int, flags: int = 1, src: int = 0x2000, dst: int = 0x3000, size: int = 2, pasid: bytes = b""
    ) -> bytes:
        operands = src.to_bytes(2, "little") + dst.to_bytes(2, "little")
        return bytes([1, index, op, flags]) + operands + bytes([size]) + pasid

    bell, rest, slices = bytes([2]), b"\0\0", b"\0\x80"
    disabled = bytes([9, 0, 5, REGISTERS.index(acc.Register.CONTROL), 0, 0, 0, 0, 0, 9, 1])  # while frozen, then thawed
    for kind in (0, 1, 2, 4, 8, 16, 18):
        yield bytes([kind]) + b"".join(entry(op, op) for op in range(5)) + bell + b"\5" + rest
        yield bytes([kind]) + entry(0, 1, 5, dst=0) + entry(1, 1, 3, src=0) + bell + b"\2" + rest
        yield bytes([kind]) + entry(0, 2, 0, dst=0x1800, size=6) + bell + b"\1" + slices + b"\4\x02" + rest
        yield bytes([kind]) + entry(0, 2, 0, dst=0x1800, size=6) + bell + b"\1" + slices + disabled + rest + b"\x09\2"
        yield (
            bytes([kind]) + entry(0, 0) + entry(1, 0) + bell + b"\2" + rest + bytes([6, 3, 2]) + rest
        )  # a smaller ring
        yield bytes([kind]) + entry(0, 4, 9, size=4) + b"\1" + bell + b"\1" + bytes([8, 3]) + rest + bytes([9, 0, 9, 1])
        yield bytes([kind]) + bytes([7, 0, 3, 0x10, 0x13, 7, 1, 3, 0, 0x33, 6, 0, 0]) + bell + b"\3" + rest
    tagged = b"".join(
        entry(pasid, 2, 9, dst=0x1800 if pasid == 2 else 0x3000, pasid=bytes([pasid])) for pasid in range(1, 5)
    )
    privileged = entry(5, 1, 0x39, pasid=b"\1") + entry(6, 1, 0x19, pasid=b"\2")
    bell_all, cut = bell + b"\7", (b"\x08\1", b"\x0b\x30", b"\x0b\x08", b"\x0c\1", b"\4\2", b"\7\0", b"\x09\3")
    ring_pasid = bytes([5, REGISTERS.index(acc.Register.RING_PASID), 0, 2, 0, 0, 0, 6, 0, 0])
    for kind in (32, 33, 34, 36, 48, 96, 112):
        yield bytes([kind]) + entry(0, 0) + tagged + privileged + bell_all + rest
        yield (
            bytes([kind, 5, REGISTERS.index(acc.Register.CONTROL), 0, 0, 0, 0, 0])
            + ring_pasid
            + tagged
            + bell_all
            + rest
        )
        long = entry(0, 2, 9, dst=0x2000, size=4, pasid=b"\1") + entry(1, 1, 9, src=0x1000, dst=0x1800, pasid=b"\2")
        for move in cut:
            yield bytes([kind]) + long + bell + b"\2" + slices + move + rest
