"""What a request or a configuration access can show of each clause and gap, asked and answered in a few words.

A probe is named after a row of tests/conformance/clauses.yaml; its text is the question. It gets a device that was
just opened, with `bypass` 1 and nothing attached. What the device says to each request is its status, "unwritten"
(used length 0), or "broken" (DEVICE_NEEDS_RESET; no answer). Answers are kept in answers.yaml.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from guest_tests.payload.direct import DIRECT, MMIO, READ, WRITE, DeviceBroken, Layout, NoAnswer, Viommu
from guest_tests.payload.direct.answers import Answer
from guest_tests.payload.direct.wire import (
    ATTACH_BYPASS,
    BYPASS_OFFSET,
    MAX_U64,
    PROPERTY,
    TAIL_NBYTES,
    Attach,
    Detach,
    Feature,
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
    """An open device, an endpoint of it, and requests in short."""

    viommu: Viommu
    endpoint: int

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
WITHOUT: dict[str, Feature] = {}  # features a probe's driver does not accept


def probe(id: str, without: Feature = Feature(0)) -> Callable[[Asked], Asked]:
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
        asked = PROBES[id](Asker(viommu, subject.endpoint))
    with subject.open() as viommu:
        viommu.bypass = True
    return asked


def resv(answer: Answer | str) -> list[ResvMem]:
    """The regions in the answer of a PROBE."""
    if isinstance(answer, str):
        return []
    return [found for found in properties(answer.written[:-TAIL_NBYTES]) if isinstance(found, ResvMem)]


def yes(condition: bool) -> str:
    return "yes" if condition else "no"


def joined(*words: str) -> str:
    return ", ".join(words)


# configuration


@probe("D1")
def _(a: Asker) -> str:
    """MAP_UNMAP offered?"""
    return yes(bool(a.viommu.transport.offered() & Feature.MAP_UNMAP))


@probe("D2")
def _(a: Asker) -> str:
    """F_BYPASS offered?"""
    return yes(bool(a.viommu.transport.offered() & Feature.BYPASS))


@probe("D3")
def _(a: Asker) -> str:
    """F_BYPASS and F_BYPASS_CONFIG both offered?"""
    both = Feature.BYPASS | Feature.BYPASS_CONFIG
    return yes(a.viommu.transport.offered() & both == both)


@probe("D4")
def _(a: Asker) -> str:
    """The lowest bit of page_size_mask"""
    return f"{a.viommu.config.granule:#x}"


@probe("D5")
def _(a: Asker) -> str:
    """`bypass` before anybody wrote it"""
    return str(a.viommu.transport.read_config(BYPASS_OFFSET, 1))


@probe("D6")
def _(a: Asker) -> str:
    """`bypass` after writing 0 and a device reset"""
    a.viommu.bypass = False
    a.viommu.start()
    return str(a.viommu.transport.read_config(BYPASS_OFFSET, 1))


@probe("D8")
def _(a: Asker) -> str:
    """Write 2 to `bypass`: what it shows then"""
    a.viommu.bypass = 2  # type: ignore[assignment]
    return joined(str(a.viommu.transport.read_config(BYPASS_OFFSET, 1)), "broken" if a.viommu.is_broken else "goes on")


@probe("D9")
def _(a: Asker) -> str:
    """ATTACH, device reset: MAP to the domain, DETACH"""
    a.attach()
    a.viommu.start()
    return joined(a.map(0), a.detach())


# requests


@probe("D10")
def _(a: Asker) -> str:
    """ATTACH, MAP, UNMAP, DETACH, all well"""
    return joined(a.attach(), a.map(0), a.unmap(0), a.detach())


@probe("D11")
def _(a: Asker) -> str:
    """A request of type 77"""
    return a.say(bytes([77]) + bytes(19))


@probe("D12")
def _(a: Asker) -> str:
    """ATTACH with reserved bytes of its head set"""
    return a.say(Attach(domain=1, endpoint=a.endpoint, head_reserved=b"\1\2\3"))


@probe("D13")
def _(a: Asker) -> str:
    """The reserved bytes of a tail"""
    answer = a.send(Attach(domain=1, endpoint=a.endpoint))
    return answer if isinstance(answer, str) else answer.written[1:].hex()


@probe("D15")
def _(a: Asker) -> str:
    """ATTACH of 19 bytes; a request of 3"""
    short = a.say(Attach(domain=1, endpoint=a.endpoint).pack()[:19])
    if a.viommu.is_broken:
        a.viommu.start()
    return joined(short, a.say(b"\1\0\0"))


# ATTACH


@probe("D16")
def _(a: Asker) -> str:
    """ATTACH with a reserved byte set"""
    return a.attach(reserved=b"\0\0\0\1")


@probe("D17")
def _(a: Asker) -> str:
    """ATTACH with an unknown flag"""
    return a.attach(flags=2)


@probe("D18")
def _(a: Asker) -> str:
    """ATTACH of an unknown endpoint"""
    return a.say(Attach(domain=1, endpoint=NOBODY))


@probe("D20")
def _(a: Asker) -> str:
    """ATTACH to domain 1, to it again with BYPASS, MAP to domain 1"""
    return joined(a.attach(), a.attach(flags=ATTACH_BYPASS), a.map(0))


@probe("D21")
def _(a: Asker) -> str:
    """ATTACH to 1, ATTACH to 2, MAP to 1, MAP to 2"""
    return joined(a.attach(1), a.attach(2), a.map(0, domain=1), a.map(0, domain=2))


@probe("D23")
def _(a: Asker) -> str:
    """ATTACH to domain 0xffffffff, MAP to it"""
    return joined(a.attach(0xFFFFFFFF), a.map(0, domain=0xFFFFFFFF))


@probe("D24")
def _(a: Asker) -> str:
    """MAP before ATTACH, ATTACH, MAP"""
    return joined(a.map(0), a.attach(), a.map(0))


# DETACH


@probe("D25")
def _(a: Asker) -> str:
    """ATTACH, DETACH with reserved bytes set"""
    return joined(a.attach(), a.detach(reserved=b"\1" * 8))


@probe("D26")
def _(a: Asker) -> str:
    """DETACH of an unknown endpoint"""
    return a.say(Detach(domain=1, endpoint=NOBODY))


@probe("D27")
def _(a: Asker) -> str:
    """DETACH of one that never was attached; ATTACH to 1, DETACH from 2; DETACH from 1 twice"""
    return joined(a.detach(), a.attach(), a.detach(2), a.detach(), a.detach())


@probe("D29")
def _(a: Asker) -> str:
    """MAP, DETACH the last endpoint, MAP; ATTACH to the same id: is it mapped?"""
    a.attach()
    a.map(0)
    a.detach()
    return joined(a.map(0), a.attach(), a.mapped(0))


# MAP


@probe("D30")
def _(a: Asker) -> str:
    """MAP off 4 KiB by its start, its target, its end"""
    a.attach()
    return joined(a.map(0x800, 0x800), a.map(0x2000, phys=0x800), a.map(0x4000, 0x800))


@probe("D31")
def _(a: Asker) -> str:
    """MAP twice"""
    a.attach()
    return joined(a.map(0), a.map(0))


@probe("D32")
def _(a: Asker) -> str:
    """MAP with an unknown flag"""
    a.attach()
    return a.map(0, flags=RW | 8)


@probe("D33")
def _(a: Asker) -> str:
    """MAP to an unknown domain"""
    return a.map(0)


@probe("D34")
def _(a: Asker) -> str:
    """ATTACH with BYPASS, MAP"""
    return joined(a.attach(flags=ATTACH_BYPASS), a.map(0))


@probe("D38")
def _(a: Asker) -> str:
    """MAP over the MSI region"""
    a.attach()
    return a.map(MSI)


# UNMAP


@probe("D39")
def _(a: Asker) -> str:
    """UNMAP with a reserved byte set: its status, is the page mapped still?"""
    a.attach()
    a.map(0)
    return joined(a.unmap(0, reserved=b"\0\0\0\1"), a.mapped(0))


@probe("D40")
def _(a: Asker) -> str:
    """UNMAP of an unknown domain"""
    return a.unmap(0)


@probe("D41")
def _(a: Asker) -> str:
    """ATTACH with BYPASS, UNMAP"""
    return joined(a.attach(flags=ATTACH_BYPASS), a.unmap(0))


@probe("D42")
def _(a: Asker) -> str:
    """UNMAP of page 0 and half of a mapping of pages 1 and 2: its status, is page 0 mapped still, is page 1?"""
    a.attach()
    a.map(0)
    a.map(PAGE, 2 * PAGE)
    return joined(a.unmap(0, 2 * PAGE), a.mapped(0), a.mapped(PAGE))


@probe("D43")
def _(a: Asker) -> str:
    """UNMAP of pages 0 to 4 where 1 and 3 are mapped: its status, is page 1 mapped still, is page 3?"""
    a.attach()
    a.map(PAGE)
    a.map(3 * PAGE)
    return joined(a.unmap(0, 5 * PAGE), a.mapped(PAGE), a.mapped(3 * PAGE))


@probe("D44")
def _(a: Asker) -> str:
    """The UNMAPs of the seven worked examples, in units of 4 KiB"""
    examples = [((), 5), ((10,), 10), ((5, 5), 10), ((10,), 5), ((5, 5), 5), ((5,), 10), ((5, -5, 5), 15)]
    words = []
    for sizes, npages in examples:
        a.attach()
        at = 0
        for size in sizes:
            if size > 0:
                a.map(at * PAGE, size * PAGE)
            at += abs(size)
        words.append(a.unmap(0, npages * PAGE))
        a.detach()
    return joined(*words)


# PROBE


@probe("D45")
def _(a: Asker) -> str:
    """PROBE with reserved bytes set"""
    size = a.viommu.config.probe_size
    return a.say(Probe(endpoint=a.endpoint, reserved=b"\1" * 64), size + TAIL_NBYTES)


@probe("D46")
def _(a: Asker) -> str:
    """PROBE of an unknown endpoint"""
    return a.say(Probe(endpoint=NOBODY), a.viommu.config.probe_size + TAIL_NBYTES)


@probe("D48")
def _(a: Asker) -> str:
    """The type field of the first property"""
    answer = a.probe()
    return answer if isinstance(answer, str) else f"{PROPERTY.unpack_from(answer.written)[0]:#06x}"


@probe("D49")
def _(a: Asker) -> str:
    """`length` of the first property"""
    answer = a.probe()
    return answer if isinstance(answer, str) else str(PROPERTY.unpack_from(answer.written)[1])


@probe("D51")
def _(a: Asker) -> str:
    """PROBE with room for 24 bytes of properties: its answer, properties written?"""
    answer = a.probe(24)
    if isinstance(answer, str):
        return answer
    return joined(word(answer), yes(bool(resv(answer))))


@probe("D52")
def _(a: Asker) -> str:
    """Bytes behind the last property that are not zero"""
    answer = a.probe()
    if isinstance(answer, str):
        return answer
    return str(sum(byte != 0 for byte in answer.written[24 * len(resv(answer)) : -TAIL_NBYTES]))


@probe("D53")
def _(a: Asker) -> str:
    """The reserved bytes of RESV_MEM"""
    return joined(*(region.reserved.hex() for region in resv(a.probe())))


@probe("D54")
def _(a: Asker) -> str:
    """MSI regions of an endpoint"""
    return str(sum(region.subtype == 1 for region in resv(a.probe())))


# gaps


@probe("G2")
def _(a: Asker) -> str:
    """MAP of the page above input_range; of one whose target leaves 64 bits"""
    a.attach()
    stop = a.viommu.config.input_range.stop
    return joined(a.map(stop), a.map(0, 2 * PAGE, phys=MAX_U64 - PAGE + 1))


@probe("G3")
def _(a: Asker) -> str:
    """MAP, then UNMAP, whose end is one page below its start"""
    a.attach()
    span = (5 * PAGE, -PAGE)
    return joined(a.map(*span), a.unmap(*span))


@probe("G4")
def _(a: Asker) -> str:
    """MAP of two pages, the second in the MSI region"""
    a.attach()
    return a.map(MSI - PAGE, 2 * PAGE)


@probe("G5")
def _(a: Asker) -> str:
    """MAP without READ and WRITE"""
    a.attach()
    return a.map(0, flags=0)


@probe("G6", without=Feature.MMIO)
def _(a: Asker) -> str:
    """MAP with MMIO, which was not accepted"""
    a.attach()
    return a.map(0, flags=RW | MMIO)


@probe("G7", without=Feature.BYPASS_CONFIG)
def _(a: Asker) -> str:
    """ATTACH with BYPASS where BYPASS_CONFIG was not accepted"""
    return a.attach(flags=ATTACH_BYPASS)


@probe("G9")
def _(a: Asker) -> str:
    """ATTACH, MAP, ATTACH to the same domain: is the page mapped still?"""
    return joined(a.attach(), a.map(0), a.attach(), a.mapped(0))


@probe("G10")
def _(a: Asker) -> str:
    """ATTACH in descriptors of one byte"""
    return a.say(Attach(domain=1, endpoint=a.endpoint), layout=Layout(piece_nbytes=1))


@probe("G11")
def _(a: Asker) -> str:
    """MAP to where there is no RAM"""
    a.attach()
    return a.map(0, phys=0xD0000000)


@probe("G12")
def _(a: Asker) -> str:
    """ATTACH with 8 bytes more to read; with 8 bytes more to write: its used length"""
    data = Attach(domain=1, endpoint=a.endpoint).pack()
    longer = a.say(data + bytes(8))
    if a.viommu.is_broken:
        a.viommu.start()
    answer = a.send(data, TAIL_NBYTES + 8)
    used = answer if isinstance(answer, str) else f"{answer.used_nbytes} bytes, status {answer.written[0]}"
    return joined(longer, used)


@probe("G13")
def _(a: Asker) -> str:
    """ATTACH with room for 3 bytes; was it performed?"""
    said = a.say(Attach(domain=1, endpoint=a.endpoint), 3)
    if a.viommu.is_broken:
        return said
    return joined(said, yes(a.map(0) == "OK"))


@probe("G14")
def _(a: Asker) -> str:
    """ATTACH of an unknown endpoint with an unknown flag; with a reserved byte set"""
    both = Attach(domain=1, endpoint=NOBODY, flags=2)
    return joined(a.say(both), a.say(Attach(domain=1, endpoint=NOBODY, reserved=b"\1\0\0\0")))


@probe("G15")
def _(a: Asker) -> str:
    """MAP with an unknown flag to an unknown domain; off the granule over a mapping; off the granule, bypass domain"""
    first = a.map(0, flags=8)
    a.attach()
    a.map(0)
    second = a.map(0x800, 0x1000)
    a.detach()
    a.attach(flags=ATTACH_BYPASS)
    return joined(first, second, a.map(0x800, 0x1000))


@probe("G16")
def _(a: Asker) -> str:
    """UNMAP of bytes 1 to 4999 where nothing is; of all 64 bits"""
    a.attach()
    return joined(a.unmap(1, 4999), a.say(Unmap(domain=1, virt_start=0, virt_end=MAX_U64)))


@probe("G17", without=Feature.MAP_UNMAP | Feature.PROBE)
def _(a: Asker) -> str:
    """MAP, UNMAP, PROBE of a driver that accepted neither"""
    a.attach()
    return joined(a.map(0), a.unmap(0), word(a.probe()))


@probe("G18", without=Feature.BYPASS_CONFIG)
def _(a: Asker) -> str:
    """Write 0 to `bypass` without BYPASS_CONFIG: what it shows then; to page_size_mask: has it changed?"""
    a.viommu.bypass = False
    shown = str(a.viommu.transport.read_config(BYPASS_OFFSET, 1))
    broken = "broken" if a.viommu.is_broken else "goes on"
    before = a.viommu.read_config().page_size_mask
    a.viommu.transport.write_config(0, 4, 0)
    return joined(shown, broken, "changed" if a.viommu.read_config().page_size_mask != before else "unchanged")


@probe("G19")
def _(a: Asker) -> str:
    """ATTACH to 5 with BYPASS: DETACH from 7, DETACH from 0"""
    return joined(a.attach(5, flags=ATTACH_BYPASS), a.detach(7), a.detach(0))


@probe("G24")
def _(a: Asker) -> str:
    """ATTACH with 128 KiB more to read"""
    return a.say(Attach(domain=1, endpoint=a.endpoint).pack() + bytes(128 << 10))
