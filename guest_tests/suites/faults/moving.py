"""An engine with a source and a target in an address space, and whether it does what it is told."""

from __future__ import annotations

from dataclasses import dataclass

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import Accel, DmaArena, DmaBuffer, Viommu
from guest_tests.payload.direct.accel import RING_IOVA
from guest_tests.payload.direct.wait import until
from guest_tests.payload.host import Host

PAGE = 4096
SOURCE, TARGET, NOTHING = 0x20_0000, 0x30_0000, 0x7000_0000
COMPLETIONS = RING_IOVA + engine.COMPLETIONS_OFFSET
READING = {"endpoint": "accel0", "iova": f"{SOURCE:#x}-{SOURCE + PAGE - 1:#x}"}
WRITING = {"endpoint": "accel0", "iova": f"{TARGET:#x}-{TARGET + PAGE - 1:#x}"}
COPY = Operation(engine.COPY, SOURCE, TARGET, PAGE)
COME_S = 10.0  # within which must come what comes at all


@dataclass
class Mover:
    """accel0 runs in `accel.domain`, where `source` and `target` are mapped."""

    viommu: Viommu
    accel: Accel
    source: DmaBuffer
    target: DmaBuffer
    host: Host

    @classmethod
    def make(cls, viommu: Viommu, accel: Accel, dma: DmaArena, host: Host) -> Mover:
        """Of an accelerator that runs."""
        found = cls(viommu, accel, dma.random(PAGE), dma.alloc(PAGE), host)
        found.map()
        return found

    def map(self) -> None:
        """Both buffers, in a domain that has neither."""
        self.viommu.map_buffer(self.accel.domain, SOURCE, self.source)
        self.viommu.map_buffer(self.accel.domain, TARGET, self.target)

    def copy(self) -> engine.Completion:
        """All of the source to a target of zeros, whatever comes of it."""
        self.target.fill(0)
        return self.accel.run(COPY)

    def submit(self, operation: Operation = COPY) -> int:
        """An operation that nobody waits for; its index in the ring."""
        self.target.fill(0)
        return self.accel.engine.submit(operation)

    def comes(self, index: int) -> engine.Completion:
        """The completion of `index`, in the time it takes. AssertionError if it does not come."""
        assert until(lambda: self.accel.engine.status_of(index) != engine.PENDING, COME_S), self.accel.engine.describe()
        return self.accel.engine.wait(index, 0)

    def settled(self, index: int) -> int:
        """The status of `index` once the device has done what it can do now: our question is answered after that."""
        for _ in range(3):
            self.host.control("query-status")
        return self.accel.engine.status_of(index)

    def works(self) -> bool:
        """Whether a copy does, as if nothing had ever been injected, and no fault record is about."""
        done = self.copy()
        return done.status == engine.OK and self.target.read() == self.source.read() and not self.viommu.faults()

    def outcomes(self, count: int) -> list[tuple[int, int, bytes]]:
        """So many copies: status, result, and what is in the target where it differs from the source (one byte of
        each run of bytes), which is 0 where nothing came."""
        found = []
        for _ in range(count):
            done = self.copy()
            now, wanted = self.target.read(), self.source.read()
            wrong = bytes(now[at] for at in range(0, PAGE, 512) if now[at : at + 512] != wanted[at : at + 512])
            found.append((done.status, done.result, wrong))
            self.viommu.faults()
        return found
