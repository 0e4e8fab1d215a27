"""What must be in every byte of memory when a race is over, and whether it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .. import accel as engine
from ..direct.wire import Fault, Request
from .errors import RaceError
from .field import Field
from .ground import Operand
from .job import Job


@dataclass(slots=True)
class Wish:
    """A request, and what belongs to somebody else as soon as it is answered."""

    request: Request
    taken: Callable[[], None]
    affected: bool = True  # whether it may have to wait for what is in flight
    asked_ns: int = -1
    answered_ns: int = -1

    def __str__(self) -> str:
        """For people."""
        return f"answered: {type(self.request).__name__}, after {self.answered_ns - self.asked_ns} ns"


@dataclass(slots=True)
class Taken:
    """Memory that changed hands: what was in it then, and what the new owner wrote."""

    memory: memoryview
    copy: bytes
    canary: bytes
    operand: Operand | None = None
    at: int = 0
    is_ring: bool = False  # of the unit
    passed_on: bool = False  # it is part of what changed hands once more, later


class Judge:
    """All that is known of one race. `main` is the operation that is raced; others work beside it."""

    main: Job

    def __init__(self, field: Field) -> None:
        self.field = field
        self.clock = field.clock
        self.jobs: list[Job] = []
        self.taken: list[Taken] = []
        self.wishes: list[Wish] = []
        self.second: Operand | None = None  # where the rest of a moved operation lands
        self.reports_faults = True  # no reset of the unit forgot them
        self.told: list[tuple[int, object]] = []

    def judge(self) -> None:
        """Look at completions, then at every byte."""
        for job in self.jobs:
            job.look()
        for job in self.jobs:
            try:
                job.judge(self.field.slice_nbytes)
            except RaceError as error:
                self.must(False, str(error))
            if job.record[0] == engine.PENDING and job.dst is not None:
                job.landed = self._landed(job, job.dst)
                self.must(not job.may_abort or job.may_vanish or not job.landed, "aborted, and no completion says so")
        self.judge_canaries()
        operands = {id(one): one for job in self.jobs for one in job.operands}
        for operand in operands.values():
            self._judge_memory(operand, self.image(operand))
        if self.second is not None:
            self._judge_memory(self.second, self.second_image(self.second))
        faults = self.field.viommu.faults()
        if self.clock.is_exact:
            self._judge_times()
            if self.reports_faults:
                self._judge_faults(faults)

    def _landed(self, job: Job, dst: Operand) -> int:
        """How much of an operation without completion is there."""
        return common_prefix(self._left_in(dst), job.data) if job.writes else 0

    def _split(self, second: Operand) -> int:
        """After how many bytes a moved operation went on in `second`: some byte may be the same before and after."""
        main = self.main
        assert main.dst is not None
        untouched = common_suffix(self._left_in(main.dst), main.dst.content)
        there = common_suffix(second.gather(second.buffer.memory)[: main.landed], main.data[: main.landed])
        return max(main.dst.nbytes - untouched, main.landed - there)

    def _left_in(self, operand: Operand) -> bytes:
        """An operand's bytes as they were when it was taken away, or are now."""
        memory = bytearray(operand.buffer.memory[: operand.area_nbytes])
        for taken in reversed(self.taken):
            if taken.operand is operand:
                memory[taken.at : taken.at + len(taken.copy)] = taken.copy
        return operand.gather(memory)

    def image(self, operand: Operand) -> bytearray:
        """What the area must hold, if nobody had taken anything."""
        image = bytearray(operand.before)
        for job in self.jobs:
            if job.dst is operand and job.writes:
                landed = self._split(self.second) if self.second and job is self.main else job.landed
                operand.lay(image, job.data[:landed], 0)
        return image

    def second_image(self, second: Operand) -> bytearray:
        """The same of the memory where the rest of a moved operation lands: all that did not land in the first."""
        image, main = bytearray(second.before), self.main
        if main.writes and main.dst is not None:
            first = self._split(second)
            second.lay(image, main.data[first : main.landed], first)
        return image

    def _judge_memory(self, operand: Operand, image: bytearray) -> None:
        for taken in self.taken:
            if taken.operand is operand:
                stop = taken.at + len(taken.copy)
                wanted = bytes(image[taken.at : stop])
                self.must(taken.copy == wanted, partial(differs, "when it was taken", taken.copy, wanted, taken.at))
                image[taken.at : stop] = taken.canary
        found = bytes(operand.buffer.memory[: operand.area_nbytes])
        self.must(found == image, partial(differs, "in the end", found, image, 0))

    def judge_canaries(self) -> None:
        for taken in self.taken:
            if not taken.passed_on:
                self.must(taken.memory == taken.canary, partial(late, taken))

    def _judge_faults(self, faults: list[Fault]) -> None:
        """Each fault that a completion names was reported as well."""
        reported = {(fault.endpoint, fault.address, int(fault.access)) for fault in faults}
        for job in self.jobs:
            status, _, iova, access = job.record
            if status == engine.TRANSLATION_FAULT:
                self.must((job.accel.endpoint, iova, access) in reported, f"not reported; those were: {faults}")

    def _judge_times(self) -> None:
        for wish in self.wishes:
            if wish.answered_ns >= 0:
                took = wish.answered_ns - wish.asked_ns
                most = self.field.latency_ns if wish.affected else 0
                self.must(took <= most, f"{wish.request} waited {took} ns, at most {most} are right")

    def must(self, holds: bool, words: str | Callable[[], str]) -> None:
        """RaceError with everything there is to know unless `holds`."""
        if not holds:
            for job in self.jobs:
                job.look()
            text = words if isinstance(words, str) else words()
            first = self.told[0][0] if self.told else 0
            lines = [f"{when - first:+} ns: {what}" for when, what in self.told]
            raise RaceError("\n  ".join([text, *map(str, self.jobs), *lines]))

    def tell(self, what: object) -> None:
        """For whoever must understand a failure; made into words only then."""
        self.told.append((self.clock.now(), what))


def common_prefix(left: bytes, right: bytes) -> int:
    """How many bytes from the start on are the same."""
    if left == right:
        return len(left)
    start, stop = 0, min(len(left), len(right))
    while start < stop:
        middle = (start + stop + 1) // 2
        if left[:middle] == right[:middle]:
            start = middle
        else:
            stop = middle - 1
    return start


def common_suffix(left: bytes, right: bytes) -> int:
    """How many bytes up to the end are the same."""
    return common_prefix(left[::-1], right[::-1])


def differs(when: str, found: bytes | bytearray, wanted: bytes | bytearray, at: int) -> str:
    """Where two images differ first."""
    offset = common_prefix(bytes(found), bytes(wanted))
    nbytes = sum(a != b for a, b in zip(found, wanted, strict=True))
    return (
        f"memory {when} is not what the completions say: {nbytes} bytes differ, the first at offset {at + offset:#x}:"
        f" {found[offset : offset + 16].hex()} is there, {wanted[offset : offset + 16].hex()} was expected"
    )


def late(taken: Taken) -> str:
    """A canary is not whole."""
    return "LATE: " + differs("that changed hands", bytes(taken.memory), taken.canary, taken.at)
