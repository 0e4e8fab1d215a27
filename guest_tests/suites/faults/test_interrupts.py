"""Interrupts that do not come, come late, or come for nothing; and that the same seed does it again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moving import Mover
from repeat import OCCURRENCES, assert_repeats

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import Feature, Probe, Viommu
from guest_tests.payload.direct.msix import MsixTable, Vector
from guest_tests.payload.direct.wire import TAIL_NBYTES
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.fixtures import OpenViommu
from guest_tests.payload.host import Host

EP = 0x100
CLOCKS = Path("/sys/devices/system/clocksource/clocksource0/available_clocksource")
LONG_S = 600.0
REQUESTS = {"vfio-user": 1, "vhost-user": 0}  # the vector of the request queue, and its queue


@pytest.fixture(autouse=True)
def _messages_reach_memory() -> None:
    if "kvm-clock" in CLOCKS.read_text():
        pytest.skip("KVM takes a message for an interrupt wherever it is addressed, and memory never sees it")


class Interrupted:
    """Something that makes an interrupt each time, and the vector it comes by."""

    def __init__(self, vector: Vector, host: Host) -> None:
        self.vector = vector
        self._host = host

    def cause(self) -> None:
        """Have one made, if nothing comes in between."""
        raise NotImplementedError

    def has_come(self) -> bool:
        """Whether one came since, once all is through that was on its way; it is forgotten."""
        self._host.control("query-status")  # vdev has ended the slice in which it would have been signalled
        for _ in range(3):
            self._host.qmp("query-status")  # QEMU's loop has been round
        come = self.vector.has_fired
        self.vector.clear()
        return come

    def came_each(self, count: int) -> list[bool]:
        """Of so many, which came."""
        found = []
        for _ in range(count):
            self.cause()
            found.append(self.has_come())
        return found


class OfEngine(Interrupted):
    """A NOP that asks for it."""

    def __init__(self, mover: Mover, vector: Vector, host: Host) -> None:
        super().__init__(vector, host)
        self._accel = mover.accel

    def cause(self) -> None:
        self._accel.do(Operation(engine.NOP, flags=engine.FLAG_IRQ))


class OfUnit(Interrupted):
    """A request's answer."""

    def __init__(self, viommu: Viommu, host: Host) -> None:
        super().__init__(viommu.vectors[1], host)
        self._viommu = viommu
        self._room = viommu.config.probe_size + TAIL_NBYTES

    def cause(self) -> None:
        self._viommu.ask(Probe(endpoint=EP), self._room)


@pytest.fixture
def of_engine(mover: Mover, host: Host) -> Iterator[OfEngine]:
    """accel0's vector 0; the table is disabled afterwards."""
    table = MsixTable(mover.accel.function, mover.accel._memory)
    mover.accel.registers.write32(engine.CONTROL, engine.ENABLE | engine.IRQ_ENABLE)
    yield OfEngine(mover, table.vectors[0], host)
    mover.accel.reset()
    table.close()


@pytest.fixture
def of_unit(open_viommu: OpenViommu, host: Host) -> OfUnit:
    """The unit's request queue. With an event index a driver that is quick takes the answer before the device asks
    whether it wants an interrupt for it."""
    found = OfUnit(open_viommu(msix=True, without=Feature.EVENT_IDX), host)
    found.vector.settle()
    return found


@pytest.fixture(params=["engine", "unit"])
def interrupted(request: pytest.FixtureRequest, machine: dict[str, Any]) -> tuple[Interrupted, dict[str, Any]]:
    """One of both, and what a rule for it has to match."""
    if request.param == "engine":
        return request.getfixturevalue("of_engine"), {"function": "accel0", "vector": 0}
    return request.getfixturevalue("of_unit"), {"function": "iommu0", "vector": REQUESTS[machine["attach"]]}


def test_a_lost_interrupt_does_not_come_and_the_next_does(
    interrupted: tuple[Interrupted, dict[str, Any]], faults: Faults
) -> None:
    source, match = interrupted
    rule = faults.add("interrupt", "lose", match=match, when={"nth": 2})

    assert source.came_each(3) == [True, False, True]
    assert rule.fired == 1


@pytest.mark.parametrize("how", ["release", "clear", "time"])
def test_a_delayed_interrupt_comes_later(
    interrupted: tuple[Interrupted, dict[str, Any]], faults: Faults, how: str
) -> None:
    source, match = interrupted
    rule = faults.add("interrupt", "delay", match=match, seconds=0.5 if how == "time" else LONG_S, times=1)

    source.cause()
    early, held = source.has_come(), rule.held
    if how != "time":
        {"release": rule.release, "clear": faults.clear}[how]()

    assert (early, held) == (False, 1)
    assert source.vector.wait(5.0)
    assert source.came_each(1) == [True]


def test_a_function_level_reset_forgets_a_delayed_interrupt(of_engine: OfEngine, mover: Mover, faults: Faults) -> None:
    rule = faults.add("interrupt", "delay", match={"function": "accel0"}, seconds=LONG_S)
    of_engine.cause()

    mover.accel.function.flr(0)

    assert rule.release() == 0
    assert not of_engine.has_come()


def test_an_interrupt_comes_for_no_reason(interrupted: tuple[Interrupted, dict[str, Any]], faults: Faults) -> None:
    source, match = interrupted

    faults.add("timer", "spurious", **match)

    assert source.vector.wait(5.0)
    assert source.came_each(1) == [True]


@pytest.mark.parametrize("do", ["lose", "delay"])
def test_the_same_seed_keeps_the_same_interrupts(
    interrupted: tuple[Interrupted, dict[str, Any]], faults: Faults, do: str
) -> None:
    source, match = interrupted
    parameters = {"seconds": LONG_S} if do == "delay" else {}

    def traffic() -> list[bool]:
        source.has_come()
        return source.came_each(OCCURRENCES)

    assert_repeats(faults, traffic, "interrupt", do, match=match, with_=parameters)


def test_the_same_seed_interrupts_for_no_reason_at_the_same_requests(
    of_engine: OfEngine, mover: Mover, faults: Faults
) -> None:
    room = mover.viommu.config.probe_size + TAIL_NBYTES

    def traffic() -> list[bool]:
        found = []
        of_engine.has_come()
        for _ in range(OCCURRENCES):
            mover.viommu.ask(Probe(endpoint=EP), room)
            found.append(of_engine.has_come())
        return found

    spurious = {"function": "accel0", "vector": 0}
    assert_repeats(faults, traffic, "request", "spurious", match={"type": "PROBE"}, times=1000, with_=spurious)
