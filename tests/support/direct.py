"""A machine without QEMU and kernel for the guest's user-space driver: our own functions behind its interfaces.

Every access of the driver is written down with its width and handed to the function; after each write the workers run
until they wait for a kick. QEMU's part of MSI-X, the vector table, is here: a message is four bytes in RAM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from guest_tests.payload.bar import Registers
from guest_tests.payload.direct.accel import Accel
from guest_tests.payload.direct.function import CAP_MSIX, Function
from guest_tests.payload.direct.memory import HUGE_NBYTES, DmaPool
from guest_tests.payload.direct.viommu import Viommu
from tests.support.pasid_allocator import PlainAllocator
from vdev.assemble import Machine
from vdev.config import Config, EndpointConfig, UnitConfig
from vdev.functions.base import Progress, Worker
from vdev.functions.virtio_pci import MSIX_BAR as UNIT_MSIX_BAR
from vdev.iommu.events import Event
from vdev.iommu.pasid_set import PasidSet, Terms
from vdev.memory import Region
from vdev.pci.base import PciFunction
from vdev.virtio.ordering import NoOrdering
from vdev.wire import pci

RAM_GPA = 0x4000_0000
LATER_NS = 10_000_000  # long after any poll window
SLOW_NS = 1_000  # the machine is at rest after a millisecond
MAX_SLICES = 10_000
ONE_OF_EACH = Config(units=(UnitConfig(name="iommu0"),), endpoints=(EndpointConfig(name="accel0"),))
_TABLE_NBYTES = 0x800


@dataclass(frozen=True, slots=True)
class Access:
    """One access of the driver to a BAR."""

    bar: int
    offset: int
    nbytes: int
    value: int | None = None  # what was written; None for a read

    @property
    def is_write(self) -> bool:
        return self.value is not None


class SimRam:
    """Huge pages whose addresses count upwards; every function of the machine reaches them."""

    def __init__(self, machine: SimMachine) -> None:
        self._machine = machine
        self._next = RAM_GPA
        self.is_closed = False

    def take(self) -> tuple[int, memoryview]:
        """A page, with a hole behind it."""
        gpa, self._next = self._next, self._next + 2 * HUGE_NBYTES
        page = memoryview(bytearray(HUGE_NBYTES))
        for function in self._machine.functions.values():
            function.device.memory.add(Region(gpa, HUGE_NBYTES, page))
            function.device.memory_changed()
        return gpa, page

    def close(self) -> None:
        self.is_closed = True


class SimMachine:
    """One VM's functions, a pool of memory they reach, and no time-outs: whatever happens has happened on return.

    Time passes by `slice_ns` with every slice, and by `pass_ns`: what is to happen later than the machine comes to rest
    waits for that. To have DMA in flight, take a `slice_ns` that is small beside its latency.

    With `vm.pasids` the host's side is `allocator`, which answers when the machine has come to rest.
    """

    def __init__(
        self,
        config: Config = ONE_OF_EACH,
        emit: Callable[[Event], None] = lambda event: None,
        *,
        slice_ns: int = LATER_NS,
    ) -> None:
        self._woken: set[int] = set()
        self._workers: dict[int, Worker] = {}
        self._timers: dict[int, int] = {}
        self._slice_ns = slice_ns
        self.now_ns = 0
        self.allocator = PlainAllocator(_terms(config))
        self.pasids = None if config.vm.pasids is None else PasidSet(self.allocator, emit)
        self.vdev = Machine(
            config, emit=emit, wake=self._wake, wake_at=self._wake_at, ordering=NoOrdering(), pasids=self.pasids
        )
        for unit in self.vdev.units.values():
            for worker in unit.endpoints.values():
                worker.was_reset = partial(self._forget_timer, worker)
        bdfs = {unit.name: f"0000:{unit.bdf}" for unit in config.units}
        bdfs |= {endpoint.name: f"0000:{endpoint.bdf}" for endpoint in config.endpoints}
        self.functions = {
            name: SimFunction(bdfs[name], function, self)
            for name, function in self.vdev.functions.items()
            if isinstance(function, PciFunction)
        }
        self.pool = DmaPool(SimRam(self))
        if self.vdev.kernel_pasids is not None:
            self.vdev.kernel_pasids.open()
        self.run()

    def run(self) -> None:
        """Run every woken worker until it waits."""
        for _ in range(MAX_SLICES):
            self._wake_due()
            if not self._woken and not self.allocator.waiting:
                return
            if not self._woken:
                self.allocator.answer()
            for key in sorted(self._woken):
                self.now_ns += self._slice_ns
                self._woken.discard(key)
                if self._workers[key].run_slice(self.now_ns) is not Progress.IDLE:
                    self._woken.add(key)
        raise AssertionError("the workers do not come to rest")

    def pass_ns(self, duration_ns: int) -> None:
        """So much time passes, and what is due by then happens."""
        self.now_ns += duration_ns
        self.run()

    def _wake_due(self) -> None:
        for key in [key for key, when_ns in self._timers.items() if when_ns <= self.now_ns]:
            del self._timers[key]
            self._woken.add(key)

    def _forget_timer(self, worker: Worker) -> None:
        self._timers.pop(id(worker), None)

    def _wake_at(self, worker: Worker, when_ns: int) -> None:
        self._workers[id(worker)] = worker
        self._timers[id(worker)] = when_ns

    def _wake(self, worker: Worker) -> None:
        self._workers[id(worker)] = worker
        self._woken.add(id(worker))


def _terms(config: Config) -> Terms:
    """What the host says where it has nothing of its own to say."""
    given = config.vm.pasids.quota if config.vm.pasids is not None else None
    return Terms("per-vm", quota=1000 if given is None else given, first=1, stop=1 << 20)


class SimFunction(Function):
    """One of the machine's functions as the driver sees it."""

    def __init__(self, bdf: str, device: PciFunction, machine: SimMachine) -> None:
        self.bdf = bdf
        self.device = device
        self.machine = machine
        self.accesses: list[Access] = []
        self.config_writes: list[tuple[int, bytes]] = []
        self.table = bytearray(_TABLE_NBYTES)
        self._held: set[int] = set()
        device.raise_vector = self._deliver
        self._bars = {bar.index: SimBar(self, bar.index) for bar in device.bars}
        self.set_command(on=int(pci.Command.MEMORY | pci.Command.BUS_MASTER))

    def bar(self, index: int) -> Registers:
        return self._bars[index]

    def _config_read(self, offset: int, nbytes: int) -> bytes:
        return self.device.config_read(offset, nbytes)

    def _config_write(self, offset: int, data: bytes) -> None:
        self.config_writes.append((offset, data))
        self.device.config_write(offset, data)
        self.deliver_held()
        self.machine.run()

    def _deliver(self, vector: int) -> None:
        self._held.add(vector)
        self.deliver_held()

    def deliver_held(self) -> None:
        """QEMU remembers the messages of masked vectors."""
        control = self.read_config(self.capability(CAP_MSIX).offset + pci.MSIX_CONTROL, 2)
        if not control & pci.MSIX_ENABLE or control & pci.MSIX_FUNCTION_MASK:
            return
        for vector in sorted(self._held):
            entry = self.table[16 * vector : 16 * vector + 16]
            if not entry[12] & 1:
                self._held.discard(vector)
                self._store(int.from_bytes(entry[:8], "little"), bytes(entry[8:12]))

    def _store(self, gpa: int, message: bytes) -> None:
        region = self.device.memory.find(gpa)
        assert region is not None
        assert region.view is not None
        region.view[gpa - region.gpa : gpa - region.gpa + 4] = message


class SimBar:
    """A BAR that writes every access down."""

    def __init__(self, function: SimFunction, index: int) -> None:
        self.function, self.index = function, index
        self.has_table = index == UNIT_MSIX_BAR and function.device.msix_vectors == 3

    def read8(self, offset: int) -> int:
        return self._read(1, offset)

    def read16(self, offset: int) -> int:
        return self._read(2, offset)

    def read32(self, offset: int) -> int:
        return self._read(4, offset)

    def read64(self, offset: int) -> int:
        return self._read(8, offset)

    def write8(self, offset: int, value: int) -> None:
        self._write(1, offset, value)

    def write16(self, offset: int, value: int) -> None:
        self._write(2, offset, value)

    def write32(self, offset: int, value: int) -> None:
        self._write(4, offset, value)

    def write64(self, offset: int, value: int) -> None:
        self._write(8, offset, value)

    def _read(self, nbytes: int, offset: int) -> int:
        assert offset % nbytes == 0
        self.function.accesses.append(Access(self.index, offset, nbytes))
        return int.from_bytes(self.function.device.bar_read(self.index, offset, nbytes), "little")

    def _write(self, nbytes: int, offset: int, value: int) -> None:
        assert offset % nbytes == 0
        self.function.accesses.append(Access(self.index, offset, nbytes, value))
        if self.has_table and offset < _TABLE_NBYTES:
            self.function.table[offset : offset + nbytes] = value.to_bytes(nbytes, "little")
            self.function.deliver_held()
            return
        self.function.device.bar_write(self.index, offset, value.to_bytes(nbytes, "little"))
        self.function.machine.run()


class DirectRig:
    """A machine of one unit and one accelerator; the unit is opened."""

    def __init__(self, unit: UnitConfig | None = None, *, latency_us: int = 0, **options: int | bool | None) -> None:
        """With a latency time passes slowly: DMA stays in flight until `machine.pass_ns`."""
        accel = EndpointConfig(name="accel0", options={"latency": latency_us} if latency_us else {})
        config = Config(units=(unit or UnitConfig(name="iommu0"),), endpoints=(accel,))
        self.machine = SimMachine(config, slice_ns=SLOW_NS if latency_us else LATER_NS)
        self.function = self.machine.functions["iommu0"]
        self.viommu = Viommu.open(self.function, self.machine.pool, **options)  # type: ignore[arg-type]

    def accel(self) -> Accel:
        """The accelerator, running in domain 1."""
        return Accel.open(self.machine.functions["accel0"], self.machine.pool).start_in(self.viommu)

    @property
    def mappings(self) -> int:
        return int(self.machine.vdev.units["iommu0"].engine.describe()["mappings"])
