"""Fault injection with endpoints at work: an accelerator with a ring, an entropy source with a driver, and their unit.

Helpers act; tests assert. IOVAs of domain 1 are guest-physical addresses plus BASE.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.accelerator import descriptor
from tests.support.driver import DriverRing
from tests.support.injection import PLAIN, Injected
from tests.support.virtio_pci import RAM_GPA, PciDriver
from vdev.assemble import Unit
from vdev.config import Config, EndpointConfig, UnitConfig
from vdev.endpoints.virtio import ENDPOINT_FEATURES
from vdev.functions.base import Progress
from vdev.functions.dma import DmaDoor
from vdev.memory import Region
from vdev.wire import pci
from vdev.wire import viommu as wire
from vdev.wire.accelerator import Completion, CompletionStatus, Control, Descriptor, Op, Register
from vdev.wire.virtio_pci import F_EVENT_IDX

PAGE = 4096
BASE = 0x1000_0000
ACCEL, RNG = 0x100, 0x200
RING, COMPLETIONS, SRC, DST = (BASE + at for at in (0x0, 0x1000, 0x10_0000, 0x20_0000))
RAM_NBYTES = 0x40_0000
ENTRIES = 64
RW = wire.MAP_F_READ | wire.MAP_F_WRITE
LATE_NS = 50_000  # the option latency of SLOW
SLOW = Config(
    units=(UnitConfig(name="iommu0"),),
    endpoints=(
        EndpointConfig(name="accel0", options={"latency": LATE_NS // 1000}),
        EndpointConfig(name="rng0", model="rng", bdf="02:00.0"),
    ),
)
CONTENT = bytes(at % 251 for at in range(PAGE))


class InjectedEndpoints(Injected):
    """accel0 runs in domain 1, which maps all of its RAM."""

    def __init__(self, config: Config = PLAIN) -> None:
        super().__init__(config)
        self.accel: Any = self.unit.endpoints["accel0"]
        self.ram = memoryview(bytearray(RAM_NBYTES))
        self.vectors: list[int] = []
        self.tail = 0
        self.accel.memory.add(Region(0, RAM_NBYTES, self.ram))
        self.accel.raise_vector = self.vectors.append
        self.ask(wire.Attach(wire.T_ATTACH, bytes(3), 1, ACCEL))
        self.map(1, BASE, 0, RAM_NBYTES)
        self.start()

    @property
    def unit(self) -> Unit:
        return self.machine.units["iommu0"]

    @property
    def door(self) -> DmaDoor:
        return self.unit.doors["accel0"]

    def ask(self, request: wire.Attach | wire.Detach | wire.Map | wire.Unmap) -> None:
        """A request to the engine, which must grant it."""
        assert self.unit.engine.handle(request.pack(), 4) == wire.TAILS[wire.S_OK]

    def map(self, domain: int, iova: int, gpa: int, nbytes: int, flags: int = RW) -> None:
        self.ask(wire.Map(wire.T_MAP, bytes(3), domain, iova, iova + nbytes - 1, gpa, flags))

    def unmap_all(self) -> None:
        self.ask(wire.Unmap(wire.T_UNMAP, bytes(3), 1, BASE, BASE + RAM_NBYTES - 1, bytes(4)))

    def start(self) -> None:
        """Memory and bus master on, the ring set up, the engine on."""
        command = pci.Command.MEMORY | pci.Command.BUS_MASTER
        self.accel.config_write(pci.COMMAND, int(command).to_bytes(2, "little"))
        self.tail = 0
        self.ram[COMPLETIONS - BASE : COMPLETIONS - BASE + PAGE] = bytes(PAGE)
        for register, value, nbytes in (
            (Register.RING_BASE, RING, 8),
            (Register.RING_SIZE, ENTRIES, 4),
            (Register.COMPLETION_BASE, COMPLETIONS, 8),
            (Register.CONTROL, Control.ENABLE | Control.IRQ_ENABLE, 4),
        ):
            self.write(register, value, nbytes)

    def write(self, register: int, value: int, nbytes: int = 4) -> None:
        self.accel.bar_write(0, register, int(value).to_bytes(nbytes, "little"))

    def read(self, register: int, nbytes: int = 4) -> int:
        return int.from_bytes(self.accel.bar_read(0, register, nbytes), "little")

    def submit(self, *entries: Descriptor) -> int:
        """Put descriptors in the ring and ring the doorbell; the index of the last."""
        index = self.tail
        for entry in entries:
            index = self.tail
            self.ram[index * 64 : (index + 1) * 64] = entry.pack()
            self.ram[COMPLETIONS - BASE + index * 32 :][:32] = bytes(32)
            self.tail = (index + 1) % ENTRIES
        self.write(Register.RING_TAIL, self.tail)
        return index

    def run(self) -> None:
        """Slices of the accelerator until it has nothing to do, at the times it asked for."""
        for _ in range(1000):
            self.alarms.pop("accel0", None)
            if self.accel.run_slice(self.now_ns) is not Progress.IDLE:
                continue
            due = self.alarms.get("accel0")
            if due is None:
                return
            self.now_ns = max(self.now_ns, due)
        raise AssertionError("the accelerator does not come to an end")

    def completion(self, index: int) -> Completion:
        return Completion.parse(self.ram, COMPLETIONS - BASE + index * 32)

    def do(self, entry: Descriptor) -> Completion:
        """One operation, as far as it goes now."""
        index = self.submit(entry)
        self.run()
        return self.completion(index)

    def copy(self, nbytes: int = PAGE) -> Completion:
        """From SRC, which gets CONTENT, to DST, which gets zeros."""
        self.fill_source(nbytes)
        return self.do(descriptor(Op.COPY, src=SRC, dst=DST, nbytes=nbytes))

    def fill_source(self, nbytes: int = PAGE) -> None:
        self.ram[SRC - BASE : SRC - BASE + nbytes] = (CONTENT * (nbytes // PAGE + 1))[:nbytes]
        self.ram[DST - BASE : DST - BASE + nbytes] = bytes(nbytes)

    def target(self, nbytes: int = PAGE) -> bytes:
        return bytes(self.ram[DST - BASE : DST - BASE + nbytes])

    def works(self) -> bool:
        """Whether a copy does, as if nothing had ever been injected."""
        return self.copy().status == CompletionStatus.OK and self.target() == CONTENT

    def faults(self) -> list[tuple[int, int, int]]:
        """(reason, IOVA, access) of the records for the guest, which are taken."""
        records = [wire.Fault.parse(record) for record in self.unit.engine.pending_faults]
        self.unit.engine.pending_faults.clear()
        return [(record.reason, record.address, record.flags & RW) for record in records]


class InjectedRng(InjectedEndpoints):
    """rng0 has a driver, whose RAM is domain 2 at BASE."""

    def __init__(self, config: Config = PLAIN) -> None:
        super().__init__(config)
        self.rng: Any = self.unit.endpoints["rng0"]
        rng: Any = self.rng
        self.driver = PciDriver(rng)
        self.ask(wire.Attach(wire.T_ATTACH, bytes(3), 2, RNG))
        self.map(2, BASE, RAM_GPA, len(self.driver.ram))
        self.queue: DriverRing
        self.bring_up()

    def bring_up(self) -> None:
        event_idx = bool(ENDPOINT_FEATURES & F_EVENT_IDX)
        self.driver.bus_master(True)
        (self.queue,) = self.driver.start(ENDPOINT_FEATURES, event_idx=event_idx, queues=1, size=8, base=BASE)

    def draw(self, nbytes: int = 64) -> list[bytes]:
        """What came of a buffer of so many bytes: nothing, or its content."""
        self.driver.submit(0, [], [nbytes])
        return self.drawn()

    def drawn(self) -> list[bytes]:
        self.rng.run_slice(self.now_ns)
        return [done.data[: done.used_nbytes] for done in self.queue.reap()]


@pytest.fixture(params=["at once", "with a latency"])
def scene(request: pytest.FixtureRequest) -> InjectedEndpoints:
    """Both kinds of accelerator: one whose bytes move at once, one whose accesses are in flight."""
    return InjectedEndpoints() if request.param == "at once" else InjectedEndpoints(SLOW)
