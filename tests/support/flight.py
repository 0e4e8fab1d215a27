"""A unit with two accelerators whose DMA takes time, behind either attachment, and a driver that waits for nothing.

Helpers act; tests assert. RAM is 1 MiB at `RAM_GPA`; IOVAs of a domain are offsets into it until a test maps otherwise.
"""

from __future__ import annotations

from typing import Any, Literal

import pytest

from tests.support.accelerator import descriptor
from tests.support.driver import DriverRing
from tests.support.virtio_pci import RAM_GPA, RAM_NBYTES, PciDriver
from vdev.assemble import Machine
from vdev.config import Config, EndpointConfig, UnitConfig
from vdev.endpoints.base import Endpoint
from vdev.functions.base import Progress, Worker
from vdev.functions.vhost import VhostCarrier
from vdev.functions.virtio_pci import VirtioPciFunction
from vdev.iommu.pasid_set import PasidSet
from vdev.iommu.pasid_unit import PASID_ANSWER_NBYTES
from vdev.memory import Region
from vdev.virtio.ordering import NoOrdering
from vdev.wire import pci
from vdev.wire import viommu as wire
from vdev.wire.accelerator import Completion, CompletionStatus, Control, Descriptor, Flag, Op, Register
from vdev.wire.virtio_pci import F_EVENT_IDX

Attachment = Literal["vfio-user", "vhost-user"]
PAGE = 0x1000
LATENCY_US = 10_000
LATENCY_NS = LATENCY_US * 1000
SLICE_NS = 1_000  # small beside the latency, so that what is in flight stays there until `land`
MAX_SLICES = 10_000
RING_SIZE = 16
EVENT_RING_OFFSET = 0x2_0000
ENGINES = {"accel0": 0x4_0000, "accel1": 0x4_2000}  # where in RAM: a page of descriptors, a page of completions
BUFFER = 0x8_0000  # pages for tests from here on, in RAM and in the domain
OK = wire.TAILS[wire.S_OK]
FILLED = b"\xa5" * PAGE
EMPTY = bytes(PAGE)


class FlightScene:
    """Everything runs by hand: `run` until all rest, `land` when a latency has passed."""

    def __init__(
        self,
        attach: Attachment = "vfio-user",
        *,
        latency_us: int = LATENCY_US,
        pasids: PasidSet | None = None,
        **unit: Any,
    ) -> None:
        self.events: list[object] = []
        self.now_ns = 0
        self._woken: dict[int, Worker] = {}
        self._timers: dict[int, tuple[int, Worker]] = {}
        ends = tuple(
            EndpointConfig(name=name, bdf=bdf, options={"latency": latency_us})
            for name, bdf in (("accel0", "01:00.0"), ("accel1", "02:00.0"))
        )
        self.machine = Machine(
            Config(units=(UnitConfig(name="iommu0", attach=attach, **unit),), endpoints=ends),
            emit=self.events.append,
            wake=self._wake,
            wake_at=self._wake_at,
            ordering=NoOrdering(),
            pasids=pasids,
        )
        self.unit = self.machine.units["iommu0"]
        self.engine, self.device = self.unit.engine, self.unit.device
        self.ram = memoryview(bytearray(RAM_NBYTES))
        self.function = self.unit.function
        self.pci: PciDriver | None = None
        self.requests: DriverRing
        self.start_unit()
        self.accels = {name: _Accel(self, endpoint) for name, endpoint in self.unit.endpoints.items()}
        self.number = {name: self.unit.doors[name].endpoint_id for name in self.accels}

    # the unit's driver

    def start_unit(self) -> None:
        """A driver starts, with the first request at the beginning of a ring that is zeros."""
        features = self.device.offered_features & ~F_EVENT_IDX
        if isinstance(self.function, VirtioPciFunction):
            if self.pci is None:
                self.pci = PciDriver(self.function)
                self.ram = self.pci.ram
            self.requests, _ = self.pci.start(features, size=RING_SIZE)
        else:
            if not len(self.function.memory):
                self.function.memory.add(Region(RAM_GPA, RAM_NBYTES, self.ram))
            self.ram[: 2 * EVENT_RING_OFFSET] = bytes(2 * EVENT_RING_OFFSET)
            self._rings = [
                DriverRing(self.ram, RING_SIZE, base_gpa=RAM_GPA, offset=at, slot_nbytes=1024)
                for at in (0, EVENT_RING_OFFSET)
            ]
            self.requests = self._rings[0]
            self.enable_rings(0, 0)
        self.run()

    def enable_rings(self, *bases: int) -> None:
        """What QEMU sends for DRIVER_OK and for `cont`; over vhost-user only."""
        carrier = self.carrier
        carrier.set_features(carrier.offered_features & ~F_EVENT_IDX)
        for index, (ring, base) in enumerate(zip(self._rings, bases, strict=True)):
            carrier.set_size(index, ring.size)
            carrier.set_base(index, base)
            carrier.set_addresses(index, ring.desc_gpa, ring.avail_gpa, ring.used_gpa)
            carrier.set_kick(index)
        for index in range(2):
            carrier.enable(index, True)

    def suspend_rings(self) -> tuple[int, int]:
        """What QEMU sends for `stop` and for a virtio reset; over vhost-user only. Where the rings stand."""
        for index in range(2):
            self.carrier.enable(index, False)
        return self.carrier.stop(0), self.carrier.stop(1)

    @property
    def carrier(self) -> VhostCarrier:
        assert isinstance(self.function, VhostCarrier)
        return self.function

    @property
    def pci_driver(self) -> PciDriver:
        assert self.pci is not None
        return self.pci

    def post(self, *requests: Any) -> None:
        """Requests into the ring; nobody waits for their answers."""
        for request in requests:
            before_tail = PASID_ANSWER_NBYTES.get(request.type, 0)
            self.requests.submit([request.pack()], [before_tail + wire.TAIL_NBYTES])
        self._wake(self.device)
        self.run()

    def answers(self) -> list[bytes]:
        """What came back since the last call, in the order of the used ring."""
        return [done.data for done in self.requests.reap()]

    def ask(self, *requests: Any) -> list[bytes]:
        self.post(*requests)
        return self.answers()

    def attach(self, name: str = "accel0", domain: int = 1) -> wire.Attach:
        return wire.Attach(wire.T_ATTACH, bytes(3), domain, self.number[name])

    def detach(self, name: str = "accel0", domain: int = 1) -> wire.Detach:
        return wire.Detach(wire.T_DETACH, bytes(3), domain, self.number[name])

    def map(self, iova: int, gpa: int, nbytes: int = PAGE, domain: int = 1) -> wire.Map:
        return wire.Map(wire.T_MAP, bytes(3), domain, iova, iova + nbytes - 1, gpa, 3)

    def unmap(self, iova: int, nbytes: int = PAGE, domain: int = 1) -> wire.Unmap:
        return wire.Unmap(wire.T_UNMAP, bytes(3), domain, iova, iova + nbytes - 1, bytes(4))

    # the domain and its engines

    def set_up(self, *names: str, domain: int = 1, npages: int = 4) -> FlightScene:
        """The endpoints (accel0) in `domain`, their rings and `npages` of buffer mapped there, engines running."""
        for name in names or ("accel0",):
            self.ask(self.attach(name, domain), self.map_ring(name, domain))
            self.accels[name].start(ENGINES[name])
        pages = [self.map(at, RAM_GPA + at, domain=domain) for at in range(BUFFER, BUFFER + npages * PAGE, PAGE)]
        self.ask(*pages)
        return self

    def map_ring(self, name: str = "accel0", domain: int = 1) -> wire.Map:
        return self.map(ENGINES[name], RAM_GPA + ENGINES[name], 2 * PAGE, domain)

    def fill(
        self, iova: int = BUFFER, nbytes: int = PAGE, name: str = "accel0", byte: int = 0xA5, pasid: int = 0
    ) -> None:
        """Submit a FILL; it is in flight when this returns."""
        flags = Flag.PASID_VALID if pasid else 0
        filling = byte * 0x0101010101010101
        self.accels[name].submit(descriptor(Op.FILL, flags=flags, pasid=pasid, dst=iova, nbytes=nbytes, arg=filling))
        self.run()

    def buffer(self, page: int = 0, nbytes: int = PAGE) -> bytes:
        """What is in the buffer's pages."""
        at = BUFFER + page * PAGE
        return bytes(self.ram[at : at + nbytes])

    @property
    def nflights(self) -> int:
        return sum(map(len, self.engine.in_flight.by_endpoint.values()))

    # time

    def land(self) -> None:
        """A latency passes."""
        self.now_ns += LATENCY_NS
        self.run()

    def crash(self, name: str) -> None:
        """A slice of the endpoint raises, a bug of ours: what the app and the scheduler do then."""
        endpoint = self.unit.endpoints[name]
        self.machine.give_up(endpoint)
        self._forget(endpoint)

    def remove(self, name: str) -> None:
        """The endpoint is unplugged, as the app does it."""
        endpoint = self.unit.endpoints[name]
        self._forget(endpoint)
        self.machine.remove_endpoint(name)

    def _forget(self, worker: Worker) -> None:
        self._woken.pop(id(worker), None)
        self._timers.pop(id(worker), None)

    def run(self) -> None:
        """Slices until nobody has anything to do before its time."""
        for _ in range(MAX_SLICES):
            for key, (when_ns, worker) in list(self._timers.items()):
                if when_ns <= self.now_ns:
                    del self._timers[key]
                    self._woken[key] = worker
            if not self._woken:
                return
            for key, worker in list(self._woken.items()):
                self._woken.pop(key, None)
                self.now_ns += SLICE_NS
                if worker.run_slice(self.now_ns) is not Progress.IDLE:
                    self._woken[key] = worker
        raise AssertionError("the workers do not come to rest")

    def _wake(self, worker: Worker) -> None:
        self._woken[id(worker)] = worker

    def _wake_at(self, worker: Worker, when_ns: int) -> None:
        self._timers[id(worker)] = (when_ns, worker)


class _Accel:
    """The driver of one accelerator."""

    def __init__(self, scene: FlightScene, function: Endpoint) -> None:
        self.function = function
        self._scene = scene
        self._at = 0
        self._tail = 0
        function.memory.add(Region(RAM_GPA, RAM_NBYTES, scene.ram))
        self.bus_master(True)

    def bus_master(self, enabled: bool) -> None:
        command = pci.Command.MEMORY | (pci.Command.BUS_MASTER if enabled else 0)
        self.function.config_write(pci.COMMAND, int(command).to_bytes(2, "little"))

    def cycle_bus_master(self) -> None:
        self.bus_master(False)
        self.bus_master(True)

    def enable_pasids(self, enabled: bool) -> None:
        """In the PASID capability."""
        config = self.function.config  # type: ignore[attr-defined]
        at = config.find(pci.ExtCapId.PASID, extended=True)
        self.function.config_write(at + pci.PASID_CONTROL, int(enabled).to_bytes(2, "little"))

    def flr(self) -> None:
        """A function-level reset."""
        config = self.function.config  # type: ignore[attr-defined]
        at = config.find(pci.CapId.PCIE)
        self.function.config_write(at + pci.DEVCTL, pci.DEVCTL_FLR.to_bytes(2, "little"))

    def start(self, at: int, base: int = 0) -> None:
        """Ring and completions at `at` in RAM, where the engine finds them at `base` + `at`."""
        self._at, self._tail = at, 0
        self._scene.ram[at : at + 2 * PAGE] = bytes(2 * PAGE)
        self.write(Register.RING_BASE, base + at, 8)
        self.write(Register.RING_SIZE, RING_SIZE)
        self.write(Register.COMPLETION_BASE, base + at + PAGE, 8)
        self.write(Register.CONTROL, Control.ENABLE)

    def write(self, register: int, value: int, nbytes: int = 4) -> None:
        self.function.bar_write(0, register, value.to_bytes(nbytes, "little"))

    def read(self, register: int) -> int:
        return int.from_bytes(self.function.bar_read(0, register, 4), "little")

    def submit(self, *entries: Descriptor) -> None:
        for entry in entries:
            at = self._at + self._tail * 64
            self._scene.ram[at : at + 64] = entry.pack()
            self._tail = (self._tail + 1) % RING_SIZE
        self.write(Register.RING_TAIL, self._tail)

    def completion(self, index: int = 0) -> Completion:
        return Completion.parse(self._scene.ram, self._at + PAGE + 32 * index)


@pytest.fixture(params=["vfio-user", "vhost-user"])
def attach(request: pytest.FixtureRequest) -> Attachment:
    """How the unit is attached to QEMU."""
    found: Attachment = request.param
    return found


@pytest.fixture
def scene(attach: Attachment) -> FlightScene:
    """accel0 in domain 1, and a page being filled: translated, not yet written."""
    scene = FlightScene(attach).set_up()
    scene.fill()
    assert scene.nflights == 1
    assert scene.buffer() == EMPTY
    return scene


def bypassing(attach: Attachment) -> FlightScene:
    """accel0 attached to nothing, and a page being filled at its physical address."""
    scene = FlightScene(attach)
    scene.accels["accel0"].start(ENGINES["accel0"], RAM_GPA)
    scene.fill(RAM_GPA + BUFFER)
    assert scene.nflights == 1
    return scene


def status(scene: FlightScene, name: str = "accel0", index: int = 0) -> CompletionStatus:
    """What the engine says about a descriptor."""
    return CompletionStatus(scene.accels[name].completion(index).status)
