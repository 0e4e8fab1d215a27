"""The one door between endpoints and guest memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from vdev.errors import DmaError, TranslationFault
from vdev.events import DmaDone
from vdev.functions.dma import MAX_PIECES, READ, WRITE, DmaDoor
from vdev.iommu.engine import Engine
from vdev.iommu.in_flight import Flight
from vdev.iommu.settings import EndpointSettings, UnitSettings
from vdev.memory import Region, RegionTable
from vdev.wire import viommu as wire

ENDPOINT = 0x100
PAGE = 4096
RAM_GPA = 0x10_0000


@dataclass
class FakeFunction:
    """A function with its gate and its view of memory."""

    dma_enabled: bool = True
    pasid_control: int = 0
    pasid_bits: int = 20
    memory: RegionTable = field(default_factory=RegionTable)


class Rig:
    """An engine with one attached endpoint, two RAM regions of two pages each side by side, and the door."""

    def __init__(self, settings: UnitSettings | None = None) -> None:
        self.engine = Engine(settings or UnitSettings("unit"), [EndpointSettings(ENDPOINT, "ep")])
        self.function = FakeFunction()
        self.low = memoryview(bytearray(2 * PAGE))
        self.high = memoryview(bytearray(2 * PAGE))
        self.function.memory.add(Region(RAM_GPA, 2 * PAGE, self.low))
        self.function.memory.add(Region(RAM_GPA + 2 * PAGE, 2 * PAGE, self.high))
        self.faults = 0
        self.door = DmaDoor(self.engine, ENDPOINT, self.function, after_fault=self._after_fault)
        self._ask(wire.Attach(wire.T_ATTACH, bytes(3), 1, ENDPOINT))

    def map(self, iova: int, gpa: int, npages: int, flags: int = wire.MAP_F_READ | wire.MAP_F_WRITE) -> None:
        self._ask(wire.Map(wire.T_MAP, bytes(3), 1, iova, iova + npages * PAGE - 1, gpa, flags))

    def unmap(self, iova: int, npages: int) -> None:
        self._ask(wire.Unmap(wire.T_UNMAP, bytes(3), 1, iova, iova + npages * PAGE - 1, bytes(4)))

    def _ask(self, request: wire.Attach | wire.Map | wire.Unmap) -> None:
        assert self.engine.handle(request.pack(), 4) == wire.TAILS[wire.S_OK]

    def _after_fault(self) -> None:
        self.faults += 1


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_what_is_written_is_read_back_across_regions_and_mappings(rig: Rig) -> None:
    rig.map(0x1000, RAM_GPA + PAGE, 2)
    rig.map(0x3000, RAM_GPA, 1)
    data = bytes(at % 251 for at in range(6144))  # no two pages have the same

    rig.door.write(0x1800, data)

    assert rig.door.read(0x1800, len(data)) == data
    assert bytes(rig.low[PAGE + 0x800 :]) == data[:0x800]
    assert bytes(rig.high[:PAGE]) == data[0x800:0x1800]
    assert rig.door.refused == {}


def test_views_are_the_memory_itself(rig: Rig) -> None:
    rig.map(0x1000, RAM_GPA, 1)

    rig.door.views(0x1010, 4, write=True)[0][:] = b"abcd"

    assert bytes(rig.low[0x10:0x14]) == b"abcd"


def test_an_empty_access_touches_nothing(rig: Rig) -> None:
    assert rig.door.views(0x1000, 0, write=True) == []
    assert rig.door.read(0x1000, 0) == b""
    rig.door.write(0x1000, b"")


def test_without_bus_master_dma_is_refused_before_translation(rig: Rig) -> None:
    rig.function.dma_enabled = False

    with pytest.raises(DmaError) as caught:
        rig.door.read(0x1000, 4)

    assert caught.value.reason == "bus-master-off"
    assert not rig.engine.pending_faults
    assert rig.door.refused == {"bus-master-off": 1}


def test_a_frozen_door_refuses_until_it_is_thawed(rig: Rig) -> None:
    rig.map(0x1000, RAM_GPA, 1)
    rig.door.frozen = True

    with pytest.raises(DmaError) as caught:
        rig.door.write(0x1000, b"x")
    rig.door.frozen = False
    rig.door.write(0x1000, b"x")

    assert caught.value.reason == "frozen"
    assert bytes(rig.low[:1]) == b"x"


def test_an_unmapped_address_faults_and_is_reported_to_the_guest(rig: Rig) -> None:
    with pytest.raises(TranslationFault) as caught:
        rig.door.read(0x9000, 4)

    record = wire.Fault.parse(rig.engine.pending_faults[0])
    assert (record.reason, record.endpoint, record.address) == (wire.FAULT_R_MAPPING, ENDPOINT, 0x9000)
    assert record.flags & wire.FAULT_F_READ
    assert rig.faults == 1
    assert rig.door.refused == {caught.value.reason: 1}


def test_a_write_through_a_read_only_mapping_leaves_memory_alone(rig: Rig) -> None:
    rig.map(0x1000, RAM_GPA, 1)
    rig.map(0x2000, RAM_GPA + PAGE, 1, wire.MAP_F_READ)

    with pytest.raises(TranslationFault):
        rig.door.write(0x1FF0, b"x" * 32)

    assert bytes(rig.low) == bytes(2 * PAGE)
    assert wire.Fault.parse(rig.engine.pending_faults[0]).flags & wire.FAULT_F_WRITE


def test_a_translated_address_without_ram_is_an_unsupported_request(rig: Rig) -> None:
    rig.map(0x1000, RAM_GPA + 3 * PAGE, 2)

    with pytest.raises(DmaError) as caught:
        rig.door.write(0x1FF0, b"x" * 32)

    assert caught.value.reason == "unsupported-request"
    assert bytes(rig.high) == bytes(2 * PAGE)
    assert not rig.engine.pending_faults
    assert rig.door.refused == {"unsupported-request": 1}


def test_an_access_past_the_end_of_the_address_space_is_refused(rig: Rig) -> None:
    with pytest.raises(DmaError):
        rig.door.read((1 << 64) - 2, 4)


def test_access_bits_are_those_of_the_engine() -> None:
    assert (READ, WRITE) == (wire.FAULT_F_READ, wire.FAULT_F_WRITE)


def test_neighbouring_pages_share_a_view_and_others_do_not(rig: Rig) -> None:
    for page, gpa_page in enumerate((0, 1, 2, 0, 3)):
        rig.map(0x1000 + page * PAGE, RAM_GPA + gpa_page * PAGE, 1)

    views = rig.door.views(0x1800, 5 * PAGE - 0x1000, write=False)

    # two regions of two pages: a view ends where its region does
    assert [len(view) for view in views] == [0x1800, PAGE, PAGE, 0x800]


def test_a_slice_covers_a_bounded_number_of_mappings_whatever_the_granule() -> None:
    fine = Engine(UnitSettings("unit", page_size_mask=(1 << 64) - 1), [EndpointSettings(ENDPOINT, "ep")])

    assert DmaDoor(fine, ENDPOINT, FakeFunction()).slice_nbytes == MAX_PIECES
    assert Rig().door.slice_nbytes == MAX_PIECES * PAGE


def test_ram_that_is_read_only_is_read_and_not_written(rig: Rig) -> None:
    rig.function.memory.add(Region(RAM_GPA + 4 * PAGE, PAGE, memoryview(bytearray(PAGE)), writable=False))
    rig.map(0x1000, RAM_GPA + 4 * PAGE, 1)

    with pytest.raises(DmaError) as caught:
        rig.door.write(0x1000, b"x")

    assert caught.value.reason == "unsupported-request"
    assert rig.door.read(0x1000, 1) == b"\0"


# --- accesses in two phases


def test_an_access_in_two_phases_lands_where_it_was_translated_to(rig: Rig) -> None:
    rig.map(0x1000, RAM_GPA + PAGE, 2)
    flight = rig.door.begin(0x1FFC, 8, write=True)
    rig.unmap(0x1000, 2)

    views = rig.door.land(flight)
    nflights = rig.door.nflights
    rig.door.end(flight)

    assert [len(view) for view in views] == [4, 4]
    views[1][:] = b"abcd"
    assert bytes(rig.high[:4]) == b"abcd"
    assert (nflights, rig.door.nflights) == (1, 0)


@pytest.mark.parametrize(("iova", "reason"), [(0x9000, "not-mapped"), (0x2000, "unsupported-request")])
def test_an_access_that_is_refused_at_its_beginning_is_not_in_flight(rig: Rig, iova: int, reason: str) -> None:
    rig.map(0x2000, RAM_GPA + 9 * PAGE, 1)

    with pytest.raises(DmaError) as caught:
        rig.door.begin(iova, 8, write=True)

    assert caught.value.reason == reason
    assert rig.door.nflights == 0
    assert rig.door.refused == {reason: 1}
    assert (len(rig.engine.pending_faults), rig.faults) == ((1, 1) if reason == "not-mapped" else (0, 0))


def test_no_access_begins_while_a_gate_is_closed(rig: Rig) -> None:
    rig.map(0x1000, RAM_GPA, 1)
    rig.door.frozen = True

    with pytest.raises(DmaError) as caught:
        rig.door.begin(0x1000, 8, write=True)

    assert caught.value.reason == "frozen"
    assert rig.door.nflights == 0


def test_a_landing_meets_the_gates_again(rig: Rig) -> None:
    rig.map(0x1000, RAM_GPA, 1)
    flight = rig.door.begin(0x1000, 8, write=True)

    refused = []
    for gate, closed in ((rig.function, "dma_enabled"), (rig.door, "frozen")):
        before = getattr(gate, closed)
        setattr(gate, closed, not before)
        with pytest.raises(DmaError) as caught:
            rig.door.land(flight)
        setattr(gate, closed, before)
        refused.append(caught.value.reason)

    assert refused == ["bus-master-off", "frozen"]
    assert len(rig.door.land(flight)) == 1


def test_a_landing_meets_ram_as_it_is_then(rig: Rig) -> None:
    rig.map(0x1000, RAM_GPA, 1)
    flight = rig.door.begin(0x1000, 8, write=True)
    rig.function.memory.remove(RAM_GPA, 2 * PAGE)

    with pytest.raises(DmaError) as caught:
        rig.door.land(flight)

    assert (caught.value.reason, caught.value.passing) == ("unsupported-request", True)


def test_what_is_over_lands_nowhere(rig: Rig) -> None:
    rig.map(0x1000, RAM_GPA, 1)
    flight = rig.door.begin(0x1000, 8, write=True)
    rig.engine.in_flight.cancel(ENDPOINT)

    with pytest.raises(DmaError) as caught:
        rig.door.land(flight)

    assert caught.value.reason == "cancelled"
    assert not rig.engine.pending_faults


def test_a_trace_is_told_of_the_landing_and_not_of_the_beginning(rig: Rig) -> None:
    told: list[object] = []
    rig.door.trace = told.append
    rig.map(0x1000, RAM_GPA, 1)

    flight = rig.door.begin(0x1000, 8, write=True)
    early = list(told)
    rig.door.land(flight)

    assert early == []
    assert told == [DmaDone(ENDPOINT, 0x1000, 8, True, 1)]


def revalidating() -> tuple[Rig, Flight]:
    """A page that may be read, and a read of it in flight, in a unit that asks twice."""
    rig = Rig(UnitSettings("unit", revalidate=True))
    rig.map(0x1000, RAM_GPA, 1, wire.MAP_F_READ)
    return rig, rig.door.begin(0x1000, 8, write=False)


def test_a_unit_that_revalidates_lets_land_what_is_still_so() -> None:
    rig, flight = revalidating()

    assert len(rig.door.land(flight)) == 1


@pytest.mark.parametrize(
    ("flags", "gpa", "reason"),
    [
        (wire.MAP_F_READ, RAM_GPA + PAGE, "translation-changed"),
        (wire.MAP_F_WRITE, RAM_GPA, "no-read"),
        (0, None, "not-mapped"),
    ],
)
def test_a_unit_that_revalidates_refuses_what_has_changed(flags: int, gpa: int | None, reason: str) -> None:
    rig, flight = revalidating()
    rig.unmap(0x1000, 1)
    if gpa is not None:
        rig.map(0x1000, gpa, 1, flags)

    with pytest.raises(TranslationFault) as caught:
        rig.door.land(flight)

    assert caught.value.reason == reason
    record = wire.Fault.parse(rig.engine.pending_faults[0])
    assert (record.reason, record.address) == (wire.FAULT_R_MAPPING, 0x1000)
