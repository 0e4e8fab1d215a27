"""An accelerator behind a unit whose driver has accepted PASIDs, RAM full of canaries, and what a PASID may lack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.support.accelerator import descriptor
from tests.support.bay import bay
from tests.support.pasid_allocator import PlainAllocator
from vdev.endpoints.accelerator import Accelerator
from vdev.functions.base import Progress, Worker
from vdev.functions.dma import DmaDoor
from vdev.iommu.engine import Engine
from vdev.iommu.pasid_set import PasidSet
from vdev.iommu.settings import EndpointSettings, PasidSettings, UnitSettings
from vdev.iommu.tag import Tag
from vdev.memory import Region
from vdev.pci.base import PciFunction
from vdev.wire import pci
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire
from vdev.wire.accelerator import Completion, Control, Descriptor, Flag, Register

ENDPOINT, OTHER = 0x100, 0x200
PAGE = 4096
RAM_GPA = 0x10_0000
REGIONS = (RAM_GPA, 0x20_0000, 0x1_0000_0000)  # of two pages each
CANARY = (b"canary! " * PAGE)[: 2 * PAGE]
IOVA = 0x4000
RING_GPA, RING_IOVA, COMPLETIONS = 0x400_0000, 0x8000_0000, 0x8000_1000
DOMAIN, RING_DOMAIN = 5, 9
ALL_RIGHTS = pci.PASID_ENABLE | pci.PASID_EXECUTE | pci.PASID_PRIVILEGED

Request = wire.Attach | wire.Detach | wire.Map | wire.Unmap | pasid_wire.AttachPasid | pasid_wire.DetachPasid


class Rig:
    """The accelerator, its unit, its driver."""

    def __init__(self, *, bits: int = 20, latency_us: int = 0, granule: int = PAGE) -> None:
        """`bits` is the width of the capability only: the unit believes in 20."""
        self.allocator = PlainAllocator()
        self.set = PasidSet(self.allocator)
        pasids = PasidSettings(execute=True, privileged=True)
        self.engine = Engine(
            UnitSettings("unit", pasids=True, page_size_mask=(1 << 64) - granule),
            [EndpointSettings(ENDPOINT, "ep", pasid=pasids), EndpointSettings(OTHER, "other", pasid=pasids)],
            pasids=self.set,
        )
        self.engine.set_features(-1)
        self.due_ns = 0
        self.is_latent = bool(latency_us)
        options: dict[str, int | str | bool] = {"pasid_bits": bits, "pasid_execute": True, "pasid_privileged": True}
        options["latency"] = latency_us
        self.door: DmaDoor
        self.function = Accelerator("accel", bay(self._open, wake_at=self._wake_at), options)
        self.function.config_write(pci.COMMAND, int(pci.Command.MEMORY | pci.Command.BUS_MASTER).to_bytes(2, "little"))
        self.set_control(pci.PASID_ENABLE)
        self.regions = [bytearray(CANARY) for _ in REGIONS]
        self.ring = memoryview(bytearray(2 * PAGE))
        for gpa, ram in zip((*REGIONS, RING_GPA), (*(memoryview(ram) for ram in self.regions), self.ring), strict=True):
            self.function.memory.add(Region(gpa, 2 * PAGE, ram))

    def _open(self, function: PciFunction) -> DmaDoor:
        self.door = DmaDoor(self.engine, ENDPOINT, function)
        return self.door

    def _wake_at(self, _: Worker, when_ns: int) -> None:
        self.due_ns = when_ns

    def set_control(self, value: int) -> None:
        """Write the PASID capability's control register."""
        at = self.function.config.find(pci.ExtCapId.PASID, extended=True)
        assert at is not None
        self.function.config_write(at + pci.PASID_CONTROL, value.to_bytes(2, "little"))

    def reset_function(self) -> None:
        """Initiate a function-level reset."""
        at = self.function.config.find(pci.CapId.PCIE)
        assert at is not None
        self.function.config_write(at + pci.DEVCTL, pci.DEVCTL_FLR.to_bytes(2, "little"))

    # requests to the unit

    def ask(self, request: Request) -> None:
        """Have `request` granted, whenever it may be answered."""
        assert self.engine.handle(request.pack(), 4) == wire.TAILS[wire.S_OK]

    def allocate(self) -> int:
        """One PASID by PASID_ALLOC."""
        request = pasid_wire.PasidAlloc(pasid_wire.T_PASID_ALLOC, bytes(3), 1, pasid_wire.PASID_LAST)
        self.engine.handle(request.pack(), 12)
        wait, self.engine.wait = self.engine.wait, None
        assert wait is not None
        self.allocator.answer()
        answer = wait.answer()
        assert answer is not None
        return int.from_bytes(answer[:4], "little")

    def attach(self, pasid: int, domain: int = DOMAIN, endpoint: int = ENDPOINT, flags: int = 0) -> None:
        self.ask(pasid_wire.AttachPasid(pasid_wire.T_ATTACH_PASID, bytes(3), domain, endpoint, pasid, flags))

    def detach(self, pasid: int, domain: int = DOMAIN) -> None:
        self.ask(pasid_wire.DetachPasid(pasid_wire.T_DETACH_PASID, bytes(3), domain, ENDPOINT, pasid))

    def attach_rid(self, domain: int) -> None:
        self.ask(wire.Attach(wire.T_ATTACH, bytes(3), domain, ENDPOINT))

    def map(self, domain: int = DOMAIN, gpa: int = RAM_GPA, iova: int = IOVA, nbytes: int = PAGE) -> None:
        self.ask(wire.Map(wire.T_MAP, bytes(3), domain, iova, iova + nbytes - 1, gpa, 3))

    def unmap(self, domain: int = DOMAIN, iova: int = IOVA, nbytes: int = PAGE) -> None:
        self.ask(wire.Unmap(wire.T_UNMAP, bytes(3), domain, iova, iova + nbytes - 1))

    def free(self, pasid: int) -> None:
        self.engine.handle(pasid_wire.PasidFree(pasid_wire.T_PASID_FREE, bytes(3), pasid, pasid).pack(), 12)

    @property
    def is_held(self) -> bool:
        """Whether the answer to the last request waits for accesses in flight."""
        return self.engine.wait is not None and not self.engine.wait.is_over

    # the accelerator

    def start(self, *, by_rid: bool) -> None:
        """Start the ring, whose pages the RID reaches, or a PASID of its own."""
        pasid = 0
        if by_rid:
            self.attach_rid(RING_DOMAIN)
        else:
            pasid = self.allocate()
            self.attach(pasid, RING_DOMAIN)
        self.map(RING_DOMAIN, RING_GPA, RING_IOVA, 2 * PAGE)
        for register, value, nbytes in (
            (Register.RING_BASE, RING_IOVA, 8),
            (Register.COMPLETION_BASE, COMPLETIONS, 8),
            (Register.RING_SIZE, 2, 4),
            (Register.RING_PASID, pasid, 4),
            (Register.CONTROL, Control.ENABLE, 4),
        ):
            self.function.bar_write(0, register, value.to_bytes(nbytes, "little"))

    def submit(self, op: int, tag: Tag, **fields: int) -> None:
        """One descriptor, the first of the ring, with the PASID and the rights of `tag`."""
        flags = Flag.PASID_VALID | (Flag.EXECUTE if tag.execute else 0) | (Flag.PRIVILEGED if tag.privileged else 0)
        entry: Descriptor = descriptor(op, flags=flags, pasid=tag.pasid, **fields)
        self.ring[: len(entry.pack())] = entry.pack()
        self.function.bar_write(0, Register.RING_TAIL, (1).to_bytes(4, "little"))

    def slice(self) -> Progress:
        """One slice of work, at the time when what is in flight lands."""
        return self.function.run_slice(self.due_ns)

    def finish(self) -> Completion:
        """Slices until the descriptor is done."""
        while self.slice() is not Progress.IDLE or self.engine.in_flight.by_endpoint:
            pass
        return Completion.parse(self.ring, PAGE)

    # what is seen of it

    def faults(self) -> list[pasid_wire.FaultPasid]:
        """The fault records that wait."""
        told = (self.engine.told_fault(pending, 48) for pending in self.engine.pending_faults)
        return [pasid_wire.FaultPasid.parse(record) for record in told]

    @property
    def is_untouched(self) -> bool:
        """Whether every canary is alive."""
        return all(ram == CANARY for ram in self.regions)


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that an access with a PASID lacks: `prepare` gives its tag, `word` and `reason` refuse it."""

    prepare: Callable[[Rig], Tag]
    word: str
    reason: int
    bits: int = 20

    @property
    def name(self) -> str:
        """For people."""
        return self.prepare.__name__


def attached(rig: Rig) -> int:
    """A PASID that is attached and has a page mapped."""
    pasid = rig.allocate()
    rig.attach(pasid)
    rig.map()
    return pasid


def foreign(rig: Rig) -> Tag:
    """What a PASID of another guest, or nobody's, looks like: another pair could reach the page."""
    attached(rig)
    return Tag(0x777)


def allocated_only(rig: Rig) -> Tag:
    attached(rig)
    return Tag(rig.allocate())


def attached_to_another_endpoint(rig: Rig) -> Tag:
    attached(rig)
    pasid = rig.allocate()
    rig.attach(pasid, endpoint=OTHER)
    return Tag(pasid)


def detached(rig: Rig) -> Tag:
    pasid = attached(rig)
    rig.attach(rig.allocate())  # keeps the domain
    rig.detach(pasid)
    return Tag(pasid)


def freed(rig: Rig) -> Tag:
    tag = detached(rig)
    rig.free(tag.pasid)
    return tag


def free_pending(rig: Rig) -> Tag:
    pasid = attached(rig)
    rig.free(pasid)
    return Tag(pasid)


def gone_with_a_reset(rig: Rig) -> Tag:
    pasid = attached(rig)
    rig.engine.device_reset()
    rig.engine.set_features(-1)
    return Tag(pasid)


def disabled(rig: Rig) -> Tag:
    rig.set_control(pci.PASID_EXECUTE | pci.PASID_PRIVILEGED)
    return Tag(attached(rig))


def too_wide(rig: Rig) -> Tag:
    rig.allocate()
    return Tag(attached(rig))


def without_execute(rig: Rig) -> Tag:
    return Tag(attached(rig), execute=True)


def without_privilege(rig: Rig) -> Tag:
    return Tag(attached(rig), privileged=True)


def executing(rig: Rig) -> Tag:
    rig.set_control(ALL_RIGHTS)
    return Tag(attached(rig), execute=True)


def unmapped(rig: Rig) -> Tag:
    pasid = rig.allocate()
    rig.attach(pasid)
    return Tag(pasid)


def mirror(rig: Rig) -> int:
    pasid = rig.allocate()
    rig.attach(pasid, 0, flags=pasid_wire.ATTACH_PASID_F_MIRROR_RID)
    return pasid


def mirror_of_an_unattached_rid(rig: Rig) -> Tag:
    rig.engine.set_bypass(False)
    return Tag(mirror(rig))


def mirror_of_a_bypassing_rid(rig: Rig) -> Tag:
    rig.engine.set_bypass(True)
    return Tag(mirror(rig))


_NO_PAIR, _NOT_ALLOWED = pasid_wire.FAULT_R_PASID, pasid_wire.FAULT_R_PASID_DISABLED
LACKS = (
    Lack(foreign, "pasid-not-attached", _NO_PAIR),
    Lack(allocated_only, "pasid-not-attached", _NO_PAIR),
    Lack(attached_to_another_endpoint, "pasid-not-attached", _NO_PAIR),
    Lack(detached, "pasid-not-attached", _NO_PAIR),
    Lack(freed, "pasid-not-attached", _NO_PAIR),
    Lack(free_pending, "pasid-free-pending", _NO_PAIR),
    Lack(gone_with_a_reset, "pasid-not-attached", _NO_PAIR),
    Lack(mirror_of_an_unattached_rid, "pasid-rid-unattached", _NO_PAIR),
    Lack(mirror_of_a_bypassing_rid, "pasid-rid-bypasses", _NO_PAIR),
    Lack(disabled, "pasid-disabled", _NOT_ALLOWED),
    Lack(too_wide, "pasid-too-wide", _NOT_ALLOWED, bits=1),
    Lack(without_execute, "execute-disabled", _NOT_ALLOWED),
    Lack(without_privilege, "privileged-disabled", _NOT_ALLOWED),
    Lack(executing, "no-execute", wire.FAULT_R_MAPPING),
    Lack(unmapped, "not-mapped", wire.FAULT_R_MAPPING),
)


def flags_of(tag: Tag, *, write: bool) -> int:
    """The flags of the fault record of a refused access."""
    flags = wire.FAULT_F_ADDRESS | pasid_wire.FAULT_F_PASID | (wire.FAULT_F_WRITE if write else wire.FAULT_F_READ)
    flags |= pasid_wire.FAULT_F_EXEC if tag.execute else 0
    return flags | (pasid_wire.FAULT_F_PRIVILEGED if tag.privileged else 0)
