"""`translate` explains what an access really meets: the same pieces, reason and fault; asking changes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.iommu_requests import MSI, attach, map_
from vdev.errors import DmaError, TranslationFault
from vdev.functions.dma import READ, WRITE, DmaDoor
from vdev.functions.explain import Access, AccessExplanation, explain_access
from vdev.iommu.engine import Engine
from vdev.iommu.explain import MAX_EXPLAINED
from vdev.iommu.settings import EndpointSettings, ReservedRegion, UnitSettings
from vdev.memory import Region, RegionTable
from vdev.wire.viommu import ATTACH_F_BYPASS

SOAK = os.environ.get("VDEV_TIER") == "soak"
EXAMPLES = 20_000 if SOAK else 600
GRANULE = 16
ENDPOINT = 0x108
TOP = 1 << 64
INPUT_START, INPUT_STOP = 2 * GRANULE, 38 * GRANULE

# Addresses near each other, so that edges meet: mostly a low range, the MSI region's edges, the address space's end.
LOW = st.integers(0, 44 * GRANULE)
iovas = st.sampled_from(["low"] * 9 + ["edge"] * 3 + ["range", "msi", "end"]).flatmap(
    lambda where: {
        "low": LOW,
        "edge": st.builds(lambda unit, by: unit * GRANULE + by, st.integers(1, 42), st.integers(-2, 2)),
        "range": st.builds(lambda edge, by: edge + by, st.sampled_from([INPUT_START, INPUT_STOP]), st.integers(-1, 1)),
        "msi": st.builds(lambda edge, by: edge + by, st.sampled_from([MSI.start, MSI.stop]), st.integers(-20, 20)),
        "end": st.integers(TOP - 20, TOP - 1),
    }[where]
)
# Side by side from the bottom of the input range, mostly without gaps: (units, gap before, gpa unit, flags).
mappings = st.lists(
    st.tuples(
        st.integers(1, 8), st.sampled_from([0, 0, 0, 1]), st.integers(0, 30), st.sampled_from([3, 3, 3, 1, 2, 0])
    ),
    max_size=12,
)
# The same of RAM, from GPA 0: (units, gap before, has bytes, writable, readable).
rarely = st.sampled_from([False] * 7 + [True])
usually = st.sampled_from([True] * 7 + [False])
rams = st.lists(st.tuples(st.integers(1, 30), rarely, usually, usually, usually), max_size=8)
holes = st.one_of(st.none(), st.none(), st.none(), st.tuples(st.integers(0, 40), st.integers(1, 4)))


@dataclass
class Function:
    """The function behind the door."""

    dma_enabled: bool = True
    pasid_control: int = 0
    pasid_bits: int = 0
    memory: RegionTable = field(default_factory=RegionTable)


class Rig:
    """A unit with one endpoint, its door, and everything that an access could leave a mark on."""

    def __init__(self, *, hole: tuple[int, int] | None, bypass: bool, force_aperture: bool = False) -> None:
        reserved: list[ReservedRegion] = [MSI]
        if hole is not None:
            reserved.append(ReservedRegion(hole[0] * GRANULE, (hole[0] + hole[1]) * GRANULE))
        self.events: list[Any] = []
        unit = UnitSettings("u", page_size_mask=TOP - GRANULE, input_start=INPUT_START, input_stop=INPUT_STOP)
        unit = replace(unit, force_aperture=force_aperture)
        self.engine = Engine(unit, [EndpointSettings(ENDPOINT, "ep", tuple(reserved))], self.events.append)
        self.engine.set_features(-1)
        self.engine.set_bypass(bypass)
        self.function = Function()
        self.told: list[str] = []
        self.door = DmaDoor(self.engine, ENDPOINT, self.function, after_fault=lambda: self.told.append("fault"))
        self.door.trace = lambda event: self.told.append("trace")

    def add_ram(self, runs: list[tuple[int, bool, bool, bool, bool]]) -> None:
        gpa = 0
        for nunits, gap, has_bytes, writable, readable in runs:
            gpa += gap * GRANULE
            nbytes = nunits * GRANULE
            view = memoryview(bytearray(nbytes)) if has_bytes else None
            self.function.memory.add(Region(gpa, nbytes, view, readable, writable))
            gpa += nbytes

    def explain(self, iova: int, nbytes: int, access: int) -> AccessExplanation:
        return explain_access(self.engine, self.door, Access("ep", iova, nbytes, access, "somebody"))

    def marks(self) -> tuple[Any, ...]:
        """Whatever an access that happens, or is refused, leaves behind."""
        state = self.engine.snapshot(), self.engine.describe(), dict(self.door.refused), self.function.memory.generation
        return (*state, list(self.events), list(self.told))


def meets(rig: Rig, iova: int, nbytes: int, access: int) -> tuple[str, int | None]:
    """The reason and the fault of a real access: "" and None for one that succeeds."""
    try:
        rig.door.views(iova, nbytes, write=access == WRITE)
    except TranslationFault as error:
        return error.reason, error.fault_reason
    except DmaError as error:
        return error.reason, None
    return "", None


@dataclass
class Case:
    """A machine and one access."""

    attachment: str
    mapped: list[tuple[int, int, int, int]]
    ram: list[tuple[int, bool, bool, bool, bool]]
    hole: tuple[int, int] | None
    bypass: bool
    force_aperture: bool
    gate: str
    iova: int
    nbytes: int
    access: int

    def rig(self) -> Rig:
        rig = Rig(hole=self.hole, bypass=self.bypass, force_aperture=self.force_aperture)
        rig.add_ram(self.ram)
        if self.attachment != "none":
            attach(rig.engine, 1, ENDPOINT, ATTACH_F_BYPASS if self.attachment == "bypass" else 0)
        first = 2
        for count, gap, gpa, flags in self.mapped:
            first += gap
            map_(rig.engine, 1, first * GRANULE, (first + count) * GRANULE - 1, gpa * GRANULE, flags)
            first += count
        rig.function.dma_enabled = self.gate != "bus"
        rig.door.frozen = self.gate == "frozen"
        return rig


cases = st.builds(
    Case,
    attachment=st.sampled_from(["none", "translated", "translated", "translated", "bypass"]),
    mapped=mappings,
    ram=rams,
    hole=holes,
    bypass=st.booleans(),
    force_aperture=st.booleans(),
    gate=st.sampled_from(["open"] * 8 + ["bus", "frozen"]),
    iova=iovas,
    nbytes=st.one_of(st.integers(1, 20), st.integers(1, 120)),
    access=st.sampled_from([READ, WRITE]),
)


def over_the_end(force_aperture: bool) -> Case:
    """An access that bypasses and leaves the input range in its middle: too rare to wait for."""
    ram = [(44, False, True, True, True)]
    return Case("bypass", [], ram, None, True, force_aperture, "open", INPUT_STOP - 8, 16, READ)


@pytest.mark.soak(count=EXAMPLES, seed="random")
@settings(max_examples=EXAMPLES, deadline=None)
@given(case=cases)
@example(case=over_the_end(force_aperture=True))
@example(case=over_the_end(force_aperture=False))
def test_what_is_explained_is_what_an_access_meets(case: Case) -> None:
    rig = case.rig()
    iova, nbytes, access = case.iova, case.nbytes, case.access
    before = rig.marks()

    told = rig.explain(iova, nbytes, access)

    assert rig.marks() == before
    assert (told.reason, told.fault) == meets(rig, iova, nbytes, access)
    assert [step.ok for step in told.steps] == [True] * (len(told.steps) - 1) + [not told.reason]
    pieces = [(piece.gpa + at) for piece in told.pieces for at in range(piece.nbytes)]
    assert all(one.iova + one.nbytes == two.iova for one, two in zip(told.pieces, told.pieces[1:], strict=False))
    if told.reason in ("", "unsupported-request"):
        real = rig.engine.translate(ENDPOINT, iova, nbytes, access)
        assert pieces == [gpa + at for gpa, count in real for at in range(count)]
        assert told.pieces[0].iova == iova
    for piece in told.pieces:
        assert piece.memory == memory_word(rig.function.memory, piece.gpa, piece.nbytes)


def memory_word(memory: RegionTable, gpa: int, nbytes: int) -> str:
    """What lies there, byte by byte."""
    words = set()
    for at in range(gpa, gpa + nbytes):
        region = memory.find(at)
        there = region is not None and region.view is not None
        words.add(("ram" if region is not None and region.writable else "ram-read-only") if there else "no-ram")
    assert len(words) == 1
    return words.pop()


def test_an_access_over_too_many_mappings_is_refused_before_it_takes_long() -> None:
    rig = Rig(hole=None, bypass=True)
    nbytes = 1 << 10
    for at in range(0, 2 * MAX_EXPLAINED, 2):
        rig.function.memory.add(Region(at, 1, memoryview(bytearray(1))))

    with pytest.raises(Exception, match=r"^nbytes: the access crosses more than 256 mappings .*ask for a shorter one"):
        rig.explain(0, nbytes, READ)
