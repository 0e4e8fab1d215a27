"""The DMA path in process: copies through the DMA door, by how they are mapped, with a PASID and without."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.inprocess.requests import ENDPOINT, PAGE, RW, attached_engine
from tests.support.pasid_allocator import PlainAllocator
from vdev.functions.dma import DmaDoor, TaggedDoor
from vdev.iommu.engine import Engine
from vdev.iommu.pasid_set import PasidSet
from vdev.iommu.settings import EndpointSettings, PasidSettings, UnitSettings
from vdev.iommu.tag import Tag
from vdev.memory import Region, RegionTable
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire

COPY_NBYTES = 1 << 20
SMALL_NBYTES = 64  # a descriptor


class _EnabledFunction:
    dma_enabled = True
    pasid_control = 1
    pasid_bits = 20

    def __init__(self, memory: RegionTable) -> None:
        self.memory = memory


def dma(*, paged: bool, scattered: bool = False, pasid: bool = False) -> Callable[[int], None]:
    """Copy 1 MiB; `paged` maps it page by page, `scattered` to pages that are no neighbours; `pasid`: with one."""
    door = _door(PAGE if paged else COPY_NBYTES, 2 if scattered else 1, pasid=pasid)

    def run(count: int) -> None:
        for _ in range(count):
            sources = door.views(0, COPY_NBYTES, write=False)
            targets = door.views(COPY_NBYTES, COPY_NBYTES, write=True)
            for source, target in zip(sources, targets, strict=True):
                target[:] = source

    return run


def small_dma(*, pasid: bool = False) -> Callable[[int], None]:
    """Read a descriptor: what an access costs as such."""
    door = _door(COPY_NBYTES, 1, pasid=pasid)

    def run(count: int) -> None:
        for _ in range(count):
            door.read(PAGE, SMALL_NBYTES)

    return run


def _door(step: int, spread: int, *, pasid: bool) -> DmaDoor | TaggedDoor:
    """2 MiB of IOVA from 0, mapped in pieces of `step` bytes to guest memory `spread` times as far apart."""
    engine = _engine_with_a_pair() if pasid else attached_engine()
    ram = memoryview(bytearray(4 * COPY_NBYTES))
    memory = RegionTable()
    memory.add(Region(0, len(ram), ram))
    for base, gpa in ((0, 0), (COPY_NBYTES, spread * COPY_NBYTES)):
        for at in range(0, COPY_NBYTES, step):
            start = base + at
            engine.handle(wire.Map(wire.T_MAP, b"\0" * 3, 1, start, start + step - 1, gpa + at * spread, RW).pack(), 4)
    door = DmaDoor(engine, ENDPOINT, _EnabledFunction(memory))
    return door.tagged(Tag(1)) if pasid else door


def _engine_with_a_pair() -> Engine:
    """An engine with one endpoint, whose PASID 1 is attached to domain 1, and whose RID is attached to nothing."""
    allocator = PlainAllocator()
    endpoint = EndpointSettings(ENDPOINT, "ep", pasid=PasidSettings())
    engine = Engine(UnitSettings("bench", pasids=True), [endpoint], pasids=PasidSet(allocator))
    engine.set_features(engine.offered_features)
    engine.handle(pasid_wire.PasidAlloc(pasid_wire.T_PASID_ALLOC, bytes(3), 1, 1).pack(), 12)
    allocator.answer()
    engine.wait = None
    engine.handle(pasid_wire.AttachPasid(pasid_wire.T_ATTACH_PASID, bytes(3), 1, ENDPOINT, 1).pack(), 4)
    return engine
