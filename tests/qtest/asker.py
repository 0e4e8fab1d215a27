"""What a request or a configuration access can show of each clause and gap, asked and answered in a few words.

A probe is named after a row of tests/conformance/clauses.yaml; its text is the question. It gets a device that was
just opened, with `bypass` 1 and nothing attached. What the device says to each request is its status, "unwritten"
(used length 0), or "broken" (DEVICE_NEEDS_RESET; no answer). Answers are kept in answers.yaml.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from guest_tests.payload.direct import DeviceBroken, Layout, NoAnswer, Viommu
from guest_tests.payload.direct.answers import DIRECT, Answer
from guest_tests.payload.direct.wire import (
    BYPASS_OFFSET,
    MAX_U64,
    READ,
    TAIL_NBYTES,
    WRITE,
    Attach,
    Detach,
    Map,
    Probe,
    Request,
    ResvMem,
    Status,
    Unmap,
    properties,
)
from tests.qtest.subjects import Subject

PAGE, RW = 4096, READ | WRITE
NOBODY = 444  # an endpoint that no device here knows
MSI = 0xFEE00000  # the PC's, reserved on every device here
Asked = Callable[["Asker"], str]


@dataclass(slots=True)
class Asker:
    """An open device, an endpoint of it, its `bypass` before anybody wrote it, and requests in short."""

    viommu: Viommu
    endpoint: int
    boot_bypass: int

    def send(self, request: Request | bytes, nwritable: int = TAIL_NBYTES, layout: Layout = DIRECT) -> Answer | str:
        """The answer, or why there is none."""
        try:
            return self.viommu.send(request, nwritable, layout)
        except DeviceBroken:
            return "broken"
        except NoAnswer:
            return "no answer"

    def say(self, request: Request | bytes, nwritable: int = TAIL_NBYTES, layout: Layout = DIRECT) -> str:
        """The answer in a word."""
        return word(self.send(request, nwritable, layout))

    def attach(self, domain: int = 1, flags: int = 0, reserved: bytes = bytes(4)) -> str:
        return self.say(Attach(domain=domain, endpoint=self.endpoint, flags=flags, reserved=reserved))

    def detach(self, domain: int = 1, reserved: bytes = bytes(8)) -> str:
        return self.say(Detach(domain=domain, endpoint=self.endpoint, reserved=reserved))

    def map(self, start: int, nbytes: int = PAGE, *, domain: int = 1, phys: int = 0, flags: int = RW) -> str:
        end = (start + nbytes - 1) & MAX_U64
        return self.say(Map(domain=domain, virt_start=start, virt_end=end, phys_start=phys, flags=flags))

    def unmap(self, start: int, nbytes: int = PAGE, *, domain: int = 1, reserved: bytes = bytes(4)) -> str:
        end = (start + nbytes - 1) & MAX_U64
        return self.say(Unmap(domain=domain, virt_start=start, virt_end=end, reserved=reserved))

    def mapped(self, start: int, nbytes: int = PAGE) -> str:
        """Whether [start, start + nbytes) of domain 1 is mapped: only then a MAP overlaps. Leaves it mapped."""
        return "mapped" if self.map(start, nbytes) == "INVAL" else "not mapped"

    def probe(self, nbytes: int | None = None) -> Answer | str:
        """PROBE with a buffer of `nbytes` for properties, by default probe_size."""
        room = self.viommu.config.probe_size if nbytes is None else nbytes
        return self.send(Probe(endpoint=self.endpoint), room + TAIL_NBYTES)


def word(answer: Answer | str) -> str:
    """An answer in a word."""
    if isinstance(answer, str):
        return answer
    if answer.status is None:
        return "unwritten" if not answer.used_nbytes else f"{answer.used_nbytes} bytes"
    return answer.status.name if isinstance(answer.status, Status) else f"status {answer.status}"


PROBES: dict[str, Asked] = {}
WITHOUT: dict[str, int] = {}  # features a probe's driver does not accept


def probe(id: str, without: int = 0) -> Callable[[Asked], Asked]:
    """Make a function the probe of row `id`."""

    def register(function: Asked) -> Asked:
        assert id not in PROBES, id
        PROBES[id] = function
        WITHOUT[id] = without
        return function

    return register


def answer_of(subject: Subject, id: str) -> str:
    """What the device answers; it is reset before, and `bypass` is 1 afterwards."""
    with subject.open(without=WITHOUT[id]) as viommu:
        answer = PROBES[id](Asker(viommu, subject.endpoint, subject.boot_bypass))
    if not subject.transport.read_config(BYPASS_OFFSET, 1):
        with subject.open() as viommu:
            viommu.bypass = True
    return answer


def resv(answer: Answer | str) -> list[ResvMem]:
    """The regions in the answer of a PROBE."""
    if isinstance(answer, str):
        return []
    return [found for found in properties(answer.written[:-TAIL_NBYTES]) if isinstance(found, ResvMem)]


def yes(condition: bool) -> str:
    return "yes" if condition else "no"


def joined(*words: str) -> str:
    return ", ".join(words)
