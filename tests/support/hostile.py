"""A hostile guest and a hostile vfio-user peer for one machine: a unit, an accelerator behind it, shared RAM.

Moves are drawn from a seeded generator, half of them well-formed so that the deep paths are reached; nothing here
asserts what the device answers, only that it answers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from random import Random

from tests.support.bay import bay
from tests.support.driver import DriverRing
from tests.support.virtio_pci import RUNNING, PciDriver
from vdev.endpoints.accelerator import Accelerator
from vdev.functions.dma import DmaDoor
from vdev.functions.viommu import ViommuDevice, viommu_function
from vdev.iommu.engine import Engine
from vdev.iommu.settings import EndpointSettings, ReservedRegion, UnitSettings
from vdev.memory import Region
from vdev.transports.ram import ConnectionRam, RamFiles
from vdev.transports.stream import Message, ReceivedFds
from vdev.transports.vfio_irqs import Vectors
from vdev.transports.vfio_session import COMMANDS, Session
from vdev.virtio.ordering import NoOrdering
from vdev.virtio.polling import PollWindow
from vdev.wire import accelerator as acc
from vdev.wire import pci, vfio_user
from vdev.wire import viommu as wire

RAM_NBYTES = 1 << 18
PAGE = 4096
ENDPOINT = 0x100
RING, COMPLETIONS, RING_SIZE = 0x20000, 0x21000, 16
WORD = (1 << 64) - 1
EDGES = (0, 1, 2, 3, 0xFF, 0xFFFF, 0xFFFF_FFFF, WORD, 1 << 63, 4096, 0x8000, 0x10000)
MASTER = int(pci.Command.MEMORY | pci.Command.BUS_MASTER).to_bytes(2, "little")


class HostileGuest:
    """One machine and everything a guest can do to it."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.answered = 0  # requests the unit has put into the used ring
        settings = UnitSettings(
            "unit",
            mode=random.choice(("compat", "strict")),
            page_size_mask=(1 << 64) - random.choice((1, PAGE)),
            bypass_offered=random.random() < 0.8,
        )
        regions = (ReservedRegion(0xFEE0_0000, 0xFEF0_0000, is_msi=True),)
        self.engine = Engine(settings, [EndpointSettings(ENDPOINT, "ep", regions)], lambda event: None)
        self.unit = ViommuDevice(
            self.engine, wake=lambda worker: None, quiesce=lambda: self.accelerator.quiesce(), window=PollWindow()
        )
        self.function = viommu_function(self.unit, NoOrdering())
        self.accelerator = Accelerator("accel", bay(self._door), {"devmem": 4096})
        self.ram = memoryview(bytearray(RAM_NBYTES))
        self.functions = (self.function, self.accelerator)
        for function in self.functions:
            function.memory.add(Region(0, RAM_NBYTES, self.ram))
        self.driver = PciDriver(self.function)
        self.rings: list[DriverRing] = []
        self.now = 0

    def _door(self, function: object) -> DmaDoor:
        assert isinstance(function, Accelerator)
        return DmaDoor(self.engine, ENDPOINT, function, after_fault=self.unit.faults_pending)

    def number(self) -> int:
        """A 64-bit number that is probably interesting."""
        kind = self.random.random()
        if kind < 0.3:
            return self.random.choice(EDGES)
        return self.random.randrange(RAM_NBYTES) if kind < 0.7 else self.random.getrandbits(64)

    def move(self) -> None:
        """One step of the guest, or one slice of the device."""
        if not self.rings:
            self.start()
        moves: tuple[tuple[int, Callable[[], None]], ...] = (
            (30, self.slice),
            (25, self.request),
            (12, self.write_bar),
            (12, self.program_accelerator),
            (6, self.read_bar),
            (5, self.access_config),
            (4, self.garble),
            (3, self.rearrange_memory),
            (1, self.start),
            (1, lambda: self.random.choice(self.functions).reset()),
        )
        self.random.choices([act for _, act in moves], [weight for weight, _ in moves])[0]()

    def start(self) -> None:
        """Bring the unit up as a well-behaved driver does."""
        self.driver.bus_master(True)
        self.driver.negotiate(self.unit.offered_features)
        self.driver.write(0x10, 2, 0)
        self.rings, offset = [], 0
        for index in range(2):
            ring = DriverRing(self.ram, 16, offset=offset, slot_nbytes=256, event_idx=True)
            self.driver.add_queue(index, ring)
            self.rings.append(ring)
            offset = ring.stop
        self.driver.status(RUNNING)

    def slice(self) -> None:
        """Both workers run; what came back is taken."""
        self.now += 10_000
        self.unit.run_slice(self.now)
        self.accelerator.run_slice(self.now)
        for ring in self.rings:
            with suppress(AssertionError, IndexError, ValueError):  # a ring that was garbled
                self.answered += len(ring.reap())

    def request(self) -> None:
        """A request that may be right, or a buffer for faults."""
        random = self.random
        index = random.choice((0, 0, 0, 1))
        ring = self.rings[index]
        with suppress(IndexError, ValueError):
            if index:
                ring.add([], [random.choice((24, 24, 3, 0))])
            else:
                data = self.request_bytes()
                ring.add([data], [random.choice((0, 3, 4, 4, 120))], indirect=random.random() < 0.3)
            ring.publish()

    def request_bytes(self) -> bytes:
        """Bytes of one request."""
        random = self.random
        domain, endpoint = random.choice((0, 1, 2)), random.choice((ENDPOINT, ENDPOINT, self.number() & 0xFFFF_FFFF))
        start = self.number() & random.choice((WORD, WORD & ~0xFFF))
        end = (start + random.choice((0, 0xFFF, 0x1FFF, 0xF_FFFF))) & WORD
        gpa, flags = self.number() & ~0xFFF, random.choice((1, 2, 3, 3, 7, 9))
        made = random.choice(
            (
                wire.Attach(wire.T_ATTACH, bytes(3), domain, endpoint, random.choice((0, 0, 1, 7))).pack(),
                wire.Detach(wire.T_DETACH, bytes(3), domain, endpoint).pack(),
                wire.Map(wire.T_MAP, bytes(3), domain, start, end, gpa, flags).pack(),
                wire.Map(wire.T_MAP, bytes(3), domain, start, end, gpa, flags).pack(),
                wire.Unmap(wire.T_UNMAP, bytes(3), domain, start, end).pack(),
                wire.Probe(wire.T_PROBE, bytes(3), endpoint).pack(),
                random.randbytes(random.randrange(80)),
            )
        )
        return made if random.random() < 0.9 else made[: random.randrange(len(made) + 1)]

    def write_bar(self) -> None:
        """Any register of any BAR, any width."""
        random = self.random
        function, bar = random.choice(self.functions), random.choice((0, 0, 0, 1, 2, 4))
        offset = random.choice((random.randrange(0x60), random.randrange(0x60), self.number()))
        function.bar_write(bar, offset, self.number().to_bytes(8, "little")[: random.choice((1, 2, 4, 8))])

    def read_bar(self) -> None:
        """Any register of any BAR, any width: the answer has that width."""
        nbytes = self.random.choice((1, 2, 4, 8))
        function = self.random.choice(self.functions)
        assert len(function.bar_read(self.random.randrange(6), self.number(), nbytes)) == nbytes

    def access_config(self) -> None:
        """A configuration access, then bus mastering on again more often than not."""
        random = self.random
        function, offset, nbytes = random.choice(self.functions), random.randrange(4000), random.choice((1, 2, 4, 8))
        assert len(function.config_read(offset, nbytes)) == nbytes
        function.config_write(offset, random.randbytes(nbytes))
        if random.random() < 0.8:
            function.config_write(pci.COMMAND, MASTER)

    def garble(self) -> None:
        """Random bytes into the rings."""
        at = self.random.randrange(self.rings[-1].stop)
        self.ram[at : at + 8] = self.random.randbytes(8)
        if self.random.random() < 0.5:
            self.rings = []

    def rearrange_memory(self) -> None:
        """RAM goes, the device runs, RAM comes back whole or in two pieces, or does not."""
        for function in self.functions:
            function.memory.remove(0, RAM_NBYTES)
            function.memory_changed()
        self.slice()
        cut = self.random.choice((RAM_NBYTES, self.random.randrange(1, RAM_NBYTES)))
        for function in self.functions:
            function.memory.add(Region(0, cut, self.ram[:cut]))
            if cut < RAM_NBYTES:
                function.memory.add(Region(cut, RAM_NBYTES - cut, self.ram[cut:]))
            function.memory_changed()

    def program_accelerator(self) -> None:
        """A ring of descriptors, half of them nonsense, and the doorbell."""
        random, device = self.random, self.accelerator
        device.config_write(pci.COMMAND, MASTER)
        registers = acc.Register
        device.bar_write(0, registers.CONTROL, bytes(4))
        device.bar_write(0, registers.RING_BASE, RING.to_bytes(8, "little"))
        device.bar_write(0, registers.RING_SIZE, RING_SIZE.to_bytes(4, "little"))
        device.bar_write(0, registers.COMPLETION_BASE, COMPLETIONS.to_bytes(8, "little"))
        for index in range(RING_SIZE):
            op, flags = random.choice((0, 1, 2, 3, 4, 9)), random.choice((0, 0, 1, 2, 4, 6, 8, 255))
            nbytes = random.choice((1, 64, 4096, self.number()))
            descriptor = acc.Descriptor(
                op, flags, index, random.choice((0, 0, 1)), self.number(), self.number(), nbytes, WORD, bytes(24)
            )
            at = RING + index * acc.DESCRIPTOR_NBYTES
            self.ram[at : at + acc.DESCRIPTOR_NBYTES] = descriptor.pack()
        device.bar_write(0, registers.CONTROL, int(acc.Control.ENABLE | acc.Control.IRQ_ENABLE).to_bytes(4, "little"))
        device.bar_write(0, registers.RING_TAIL, random.randrange(RING_SIZE).to_bytes(4, "little"))


class HostilePeer:
    """Messages to a session over one of the guest's functions; every fd it sends must be closed in the end."""

    def __init__(self, guest: HostileGuest) -> None:
        self.guest = guest
        self.random = guest.random
        self.function = self.random.choice(guest.functions)
        self.vectors = Vectors(self.function.msix_vectors)
        self.ram = ConnectionRam(RamFiles(), self.function.memory, os.getpid())
        self.session = Session(self.function, self.ram, self.vectors)
        self.function.raise_vector = self.vectors.fire
        self.function.memory.clear()
        self.function.memory_changed()
        self.send(vfio_user.Command.VERSION, bytes(4))

    def message(self) -> None:
        """One message: half of them well-formed, else a known command nine times of ten, its fields small or wild."""
        random = self.random
        if random.random() < 0.5:
            command, payload, fds = self.sound()
            self.send(command, payload, fds, flags=random.choice((0, 0x10)))
            return
        command = random.choice(list(COMMANDS)) if random.random() < 0.9 else random.getrandbits(16)
        row = COMMANDS.get(command)
        payload = random.randbytes(random.randrange(64))
        if row is not None and row.record is not None and random.random() < 0.9:
            size = row.record.layout.size
            fields = b"".join(self.field() for _ in range(-(-size // 4)))[:size]
            payload = fields + payload[: random.choice((0, 0, 1, 2, 4, 8, 64))]
        wild = random.getrandbits(32) & ~1
        self.send(command, payload, self.fds(), flags=random.choice((0, 0, 0, 0x10, 2, wild)))

    def sound(self) -> tuple[int, bytes, list[int]]:
        """A message as QEMU would send it."""
        random, commands = self.random, vfio_user.Command
        kind, page = random.randrange(6), random.randrange(8) * 4096
        if kind == 0:
            fd = os.memfd_create("sound")
            os.ftruncate(fd, 1 << 16)
            return commands.DMA_MAP, vfio_user.DmaMap(32, random.choice((0, 1, 3, 3)), page, page, 8192).pack(), [fd]
        if kind == 1:
            return commands.DMA_UNMAP, vfio_user.DmaUnmap(24, 0, page, random.choice((8192, 1 << 16))).pack(), []
        if kind == 2:
            count = random.choice((0, 1, 2))
            flags = random.choice((0x21, 0x22, 0x24, 0x24))
            fds = [os.eventfd(0) for _ in range(count)] if flags == 0x24 and random.random() < 0.7 else []
            return commands.DEVICE_SET_IRQS, vfio_user.SetIrqs(20, flags, 2, 0, count).pack() + bytes(count), fds
        if kind == 3:
            return commands.DEVICE_RESET, b"", []
        region, nbytes = random.choice((0, 0, 2, 4, 7)), random.choice((1, 2, 4, 8))
        access = vfio_user.RegionAccess(random.randrange(0x80), region, nbytes).pack()
        if kind == 4:
            return commands.REGION_READ, access, []
        return commands.REGION_WRITE, access + random.randbytes(nbytes), []

    def field(self) -> bytes:
        """Four bytes of a field."""
        small = self.random.choice((0, 0, 0, 1, 2, 4, 7, 8, 9, 20, 32, 33, 36, 4096, 8192))
        return (small if self.random.random() < 0.9 else self.random.getrandbits(32)).to_bytes(4, "little")

    def fds(self) -> list[int]:
        """Up to three fds of all kinds."""
        random, out = self.random, []
        for _ in range(random.choice((0, 0, 1, 1, 2, 3))):
            kind = random.randrange(4)
            if kind < 2:
                out.append(os.eventfd(0))
            elif kind == 2:
                out.append(os.open(os.devnull, os.O_RDONLY))
            else:
                out.append(os.memfd_create("hostile"))
                os.ftruncate(out[-1], random.choice((0, 1, 8192, 1 << 20)))
        return out

    def send(self, command: int, payload: bytes, fds: list[int] | None = None, flags: int = 0) -> None:
        """Hand one message to the session."""
        header = vfio_user.Header(7, command, vfio_user.HEADER_NBYTES + len(payload), flags, 0)
        reply = self.session.handle(Message(header, memoryview(payload), ReceivedFds(fds), 0))
        assert reply is None or len(reply) >= vfio_user.HEADER_NBYTES

    def leave(self) -> None:
        """What a connection's end does."""
        self.vectors.disable()
        self.function.disconnected()
        self.ram.clear()
        self.function.memory_changed()
