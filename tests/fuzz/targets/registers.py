"""Accesses to BARs and to configuration space at any offset and width, with resets in between: unit, rng, accelerator.

One machine as `assemble` builds it. Input: one byte chooses its options, then moves (`_MOVES`). Besides that nothing
raises: a read has the width it was asked for, what is read-only in the configuration stays, a system reset brings all
of it back to power-on values, interrupts come from a bus master with a vector it has, and without bus master or behind
a unit that lets nothing through RAM stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.fuzz.reader import WORD, Reader
from tests.support.driver import DriverRing
from vdev.assemble import Machine
from vdev.config.schema import Config, EndpointConfig, SlotConfig, UnitConfig
from vdev.functions.base import Progress, Worker
from vdev.functions.virtio_pci import DEVICE_OFFSET, ISR_OFFSET, NOTIFY_OFFSET, STRUCTURES_BAR
from vdev.memory import Region
from vdev.pci.base import PciFunction
from vdev.pci.function import CONFIG_NBYTES
from vdev.virtio.ordering import NoOrdering
from vdev.wire import accelerator, pci
from vdev.wire import virtio_pci as virtio

RAM_GPA, RAM_NBYTES = 0x10_0000, 0x8000
RING_NBYTES = 0x3000
LATER_NS = 10_000_000
MAX_SLICES = 2000
MAX_RUNS = 24
MASTER = int(pci.Command.MEMORY | pci.Command.BUS_MASTER).to_bytes(2, "little")
KNOWN_STATUS = int(
    virtio.Status.ACKNOWLEDGE | virtio.Status.DRIVER | virtio.Status.DRIVER_OK | virtio.Status.FEATURES_OK
    | virtio.Status.DEVICE_NEEDS_RESET | virtio.Status.FAILED
)  # fmt: skip
WIDTHS = (1, 2, 4, 8, 3, 0, 16, 4096)
COMMON = virtio.COMMON_WRITABLE
PLACES = (COMMON[0][0], ISR_OFFSET, DEVICE_OFFSET, NOTIFY_OFFSET, 0x800, 0xFF0, 0x4000, 1 << 20)
# Header fields that are the function's and nobody's to write: identity, class, header type, subsystem, pointer.
READ_ONLY = ((0x00, 4), (0x08, 4), (0x0E, 1), (0x2C, 4), (0x34, 1), (0x3D, 1))


class Scene:
    """A machine and what is checked of it."""

    def __init__(self, kind: int) -> None:
        self.woken: dict[int, Worker] = {}
        self.now_ns = self.runs = 0
        self.machine = Machine(
            _config(kind),
            emit=_nothing,
            wake=self._wake,
            wake_at=_nothing,
            ordering=NoOrdering(),
        )
        if kind & 0x10:
            self.machine.trace_to(_read_event, lambda handle: handle)
        self.functions: list[PciFunction] = [f for f in self.machine.functions.values() if isinstance(f, PciFunction)]
        self.ram = memoryview(bytearray(RAM_NBYTES))
        for function in self.functions:
            self._connect(function)
        self.power_on = [function.config_read(0, CONFIG_NBYTES) for function in self.functions]
        self.chains = [_chains(image) for image in self.power_on]

    def _wake(self, worker: Worker) -> None:
        self.woken[id(worker)] = worker

    def _connect(self, function: PciFunction) -> None:
        function.memory.add(Region(RAM_GPA, RAM_NBYTES, self.ram))

        def interrupted(vector: int, *message: int) -> None:
            assert 0 <= vector < function.msix_vectors, "no such vector"
            assert function.bus_master, "an interrupt without bus master"

        function.raise_vector = function.raise_message = interrupted

    # what a guest does; the first byte of a move says to whom

    def _function(self, given: Reader) -> PciFunction:
        return self.functions[given.byte() % len(self.functions)]

    def read_bar(self, given: Reader) -> None:
        """Any BAR, any offset, any width."""
        function, bar, offset, nbytes = self._function(given), given.byte() % 8, _offset(given), _width(given)
        assert len(function.bar_read(bar, offset, nbytes)) == nbytes

    def write_bar(self, given: Reader) -> None:
        """Likewise."""
        function, bar, offset, nbytes = self._function(given), given.byte() % 8, _offset(given), _width(given)
        function.bar_write(bar, offset, given.take(nbytes).ljust(nbytes, b"\0"))

    def write_register(self, given: Reader) -> None:
        """One of the registers that do something, whole."""
        function = self._function(given)
        offset, nbytes, _ = COMMON[given.byte() % len(COMMON)]
        function.bar_write(STRUCTURES_BAR, offset, given.take(nbytes).ljust(nbytes, b"\0"))

    def write_accelerator(self, given: Reader) -> None:
        """The accelerator's registers, whole."""
        registers = list(accelerator.Register)
        value = given.number(4).to_bytes(4, "little")
        self.functions[-1].bar_write(0, registers[given.byte() % len(registers)], value)

    def read_config(self, given: Reader) -> None:
        """Any offset, any width."""
        function, offset, nbytes = self._function(given), _config_offset(given), _width(given)
        assert len(function.config_read(offset, nbytes)) == nbytes

    def write_config(self, given: Reader) -> None:
        """Any offset, any width."""
        function, offset, nbytes = self._function(given), _config_offset(given), _width(given)
        before = self._ids(function)
        function.config_write(offset, given.take(nbytes).ljust(nbytes, b"\0"))
        assert self._ids(function) == before, "what is read-only was written"

    def command(self, given: Reader) -> None:
        """The command register: bus master and memory on and off."""
        self._function(given).config_write(pci.COMMAND, bytes([given.byte() & 0x47, 0]))

    def write_capability(self, given: Reader) -> None:
        """A register of one of the capabilities: that is where writes do something."""
        function, choice, at, nbytes = self._function(given), given.byte(), given.byte() % 32, _width(given)
        offsets = [offset for _, offset in self.chains[self.functions.index(function)]]
        function.config_write(offsets[choice % len(offsets)] + at, given.take(nbytes).ljust(nbytes, b"\0"))

    def use_window(self, given: Reader) -> None:
        """The configuration access window: where it points at, then a read or a write through it."""
        function, offset, nbytes, bar = self._function(given), _offset(given), given.byte() % 10, given.byte() % 3
        image = function.config_read(0, CONFIG_NBYTES)
        for cap_id, at in self.chains[self.functions.index(function)]:
            if at < pci.STANDARD_NBYTES and cap_id == pci.CapId.VENDOR and image[at + 3] == virtio.CfgType.PCI:
                function.config_write(at + virtio.CAP_BAR, bytes([bar // 2]))
                where = (offset & 0xFFFF_FFFF).to_bytes(4, "little") + nbytes.to_bytes(4, "little")
                function.config_write(at + virtio.CAP_OFFSET, where)
                if bar & 1:
                    function.config_write(at + virtio.CAP_PCI_CFG_DATA, given.take(4).ljust(4, b"\0"))
                assert len(function.config_read(at + virtio.CAP_PCI_CFG_DATA, 4)) == 4

    def bring_up(self, given: Reader) -> None:
        """What a driver does to start a virtio function: features, rings, DRIVER_OK."""
        function, features = self._function(given), given.byte()
        function.config_write(pci.COMMAND, MASTER)
        for status in (0, 1, 3):
            function.bar_write(STRUCTURES_BAR, virtio.COMMON_STATUS, bytes([status]))
        for select in range(2):
            function.bar_write(STRUCTURES_BAR, 0, select.to_bytes(4, "little"))
            offered = function.bar_read(STRUCTURES_BAR, 4, 4)
            function.bar_write(STRUCTURES_BAR, 8, select.to_bytes(4, "little"))
            accepted = offered if select or not features else bytes([*offered[:3], features])
            function.bar_write(STRUCTURES_BAR, 0x0C, accepted)
        function.bar_write(STRUCTURES_BAR, virtio.COMMON_STATUS, b"\x0b")
        function.bar_write(STRUCTURES_BAR, 0x10, bytes(2))  # vector 0 tells of changes
        for index in range(2):
            ring = DriverRing(self.ram[index * RING_NBYTES :], 8, base_gpa=RAM_GPA + index * RING_NBYTES)
            self._enable(function, index, ring)
        function.bar_write(STRUCTURES_BAR, virtio.COMMON_STATUS, b"\x0f")

    def _enable(self, function: PciFunction, index: int, ring: DriverRing) -> None:
        ring.add([bytes([5, 0, 0, 0])], [64])
        ring.publish()
        function.bar_write(STRUCTURES_BAR, 0x16, index.to_bytes(2, "little"))
        function.bar_write(STRUCTURES_BAR, 0x18, (8).to_bytes(2, "little") + index.to_bytes(2, "little"))
        addresses = (ring.desc_gpa, ring.avail_gpa, ring.used_gpa)
        function.bar_write(STRUCTURES_BAR, 0x20, b"".join(gpa.to_bytes(8, "little") for gpa in addresses))
        function.bar_write(STRUCTURES_BAR, 0x1C, b"\1\0")

    # what happens around it

    def reset(self, given: Reader) -> None:
        """One of the ways a function starts anew or stops."""
        function, choice = self._function(given), given.byte() % 6
        (
            function.reset,
            function.disconnected,
            function.quiesce,
            function.stop_dma,
            lambda: setattr(function, "removed", False),
            lambda: setattr(function, "removed", True),
        )[choice]()
        if choice < 2 and not function.removed:
            assert function.config_read(0, CONFIG_NBYTES) == self.power_on[self.functions.index(function)]

    def freeze(self, given: Reader) -> None:
        """QMP `stop` and `cont`."""
        choice = given.byte()
        for unit in self.machine.units.values():
            unit.freezer.set("fuzz", bool(choice & 1))

    def move_memory(self, given: Reader) -> None:
        """RAM goes and, unless asked otherwise, comes back in two pieces."""
        function, cut = self._function(given), given.number(2) % RAM_NBYTES
        function.memory.remove(RAM_GPA, RAM_NBYTES)
        function.memory_changed()
        for start, stop in ((0, cut), (cut, RAM_NBYTES)):
            if start < stop and cut != 1:
                function.memory.add(Region(RAM_GPA + start, stop - start, self.ram[start:stop]))
        function.memory_changed()

    def run(self, given: Reader) -> None:
        """Every woken worker until it is at rest."""
        self.runs += 1
        reachable = any(function.dma_enabled for function in self.functions)
        before = None if reachable else bytes(self.ram)
        for _ in range(MAX_SLICES):
            if not self.woken:
                break
            self.now_ns += LATER_NS
            for key, worker in list(self.woken.items()):
                if worker.run_slice(self.now_ns) is Progress.IDLE:
                    self.woken.pop(key, None)
        else:
            raise AssertionError("the workers do not come to rest")
        assert before is None or self.ram == before, "a store without bus master"

    # what is checked

    def _ids(self, function: PciFunction) -> list[bytes]:
        return [function.config_read(offset, nbytes) for offset, nbytes in READ_ONLY]

    def check(self) -> None:
        """What holds whatever was done."""
        for function, chain in zip(self.functions, self.chains, strict=True):
            function.removed = False
            assert _chains(function.config_read(0, CONFIG_NBYTES)) == chain
            for bar in function.bars:
                address = function.config_read(pci.BAR0 + 4 * bar.index, 4)
                assert int.from_bytes(address, "little") & (bar.nbytes - 1) & ~0xF == 0
            status = function.bar_read(STRUCTURES_BAR, virtio.COMMON_STATUS, 1)[0]
            if function is not self.functions[-1]:
                assert not status & ~KNOWN_STATUS
                assert not status & virtio.Status.DRIVER_OK or status & virtio.Status.FEATURES_OK


_MOVES: tuple[Callable[[Scene, Reader], None], ...] = (
    Scene.write_register,
    Scene.write_bar,
    Scene.read_bar,
    Scene.write_config,
    Scene.read_config,
    Scene.write_capability,
    Scene.write_accelerator,
    Scene.use_window,
    Scene.bring_up,
    Scene.run,
    Scene.reset,
    Scene.freeze,
    Scene.move_memory,
    Scene.command,
)


def one_input(data: bytes) -> None:
    """Play one input to a new machine, and let it come to rest."""
    given = Reader(data)
    scene = Scene(given.byte())
    while given.more and scene.runs < MAX_RUNS:
        _MOVES[given.byte() % len(_MOVES)](scene, given)
    scene.run(given)
    scene.check()


def _config(kind: int) -> Config:
    """The machine that the bits of `kind` name."""
    options: dict[str, int | str | bool] = {"devmem": 4096, "pasid_bits": 0 if kind & 4 else 20, "ats": not kind & 8}
    return Config(
        units=(
            UnitConfig(
                name="iommu0",
                mode="strict" if kind & 1 else "compat",
                bypass="not-offered" if kind & 2 else "on",
                granule=1 if kind & 0x40 else 4096,
            ),
        ),
        endpoints=(
            EndpointConfig(name="rng0", model="rng", bdf="02:00.0", options={"source": "seed:1", "max_bytes": 1 << 16}),
            EndpointConfig(name="accel0", bdf="01:00.0", options=options),
        ),
        slots=(SlotConfig(bdf="03:00.0"),) if kind & 0x20 else (),
    )


def _chains(image: bytes) -> list[tuple[int, int]]:
    """(id, offset) of every capability of both lists, as a guest finds them."""
    found: list[tuple[int, int]] = []
    offset = image[pci.CAPABILITY_POINTER]
    while offset and len(found) < 64:
        found.append((image[offset], offset))
        offset = image[offset + 1]
    offset = 0x100
    while offset and len(found) < 128:
        word = int.from_bytes(image[offset : offset + 4], "little")
        found.append((word & 0xFFFF, offset))
        offset = word >> 20
    return found


def _offset(given: Reader) -> int:
    """Two bytes: a place and how far behind it; sometimes any 64-bit number."""
    choice = given.byte()
    if choice & 0x80:
        return given.number(8) if choice & 0x40 else WORD - given.byte()
    return PLACES[choice % len(PLACES)] + given.byte() % 0x60


def _config_offset(given: Reader) -> int:
    """Two bytes: anywhere in configuration space and behind it, or in its header."""
    number = given.number(2)
    return number % 0x40 if number >= 2 * CONFIG_NBYTES else number


def _width(given: Reader) -> int:
    return WIDTHS[given.byte() % len(WIDTHS)]


def _read_event(event: object) -> None:
    """A trace looks at what it is told."""
    str(event)


def _nothing(*_: object) -> None:
    """Nobody listens; slices are run by the scene."""


def seeds() -> Iterator[bytes]:
    """Drivers that start a function, look around, and reset it."""
    snapshot = bytes([4, 0, 0, 0, 7])
    for kind in (0, 0x10, 0x27, 0x4A):
        for function in range(3):
            start = bytes([8, function, 0, 9])
            yield bytes([kind]) + start + bytes([1, function, 0, 3, 0, 1, 0, 0, 9])
            yield bytes([kind]) + start + bytes([3, function, 4, 0, 1, 0, 0, 9, 10, function, 0]) + snapshot
            yield bytes([kind]) + bytes([5, function, 0, 8, 1, 0, 0x80]) + start + bytes([12, function, 0, 8, 9])
            yield bytes([kind]) + start + bytes([9, 13, function, 2, 9, 10, function, 3])
            yield bytes([kind]) + start + bytes([7, function, 0, 0, 4, 0, 7, function, 2, 36, 1, 1, 1])
        registers = [(0x18, 0), (0x20, 8), (0x10, 5), (0x28, 1)]
        places = [list(accelerator.Register).index(accelerator.Register(offset)) for offset, _ in registers]
        writes = b"".join(
            bytes([6]) + value.to_bytes(4, "little") + bytes([place])
            for place, (_, value) in zip(places, registers, strict=True)
        )
        yield bytes([kind, 3, 2, 4, 0, 1, 6, 0]) + writes + bytes([9, 11, 1, 9, 11, 0, 9, 10, 0, 2])
