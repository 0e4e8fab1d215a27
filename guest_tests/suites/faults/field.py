"""A driver that expects nothing: it works with a unit and an engine at which faults are being injected, takes whatever
comes back or does not, and can say afterwards whether all is as it should be.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from guest_tests.payload import accel as engine
from guest_tests.payload.direct import (
    READ,
    WRITE,
    Accel,
    Answer,
    Attach,
    Detach,
    DirectError,
    DmaBuffer,
    Feature,
    Map,
    PasidAlloc,
    PasidFree,
    Probe,
    Reason,
    Status,
    Unmap,
    Viommu,
)
from guest_tests.payload.direct.wait import until
from guest_tests.payload.direct.wire import TAIL_NBYTES, Request
from guest_tests.payload.direct.wire_pasid import ANSWER_NBYTES

PAGE = 4096
HURRY_S = 0.05  # while faults are injected: who waits longer waits for `clear`
PATIENCE_S = 10.0  # afterwards, for what must come
QUIET_S = 0.02  # nothing came for so long: nothing is on its way
RING_IOVA, SOURCE_IOVA, TARGET_IOVA, NOWHERE = 0x0100_0000, 0x20_0000, 0x30_0000, 0x7000_0000
ALSO = Feature.PASID | Feature.PASID_ALLOC


@dataclass
class Field:
    """Unit, engine and buffers. `restarts` counts how often the driver had to start them anew."""

    viommu: Viommu
    accel: Accel
    source: DmaBuffer
    target: DmaBuffer
    random: random.Random
    restarts: int = 0
    domain: int = 0
    late_before: int = 0  # of the rings before this one, see `nlate`
    trouble: dict[str, int] = field(default_factory=dict)  # what acts came to, by the error's name
    probed: bytes = b""
    quota: int = 0

    # life

    def start(self) -> None:
        """Start both, whatever was before. Nothing may be injected now."""
        for function in (self.viommu.function, self.accel.function):
            function.awake()
            function.bus_master(True)
        self.accel.function.enable_pasids(1)
        self.viommu.start(also=ALSO, without=Feature.EVENT_IDX, msix=True)  # each answer interrupts
        self.new_domain()
        self.probed = self.ask(Probe(endpoint=self.accel.endpoint), self.probe_room).written
        self.quota = self.viommu.pasids.config().quota

    def restart(self) -> None:
        """What a driver does that gives its device up."""
        self.restarts += 1
        self.late_before = self.nlate
        self.start()

    @property
    def nlate(self) -> int:
        """Answers that came when nobody waited for them any more."""
        return self.late_before + self.viommu.requests.ring.nlate

    def new_domain(self) -> None:
        """The engine in an address space that nothing was done to yet."""
        self.domain = self.domain % 60_000 + 1
        for request in (
            Attach(domain=self.domain, endpoint=self.accel.endpoint),
            mapping(self.domain, RING_IOVA, self.accel.ring),
            mapping(self.domain, SOURCE_IOVA, self.source),
            mapping(self.domain, TARGET_IOVA, self.target),
        ):
            self.granted(request)
        self.accel.start(RING_IOVA)

    @property
    def probe_room(self) -> int:
        """Writable bytes of a PROBE."""
        return self.viommu.config.probe_size + TAIL_NBYTES

    # requests, of which any number may be out

    def ask(self, request: Request, room: int = TAIL_NBYTES, seconds: float = PATIENCE_S) -> Answer:
        """Send one request and wait for its answer, whatever else comes meanwhile. Raises DirectError without one."""
        return self.viommu.send(request, room, timeout_s=seconds)

    def granted(self, request: Request, room: int = TAIL_NBYTES) -> Answer:
        """As `ask`; AssertionError unless it is granted, with a whole answer."""
        answer = self.ask(request, room)
        assert (answer.status, answer.used_nbytes) == (Status.OK, room), f"{request!r}: {answer}"
        return answer

    def settle(self) -> None:
        """All answers that are still out come now. AssertionError if they do not, RingViolation as from the ring."""
        ring = self.viommu.requests.ring

        def is_quiet() -> bool:
            assert ring.reap() == []
            return not ring.outstanding

        assert until(is_quiet, PATIENCE_S), f"answers are still out after clear: {ring}"

    def allocated(self) -> int:
        """A PASID. DEVERR says that the authority did not answer within its second, as on a machine that stood still
        for so long: it is asked again."""
        answers: list[Answer] = []

        def has_answered() -> bool:
            answers.append(self.ask(PasidAlloc(), ANSWER_NBYTES + TAIL_NBYTES))
            return answers[-1].status != Status.DEVERR

        assert until(has_answered, PATIENCE_S), answers
        assert (answers[-1].status, answers[-1].used_nbytes) == (Status.OK, ANSWER_NBYTES + TAIL_NBYTES), answers
        return int.from_bytes(answers[-1].written[:4], "little")

    # while faults are injected

    def act(self) -> None:
        """One thing a driver does, by chance; whatever comes of it is counted."""
        name = self.random.choice(list(ACTS))
        try:
            ACTS[name](self)
        except (DirectError, engine.AcceleratorTimeout) as error:
            word = f"{name}: {type(error).__name__}"
            self.trouble[word] = self.trouble.get(word, 0) + 1

    def hurry(self, request: Request, room: int = TAIL_NBYTES) -> Answer:
        """As `ask`, without patience."""
        return self.ask(request, room, HURRY_S)

    def operate(self, operation: engine.Operation) -> None:
        """An operation of the engine, without patience; a halted engine is started again."""
        if not self.accel.is_running:
            self.accel.engine.start_without_reset()
        self.accel.run(operation, HURRY_S)

    # afterwards

    def check(self) -> None:
        """All is as if nothing had ever been injected; AssertionError otherwise."""
        while until(
            lambda: self.viommu.events.ring.has_used, QUIET_S
        ):  # held ones come now, and those without a buffer
            self.viommu.events.take()
        for vector in self.viommu.vectors:
            vector.settle(QUIET_S)
            vector.clear()
        self.new_domain()
        self.source.randomise()
        self.target.fill(0)
        self.accel.do(copy(PAGE))
        assert self.target.read() == self.source.read()
        assert self.viommu.vectors[1].wait(), "no interrupt for an answer"
        refused = self.accel.run(engine.Operation(engine.FILL, dst=NOWHERE, nbytes=8))
        assert (refused.status, refused.fault_iova) == (engine.TRANSLATION_FAULT, NOWHERE), refused
        told = self.viommu.wait_fault(PATIENCE_S)
        assert (told.endpoint, told.reason, told.address) == (self.accel.endpoint, Reason.MAPPING, NOWHERE), told
        assert self.viommu.faults() == []
        assert self.granted(Probe(endpoint=self.accel.endpoint), self.probe_room).written == self.probed
        self.granted(Unmap(domain=self.domain, virt_start=TARGET_IOVA, virt_end=TARGET_IOVA + PAGE - 1))
        refused = self.accel.run(copy(PAGE))
        assert (refused.status, refused.fault_iova) == (engine.TRANSLATION_FAULT, TARGET_IOVA), refused
        self.viommu.wait_fault(PATIENCE_S)
        pasid = self.allocated()
        self.granted(PasidFree(first=pasid, last=pasid), ANSWER_NBYTES + TAIL_NBYTES)


def mapping(domain: int, iova: int, buffer: DmaBuffer) -> Map:
    """The request that maps all of `buffer`."""
    end = iova + buffer.nbytes - 1
    return Map(domain=domain, virt_start=iova, virt_end=end, phys_start=buffer.gpa, flags=READ | WRITE)


def copy(nbytes: int) -> engine.Operation:
    """From the source to the target."""
    return engine.Operation(engine.COPY, SOURCE_IOVA, TARGET_IOVA, nbytes)


def _remap(field: Field) -> None:
    iova = TARGET_IOVA
    field.hurry(Unmap(domain=field.domain, virt_start=iova, virt_end=iova + PAGE - 1))
    field.hurry(mapping(field.domain, iova, field.target))


def _move(field: Field) -> None:
    endpoint = field.accel.endpoint
    field.hurry(Detach(domain=field.domain, endpoint=endpoint))
    field.hurry(Attach(domain=field.domain, endpoint=endpoint))
    for iova, buffer in (
        (RING_IOVA, field.accel.ring), (SOURCE_IOVA, field.source), (TARGET_IOVA, field.target),
    ):  # fmt: skip
        field.hurry(mapping(field.domain, iova, buffer))


def _pasid(field: Field) -> None:
    answer = field.hurry(PasidAlloc(), ANSWER_NBYTES + TAIL_NBYTES)
    if answer.ok:
        pasid = int.from_bytes(answer.written[:4], "little")
        field.hurry(PasidFree(first=pasid, last=pasid), ANSWER_NBYTES + TAIL_NBYTES)


ACTS: dict[str, Callable[[Field], object]] = {
    "remap": _remap,
    "move": _move,
    "copy": lambda field: field.operate(copy(field.random.choice((8, 512, PAGE)))),
    "miss": lambda field: field.operate(engine.Operation(engine.FILL, dst=NOWHERE, nbytes=8)),
    "checksum": lambda field: field.operate(engine.Operation(engine.CHECKSUM, SOURCE_IOVA, nbytes=PAGE)),
    "probe": lambda field: field.hurry(Probe(endpoint=field.accel.endpoint), field.probe_room),
    "pasid": _pasid,
    "look": lambda field: field.accel.registers.read32(engine.STATUS),
    "interrupted": lambda field: field.operate(engine.Operation(engine.NOP, flags=engine.FLAG_IRQ)),
    "told": lambda field: field.viommu.events.take(),
}
