"""A virtio-iommu unit driven from user space: everything a kernel driver does, and everything it would never do.

    pool = DmaPool()
    with Viommu.open(find_units()[0], pool) as viommu:
        viommu.attach(domain=1, endpoint=0x100)
        viommu.map(domain=1, iova=0x10000, gpa=buffer.gpa, nbytes=4096, access=READ | WRITE)

The same code drives a unit attached by vfio-user and one attached by vhost-user.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import TracebackType

from .. import guest
from . import wire
from .answers import DIRECT, Answer, Layout, RequestRefused
from .errors import NoAnswer, NotNegotiated
from .events import EventQueue
from .function import Function, PciFunction
from .memory import Allocator, DmaBuffer
from .msix import NO_VECTOR, MsixTable, Vector
from .pasids import Pasids
from .queue import TIMEOUT_S
from .requests import RequestQueue
from .virtio import DEVICE_ID_BASE, VENDOR_VIRTIO, DeviceStatus, VirtioPci
from .vring import Chain
from .wire import Access, Config, Fault, Feature, Request
from .wire_pasid import acceptable

# What a driver accepts of what is offered, unless told otherwise.
DEFAULT_FEATURES = (
    Feature.VERSION_1
    | Feature.INPUT_RANGE
    | Feature.DOMAIN_RANGE
    | Feature.MAP_UNMAP
    | Feature.PROBE
    | Feature.MMIO
    | Feature.BYPASS_CONFIG
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
)
NEVENTS = 16
CLASS_IOMMU = 0x080600
_CONFIG_WIDTHS = (8, 8, 8, 4, 4, 4, 1, 1, 1, 1)


def find_units() -> list[str]:
    """BDFs of all virtio-iommu functions, whichever way they are attached."""
    return guest.find_pci(VENDOR_VIRTIO, DEVICE_ID_BASE + wire.DEVICE_ID)


class Viommu:
    """One unit. `open` makes a running one; `start` and `reset` may be called as often as one likes."""

    def __init__(self, transport: VirtioPci, memory: Allocator) -> None:
        """Touches nothing."""
        self.function = transport.function
        self.transport = transport
        self.features = Feature(0)  # what was negotiated
        self.pasids = Pasids(self)
        self.msix: MsixTable | None = None
        self._memory = memory.arena()
        self._release = ExitStack()  # gives the function back, if `open` took it
        self._queues: tuple[RequestQueue, EventQueue] | None = None
        self._config: Config | None = None

    @classmethod
    def open(
        cls,
        target: str | Function | VirtioPci,
        memory: Allocator,
        *,
        features: int | None = None,
        without: int = 0,
        also: int = 0,
        queue_size: int | None = None,
        nevents: int = NEVENTS,
        msix: bool = False,
    ) -> Viommu:
        """A running unit. `target` is a BDF, taken and given back with `close`; or a function taken already; or the
        registers of one, which is quicker than finding them anew.

        For the rest see `start`. Raises what it raises, and OSError when the function cannot be taken.
        """
        with ExitStack() as undo:
            if isinstance(target, str):
                target = undo.enter_context(PciFunction(target))
            viommu = cls(target if isinstance(target, VirtioPci) else VirtioPci(target), memory)
            viommu._release = undo.pop_all()
        try:
            viommu.function.awake()
            viommu.start(
                features=features, without=without, also=also, queue_size=queue_size, nevents=nevents, msix=msix
            )
        except BaseException:
            with suppress(NoAnswer):
                viommu.close()
            raise
        return viommu

    # life

    def start(
        self,
        *,
        features: int | None = None,
        without: int = 0,
        also: int = 0,
        queue_size: int | None = None,
        nevents: int = NEVENTS,
        msix: bool = False,
    ) -> None:
        """Reset, negotiate, set up both queues, DRIVER_OK: whatever state the device was left in.

        `features`: exactly these; by default those of DEFAULT_FEATURES that are offered, and `also`, but for `without`
        and what depends on it.
        `queue_size`: entries of both queues; by default what the device has.
        `nevents`: event buffers posted; 0 starves the event queue until `events.post`.
        `msix`: let the device interrupt, into the vectors of `vectors`; else it is asked for no interrupts.

        Raises NoAnswer (no reset), NotNegotiated (`also` is not offered), FeaturesRefused, QueueRefused,
        OutOfDmaMemory.
        """
        self.reset()
        offered = self.transport.offered()
        wanted = Feature(features) if features is not None else _wanted(offered, also, without)
        self.transport.negotiate(wanted)
        self.features = wanted
        requests = RequestQueue(self.transport, wire.REQUEST_QUEUE, self._memory, wanted, size=queue_size)
        events = EventQueue(self.transport, wire.EVENT_QUEUE, self._memory, wanted, size=queue_size)
        requests.explain = lambda: f"; features {self.features!r}, {self.config}"
        self._queues = (requests, events)
        if msix:
            self._interrupts(requests, events)
        self.transport.status = (
            DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK | DeviceStatus.DRIVER_OK
        )
        events.post(min(nevents, events.ring.size))

    def reset(self) -> None:
        """Device reset: endpoints become unattached, domains are gone. `start` starts it anew.

        Over vhost-user QEMU tells the unit at the next start only, and the endpoints stand still until then.
        """
        self.transport.reset()
        self._queues = None
        self._config = None
        self.features = Feature(0)
        if self.msix is not None:
            self.msix.close()
            self.msix = None
        self._memory.close()

    def close(self) -> None:
        """Reset the device, free all memory, give the function back if `open` took it. Twice is once.

        Raises NoAnswer when the device does not come out of reset.
        """
        with self._release:  # it switches bus master off, so even a device without answer is kept from the memory
            self.reset()

    def __enter__(self) -> Viommu:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # configuration

    @property
    def config(self) -> Config:
        """The device configuration as it was first read after `start`; `read_config` reads it anew."""
        if self._config is None:
            self._config = self.read_config()
        return self._config

    def read_config(self) -> Config:
        """The device configuration now, all of one generation. Raises NoAnswer."""
        return Config.parse(self.transport.read_config_bytes(_CONFIG_WIDTHS))

    @property
    def bypass(self) -> bool:
        """The bypass byte, read now."""
        return bool(self.transport.read_config(wire.BYPASS_OFFSET, 1) & 1)

    @bypass.setter
    def bypass(self, value: int) -> None:
        """One write of one byte, whatever was negotiated; any number may be tried."""
        self.transport.write_config(wire.BYPASS_OFFSET, 1, int(value))

    # requests: each raises RequestRefused, or NoAnswer and its like

    def attach(self, *, domain: int, endpoint: int, flags: int = 0, reserved: bytes = bytes(4)) -> Answer:
        """ATTACH; `flags` may be ATTACH_BYPASS."""
        return self.ask(wire.Attach(domain=domain, endpoint=endpoint, flags=flags, reserved=reserved))

    def detach(self, *, domain: int, endpoint: int, reserved: bytes = bytes(8)) -> Answer:
        """DETACH."""
        return self.ask(wire.Detach(domain=domain, endpoint=endpoint, reserved=reserved))

    def map(
        self, *, domain: int, iova: int, gpa: int, nbytes: int, access: int = Access.READ | Access.WRITE, flags: int = 0
    ) -> Answer:
        """MAP [iova, iova + nbytes) to [gpa, gpa + nbytes); `flags` are set beside `access`."""
        end = (iova + nbytes - 1) & wire.MAX_U64
        return self.ask(
            wire.Map(domain=domain, virt_start=iova, virt_end=end, phys_start=gpa, flags=int(access) | flags)
        )

    def map_buffer(self, domain: int, iova: int, buffer: DmaBuffer, access: int = Access.READ | Access.WRITE) -> Answer:
        """MAP all of `buffer` at `iova`."""
        return self.map(domain=domain, iova=iova, gpa=buffer.gpa, nbytes=buffer.nbytes, access=access)

    def unmap(self, *, domain: int, iova: int, nbytes: int, reserved: bytes = bytes(4)) -> Answer:
        """UNMAP all mappings inside [iova, iova + nbytes)."""
        end = (iova + nbytes - 1) & wire.MAX_U64
        return self.ask(wire.Unmap(domain=domain, virt_start=iova, virt_end=end, reserved=reserved))

    def probe(self, endpoint: int) -> list[wire.Property]:
        """PROBE: the properties of `endpoint`."""
        answer = self.ask(wire.Probe(endpoint=endpoint), nwritable=self.config.probe_size + wire.TAIL_NBYTES)
        return list(wire.properties(answer.written[: self.config.probe_size]))

    def serves(self, endpoint: int) -> bool:
        """Whether this unit knows `endpoint`: PROBE must be negotiated."""
        if not self.features & Feature.PROBE:
            raise NotNegotiated("PROBE was not negotiated")
        answer = self.send(wire.Probe(endpoint=endpoint), nwritable=self.config.probe_size + wire.TAIL_NBYTES)
        return answer.ok

    def ask(self, request: Request | bytes, nwritable: int = wire.TAIL_NBYTES, layout: Layout = DIRECT) -> Answer:
        """Send a request that is to succeed. Raises RequestRefused unless it is answered OK."""
        answer = self.send(request, nwritable, layout)
        if not answer.ok:
            raise RequestRefused(request, answer)
        return answer

    def send(
        self,
        request: Request | bytes,
        nwritable: int = wire.TAIL_NBYTES,
        layout: Layout = DIRECT,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> Answer:
        """Send any bytes, with room for any answer, in any layout. A refusal is an Answer like any other."""
        return self.send_chain(self.chain(request, nwritable, layout), timeout_s=timeout_s)

    def submit(
        self, requests: Sequence[Request | bytes], nwritable: int = wire.TAIL_NBYTES, layout: Layout = DIRECT
    ) -> list[Answer]:
        """Send many, one kick for as many as the ring holds; answers in the requests' order."""
        return self.requests.submit(requests, nwritable, layout)

    def chain(self, request: Request | bytes, nwritable: int = wire.TAIL_NBYTES, layout: Layout = DIRECT) -> Chain:
        """The descriptors `send` would post, to be changed and given to `send_chain`."""
        return self.requests.chain(request, nwritable, layout)

    def send_chain(self, chain: Chain, *, timeout_s: float = TIMEOUT_S) -> Answer:
        """Post a chain as it stands and wait. Raises NoAnswer, or DeviceBroken as soon as the device says so."""
        return self.requests.send_chain(chain, timeout_s)

    # rings

    @property
    def requests(self) -> RequestQueue:
        """The request queue. Raises NotNegotiated while the device is not started."""
        return self._running()[0]

    @property
    def events(self) -> EventQueue:
        """The event queue. Raises NotNegotiated while the device is not started."""
        return self._running()[1]

    def reset_queue(self, index: int) -> None:
        """Reset one queue. Raises NotNegotiated without RING_RESET, NoAnswer."""
        if not self.features & Feature.RING_RESET:
            raise NotNegotiated("RING_RESET was not negotiated")
        self.transport.reset_queue(index)

    @property
    def vectors(self) -> tuple[Vector, Vector, Vector]:
        """Where configuration changes, requests and events interrupt; one and the same if the device has but one.

        Raises NotNegotiated when it was not started with `msix`.
        """
        if self.msix is None:
            raise NotNegotiated("not started with msix=True")
        return self._vectors

    @property
    def is_vhost_user(self) -> bool:
        """Whether QEMU carries the unit by vhost-user; its class code tells, and little else of what a driver sees."""
        return self.function.class_code != CLASS_IOMMU

    @property
    def is_broken(self) -> bool:
        """Whether the device says DEVICE_NEEDS_RESET, which one behind vhost-user never does."""
        return bool(self.transport.status & DeviceStatus.NEEDS_RESET)

    # faults

    def faults(self) -> list[Fault]:
        """The faults reported since the last call; their buffers are posted again."""
        return self.events.take()

    def wait_fault(self, timeout_s: float = TIMEOUT_S) -> Fault:
        """The next fault. Raises NoAnswer."""
        return self.events.wait_fault(timeout_s)

    def _interrupts(self, requests: RequestQueue, events: EventQueue) -> None:
        self.msix = MsixTable(self.function, self._memory)
        vectors = self.msix.vectors
        wanted = [min(number, len(vectors) - 1) for number in range(3)]
        granted = [
            self.transport.config_vector(wanted[0]),
            self.transport.queue_vector(requests.index, wanted[1]),
            self.transport.queue_vector(events.index, wanted[2]),
        ]
        if NO_VECTOR in granted:
            raise NotNegotiated(f"asked for MSI-X vectors {wanted}, granted {granted}")
        config, request, event = (vectors[number] for number in granted)
        self._vectors = (config, request, event)
        requests.ring.want_interrupts(True)
        events.ring.want_interrupts(True)

    def _running(self) -> tuple[RequestQueue, EventQueue]:
        if self._queues is None:
            raise NotNegotiated("the device is reset: start it first")
        return self._queues


def _wanted(offered: Feature, also: int, without: int) -> Feature:
    if missing := Feature(also & ~offered):
        raise NotNegotiated(f"the device does not offer {missing!r}")
    return acceptable((DEFAULT_FEATURES & offered | also) & ~without)
