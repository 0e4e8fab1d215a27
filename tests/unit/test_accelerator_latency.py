"""The accelerator with a latency: a slice is translated first and its bytes move later."""

from __future__ import annotations

import zlib

import pytest

from tests.support.accelerator import PAGE, READ, WRITE, Rig, descriptor
from tests.unit.test_accelerator import DST, LONG, SRC, Bench, flr
from vdev.endpoints.accelerator_engine import SLICE_NBYTES
from vdev.endpoints.accelerator_ops import Operation
from vdev.errors import ConfigError, DmaError
from vdev.functions.base import Progress
from vdev.wire import pci
from vdev.wire.accelerator import Access, CompletionStatus, Control, ErrorCode, Flag, Op, Register

A, B = 0x100_0000, 0x200_0000
LATENCY_NS = 5_000
CONTENT = bytes(range(256)) * 16


def rig_with_pages(pages: int = 1) -> Rig:
    """A running engine; A maps `pages` of RAM with content, B as many zeros behind them."""
    rig = Rig(latency_ns=LATENCY_NS)
    rig.map(A, 0, pages * PAGE)
    rig.map(B, pages * PAGE, pages * PAGE)
    rig.ram[: pages * PAGE] = CONTENT * pages
    return rig.start()


def begun(rig: Rig, op: int, **fields: int) -> Rig:
    """An operation whose first slice is in flight."""
    rig.put(descriptor(op, **{"src": A, "dst": B, "nbytes": PAGE, **fields}))
    rig.engine.run(rig.now_ns)
    return rig


def spans(rig: Rig) -> list[tuple[int, int, int]]:
    return [(flight.start, flight.stop, flight.access) for flight in rig.door.flights]


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (Op.COPY, [(A, A + PAGE, READ), (B, B + PAGE, WRITE)]),
        (Op.FILL, [(B, B + PAGE, WRITE)]),
        (Op.COMPARE, [(A, A + PAGE, READ), (B, B + PAGE, READ)]),
        (Op.CHECKSUM, [(A, A + PAGE, READ)]),
    ],
)
def test_the_operands_an_operation_has_are_in_flight_together(op: Op, expected: list[tuple[int, int, int]]) -> None:
    rig = begun(rig_with_pages(), op)

    assert spans(rig) == expected


def test_no_byte_moves_before_its_time_and_all_of_the_slice_at_it() -> None:
    rig = begun(rig_with_pages(), Op.COPY)

    rig.engine.run(LATENCY_NS - 1)
    early = bytes(rig.ram[PAGE : 2 * PAGE])
    rig.engine.run(LATENCY_NS)

    assert early == bytes(PAGE)
    assert rig.ram[PAGE : 2 * PAGE] == CONTENT
    assert rig.completion().status == CompletionStatus.OK
    assert rig.door.flights == []


def test_what_is_moved_is_what_the_source_holds_when_it_lands() -> None:
    rig = begun(rig_with_pages(), Op.COPY)
    rig.ram[:4] = b"late"

    rig.run()

    assert bytes(rig.ram[PAGE : PAGE + 4]) == b"late"


def test_one_slice_of_one_operation_is_in_flight_at_a_time() -> None:
    rig = Rig(ram_nbytes=LONG, latency_ns=LATENCY_NS)
    rig.map(A, 0, LONG)
    rig.start()
    rig.put(descriptor(Op.FILL, dst=A, nbytes=LONG, arg=1), descriptor(Op.FILL, dst=A, nbytes=8))

    seen = []
    while rig.engine.has_work:
        rig.slice()
        seen += [spans(rig)]

    starts = [A + at for at in range(0, LONG, SLICE_NBYTES)]
    assert [found for found in seen if found] == [
        *([(start, start + SLICE_NBYTES, WRITE)] for start in starts),
        [(A, A + 8, WRITE)],
    ]


@pytest.mark.parametrize("refused", ["source", "target"])
def test_an_operand_that_is_refused_leaves_nothing_in_flight(refused: str) -> None:
    rig = rig_with_pages()
    rig.door.unmap(A if refused == "source" else B, PAGE)

    begun(rig, Op.COPY)

    done = rig.completion()
    access = Access.READ if refused == "source" else Access.WRITE
    assert (done.status, done.access) == (CompletionStatus.TRANSLATION_FAULT, access)
    assert rig.door.flights == []
    assert rig.engine.lands_ns is None


def test_a_slice_that_cannot_begin_ends_what_it_had_begun() -> None:
    rig = rig_with_pages()
    rig.door.unmap(B, PAGE)
    operation = Operation(descriptor(Op.COPY, src=A, dst=B, nbytes=PAGE), (rig.door, rig.door), memoryview(rig.devmem))

    with pytest.raises(DmaError):
        operation.begin(PAGE)

    assert (rig.door.flights, operation.begun) == ([], 0)


def test_operations_do_the_same_as_without_a_latency() -> None:
    rig = rig_with_pages()

    compared = rig.do(descriptor(Op.COMPARE, src=A, dst=B, nbytes=PAGE))
    rig.do(descriptor(Op.COPY, src=A, dst=B, nbytes=PAGE))
    equal = rig.do(descriptor(Op.COMPARE, src=A, dst=B, nbytes=PAGE))
    summed = rig.do(descriptor(Op.CHECKSUM, src=B, nbytes=PAGE))

    assert (compared.status, compared.result) == (CompletionStatus.MISMATCH, 1)
    assert equal.status == CompletionStatus.OK
    assert summed.result == zlib.crc32(CONTENT)


@pytest.mark.parametrize("flags", [Flag.SRC_DEVMEM, Flag.DST_DEVMEM, Flag.SRC_DEVMEM | Flag.DST_DEVMEM])
def test_device_memory_is_not_in_flight_and_takes_its_time_all_the_same(flags: Flag) -> None:
    rig = rig_with_pages()
    rig.devmem[:PAGE] = CONTENT[::-1]
    src = 0 if flags & Flag.SRC_DEVMEM else A
    dst = PAGE if flags & Flag.DST_DEVMEM else B

    begun(rig, Op.COPY, flags=flags, src=src, dst=dst)
    nflights, early = len(rig.door.flights), rig.completion().status
    rig.run()

    landed = rig.devmem[PAGE : 2 * PAGE] if flags & Flag.DST_DEVMEM else rig.ram[PAGE : 2 * PAGE]
    assert nflights == 2 - flags.bit_count()
    assert early == CompletionStatus.PENDING
    assert bytes(landed) == (CONTENT[::-1] if flags & Flag.SRC_DEVMEM else CONTENT)


def test_a_nop_has_nothing_to_wait_for() -> None:
    rig = begun(rig_with_pages(), Op.NOP)

    assert rig.completion().status == CompletionStatus.OK


def test_a_slice_that_is_cancelled_from_outside_is_translated_anew() -> None:
    rig = begun(rig_with_pages(), Op.COPY)
    rig.door.end(rig.door.flights[1])

    rig.engine.run(LATENCY_NS - 1)
    again = spans(rig)
    rig.engine.run(2 * LATENCY_NS - 2)
    early = rig.completion().status
    rig.run()

    assert again == [(A, A + PAGE, READ), (B, B + PAGE, WRITE)]
    assert early == CompletionStatus.PENDING
    assert rig.ram[PAGE : 2 * PAGE] == CONTENT


def test_a_slice_that_is_given_back_is_translated_anew_and_takes_its_time() -> None:
    rig = begun(rig_with_pages(), Op.COPY)
    rig.engine.give_back()
    flights = spans(rig)

    rig.engine.run(LATENCY_NS)
    early = rig.completion().status
    rig.run()

    assert (flights, early) == ([], CompletionStatus.PENDING)
    assert rig.now_ns == 2 * LATENCY_NS
    assert rig.ram[PAGE : 2 * PAGE] == CONTENT


def test_a_new_operation_starts_its_own_time() -> None:
    rig = begun(rig_with_pages(), Op.COPY)
    rig.write32(Register.CONTROL, 0)
    rig.start()
    begun(rig, Op.FILL, arg=0)

    rig.engine.run(LATENCY_NS)

    assert rig.engine.lands_ns is None
    assert rig.completion().status == CompletionStatus.OK


@pytest.mark.parametrize("stop", ["reset", "disable", "stop"])
def test_whatever_stops_the_engine_drops_what_is_in_flight(stop: str) -> None:
    rig = begun(rig_with_pages(), Op.COPY)

    if stop == "reset":
        rig.engine.reset()
    elif stop == "disable":
        rig.write32(Register.CONTROL, 0)
    else:
        rig.engine.stop(ErrorCode.STOPPED)

    assert rig.door.flights == []
    assert rig.engine.lands_ns is None
    assert rig.ram[PAGE : 2 * PAGE] == bytes(PAGE)


# --- the function


class SlowBench(Bench):
    """A function with a latency of 5 us that notes when it wants to be woken."""

    def __init__(self, latency_us: int | str = 5) -> None:
        self.wanted: list[int] = []
        super().__init__({"latency": latency_us}, wake_at=lambda worker, when_ns: self.wanted.append(when_ns))

    def copy(self) -> None:
        """A slice of a long copy is in flight from time 100."""
        self.ram[SRC : SRC + LONG] = b"\xa5" * LONG
        self.start()
        self.submit(descriptor(Op.COPY, src=SRC, dst=DST, nbytes=LONG))
        self.progress = self.function.run_slice(100)


def test_the_function_is_idle_until_its_slice_lands() -> None:
    bench = SlowBench()

    bench.copy()
    again = bench.function.run_slice(200)
    landed = bench.function.run_slice(5100)

    assert (bench.progress, again, landed) == (Progress.IDLE, Progress.IDLE, Progress.BUSY)
    assert bench.wanted == [5100, 5100]
    assert bench.ram[DST : DST + SLICE_NBYTES] == b"\xa5" * SLICE_NBYTES
    assert bench.ram[DST + SLICE_NBYTES : DST + LONG] == bytes(LONG - SLICE_NBYTES)


def test_freezing_gives_the_slice_back() -> None:
    bench = SlowBench()
    bench.copy()

    bench.function.freeze(True)
    frozen = (dict(bench.iommu.in_flight.by_endpoint), bench.function.run_slice(9000))
    bench.function.freeze(False)
    bench.function.run_slice(9000)

    assert frozen == ({}, Progress.IDLE)
    assert bench.wanted == [5100, 14000]


@pytest.mark.parametrize("how", ["flr", "device-reset", "disconnected", "bus-master", "stop-dma", "quiesce"])
def test_every_gate_and_reset_of_the_function_drops_the_slice(how: str) -> None:
    bench = SlowBench()
    bench.copy()
    {
        "flr": lambda: flr(bench),
        "device-reset": bench.function.reset,
        "disconnected": bench.function.disconnected,
        "bus-master": lambda: bench.command(pci.Command.MEMORY),
        "stop-dma": bench.function.stop_dma,
        "quiesce": bench.function.quiesce,
    }[how]()
    flights = dict(bench.iommu.in_flight.by_endpoint)
    bench.command(pci.Command.MEMORY | pci.Command.BUS_MASTER)

    bench.function.run_slice(9000)

    assert flights == {}
    assert bench.ram[DST : DST + LONG] == bytes(LONG)


def test_a_function_that_vanished_drops_its_slice_when_it_would_have_landed() -> None:
    bench = SlowBench()
    bench.copy()
    bench.function.removed = True

    bench.function.run_slice(5100)

    assert bench.iommu.in_flight.by_endpoint == {}
    assert bench.ram[DST : DST + LONG] == bytes(LONG)


@pytest.mark.parametrize("latency", [-1, 1_000_001, "1ms"])
def test_a_wrong_latency_is_refused_by_name(latency: int | str) -> None:
    with pytest.raises(ConfigError) as caught:
        SlowBench(latency)

    assert caught.value.key == "endpoints[accel0].options.latency"


def test_the_longest_latency_is_a_second() -> None:
    bench = SlowBench(1_000_000)

    bench.copy()

    assert bench.wanted == [1_000_000_100]
    assert Control.ENABLE & bench.read(Register.CONTROL)
