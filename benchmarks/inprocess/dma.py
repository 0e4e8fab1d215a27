"""The DMA path in process: a copy of 1 MiB through the DMA door, by how it is mapped."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.inprocess.requests import ENDPOINT, PAGE, RW, attached_engine
from vdev.functions.dma import DmaDoor
from vdev.memory import Region, RegionTable
from vdev.wire import viommu as wire

COPY_NBYTES = 1 << 20


class _EnabledFunction:
    dma_enabled = True
    pasid_control = 1
    pasid_bits = 20

    def __init__(self, memory: RegionTable) -> None:
        self.memory = memory


def dma(*, paged: bool, scattered: bool = False) -> Callable[[int], None]:
    """Copy 1 MiB; `paged` maps it page by page, `scattered` to pages that are no neighbours."""
    engine = attached_engine()
    ram = memoryview(bytearray(4 * COPY_NBYTES))
    memory = RegionTable()
    memory.add(Region(0, len(ram), ram))
    step = PAGE if paged else COPY_NBYTES
    spread = 2 if scattered else 1
    for base, gpa in ((0, 0), (COPY_NBYTES, spread * COPY_NBYTES)):
        for at in range(0, COPY_NBYTES, step):
            start = base + at
            engine.handle(wire.Map(wire.T_MAP, b"\0" * 3, 1, start, start + step - 1, gpa + at * spread, RW).pack(), 4)
    door = DmaDoor(engine, ENDPOINT, _EnabledFunction(memory))

    def run(count: int) -> None:
        for _ in range(count):
            sources = door.views(0, COPY_NBYTES, write=False)
            targets = door.views(COPY_NBYTES, COPY_NBYTES, write=True)
            for source, target in zip(sources, targets, strict=True):
                target[:] = source

    return run
