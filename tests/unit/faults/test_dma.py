"""The point dma with the accelerator: what becomes of accesses that the IOMMU let through."""

from __future__ import annotations

import zlib

import pytest

from tests.support import injected_endpoints
from tests.support.accelerator import descriptor
from tests.support.injected_endpoints import (
    BASE,
    COMPLETIONS,
    CONTENT,
    DST,
    PAGE,
    RING,
    RNG,
    SRC,
    InjectedEndpoints,
)
from vdev.endpoints.accelerator_engine import SLICE_NBYTES
from vdev.wire import viommu as wire
from vdev.wire.accelerator import CompletionStatus, ErrorCode, Op, Register

READ, WRITE = wire.MAP_F_READ, wire.MAP_F_WRITE
OK, PENDING = CompletionStatus.OK, CompletionStatus.PENDING


scene = injected_endpoints.scene  # a fixture


# refused


@pytest.mark.parametrize(
    ("do", "status"),
    [
        ("unsupported-request", CompletionStatus.UNSUPPORTED_REQUEST),
        ("completer-abort", CompletionStatus.COMPLETER_ABORT),
    ],
)
@pytest.mark.parametrize(("iova", "access"), [(SRC, READ), (DST, WRITE)])
def test_a_refused_operand_ends_the_operation_and_is_no_fault_of_the_iommu(
    scene: InjectedEndpoints, do: str, status: CompletionStatus, iova: int, access: int
) -> None:
    scene.add("dma", do, match={"iova": hex(iova)}, times=1)

    done = scene.copy()

    assert (done.status, done.fault_iova, done.access, done.result) == (status, iova, access, 0)
    assert scene.faults() == []
    assert scene.door.refused == {do: 1}
    assert scene.read(Register.FAULTED) == 1
    assert scene.target() == bytes(PAGE)
    assert scene.door.nflights == 0
    assert scene.works()


@pytest.mark.parametrize("do", ["unsupported-request", "completer-abort"])
def test_a_descriptor_that_cannot_be_read_halts_the_engine(scene: InjectedEndpoints, do: str) -> None:
    scene.add("dma", do, match={"iova": hex(RING)})

    scene.copy()

    assert (scene.read(Register.ERROR), scene.read(Register.ERROR_IOVA)) == (ErrorCode.RING_FETCH, RING)
    assert scene.read(Register.COMPLETED) == 0


def test_what_the_iommu_refuses_is_not_met(scene: InjectedEndpoints) -> None:
    scene.add("dma", "unsupported-request", id="all", match={"iova": "0x5000"})

    done = scene.do(descriptor(Op.FILL, dst=0x5000, nbytes=8))

    assert done.status == CompletionStatus.TRANSLATION_FAULT
    assert scene.firings == []


# partial


@pytest.mark.parametrize(("operand", "access"), [(SRC, READ), (DST, WRITE)])
def test_a_partial_access_moves_exactly_its_first_bytes_and_then_faults(
    scene: InjectedEndpoints, operand: int, access: int
) -> None:
    scene.add("dma", "partial", match={"iova": hex(operand)}, with_={"nbytes": 1001}, times=1)

    done = scene.copy()

    assert scene.target() == CONTENT[:1001] + bytes(PAGE - 1001)
    assert (done.status, done.result) == (CompletionStatus.TRANSLATION_FAULT, 1001)
    assert (done.fault_iova, done.access) == (operand + 1001, access)
    assert scene.faults() == [(wire.FAULT_R_MAPPING, operand + 1001, access)]
    assert scene.door.refused == {"not-mapped": 1}
    assert scene.door.nflights == 0
    assert scene.works()


def test_a_partial_access_of_nothing_faults_at_once(scene: InjectedEndpoints) -> None:
    scene.add("dma", "partial", match={"iova": hex(DST)}, with_={"nbytes": 0})

    done = scene.copy()

    assert (done.status, done.result, done.fault_iova) == (CompletionStatus.TRANSLATION_FAULT, 0, DST)
    assert scene.target() == bytes(PAGE)


@pytest.mark.parametrize("nbytes", [PAGE, PAGE + 1])
def test_a_partial_access_of_all_of_it_is_whole(scene: InjectedEndpoints, nbytes: int) -> None:
    scene.add("dma", "partial", match={"iova": hex(DST)}, with_={"nbytes": nbytes})

    assert scene.copy().status == OK
    assert scene.faults() == []


@pytest.mark.parametrize(("where", "nbytes"), [(RING, 64), (COMPLETIONS, 32)])
def test_accesses_of_the_ring_that_are_not_longer_are_whole(where: int, nbytes: int) -> None:
    scene = InjectedEndpoints()
    scene.add("dma", "partial", match={"iova": hex(where)}, with_={"nbytes": nbytes})

    assert scene.copy().status == OK


def test_a_descriptor_that_breaks_off_is_not_read() -> None:
    scene = InjectedEndpoints()
    scene.add("dma", "partial", match={"iova": hex(RING)}, with_={"nbytes": 63})

    scene.copy()

    assert (scene.read(Register.ERROR), scene.read(Register.ERROR_IOVA)) == (ErrorCode.RING_FETCH, RING + 63)
    assert scene.faults() == [(wire.FAULT_R_MAPPING, RING + 63, READ)]


def test_a_partial_access_of_a_later_slice_leaves_the_slices_before_it(scene: InjectedEndpoints) -> None:
    scene.add("dma", "partial", match={"iova": hex(DST + SLICE_NBYTES)}, with_={"nbytes": 7})

    done = scene.copy(2 * SLICE_NBYTES)

    assert done.result == SLICE_NBYTES + 7
    assert not any(scene.target(2 * SLICE_NBYTES)[SLICE_NBYTES + 7 :])


def test_a_partial_access_that_straddles_mappings_ends_in_the_second(scene: InjectedEndpoints) -> None:
    scene.ask(wire.Attach(wire.T_ATTACH, bytes(3), 2, RNG))
    scene.unmap_all()
    for iova, gpa in ((RING, 0), (SRC, SRC - BASE + PAGE), (SRC + PAGE, SRC - BASE), (DST, DST - BASE)):
        scene.map(1, iova, gpa, 2 * PAGE if iova == RING else PAGE)
    scene.fill_source(2 * PAGE)
    scene.ram[SRC - BASE + PAGE : SRC - BASE + 2 * PAGE] = b"\x77" * PAGE
    scene.add("dma", "partial", match={"iova": hex(SRC + PAGE - 16)}, with_={"nbytes": 20})

    done = scene.do(descriptor(Op.COPY, src=SRC + PAGE - 16, dst=DST, nbytes=64))

    assert done.result == 20
    assert scene.target(64) == b"\x77" * 16 + CONTENT[:4] + bytes(44)


def test_a_comparison_that_ends_before_the_fault_does_not_meet_it(scene: InjectedEndpoints) -> None:
    scene.add("dma", "partial", match={"iova": hex(SRC)}, with_={"nbytes": 100})
    scene.fill_source()

    done = scene.do(descriptor(Op.COMPARE, src=SRC, dst=DST, nbytes=PAGE))

    assert (done.status, done.result) == (CompletionStatus.MISMATCH, 1)
    assert scene.faults() == []


def test_a_completion_that_breaks_off_has_its_first_bytes_and_halts_the_engine(scene: InjectedEndpoints) -> None:
    scene.add("dma", "partial", match={"iova": hex(COMPLETIONS), "access": "write"}, with_={"nbytes": 1}, times=1)

    scene.do(descriptor(Op.FILL, dst=DST, nbytes=8, tag=0x1234))

    assert bytes(scene.ram[COMPLETIONS - BASE :][:4]) == b"\x34\0\0\0"
    assert scene.read(Register.ERROR) == ErrorCode.COMPLETION_WRITE
    assert scene.read(Register.ERROR_IOVA) == COMPLETIONS + 1
    assert scene.faults() == [(wire.FAULT_R_MAPPING, COMPLETIONS + 1, WRITE)]
    scene.start()
    assert scene.works()


# corrupted


def test_a_corrupted_read_gives_the_endpoint_wrong_bytes_and_leaves_memory(scene: InjectedEndpoints) -> None:
    scene.add("dma", "corrupt", match={"iova": hex(SRC)}, with_={"pattern": 0xEE, "offset": 10, "nbytes": 3}, times=1)

    done = scene.copy()

    assert done.status == OK
    assert scene.target() == CONTENT[:10] + b"\xee" * 3 + CONTENT[13:]
    assert bytes(scene.ram[SRC - BASE :][:PAGE]) == CONTENT
    assert scene.works()


def test_a_corrupted_write_leaves_the_pattern_in_memory(scene: InjectedEndpoints) -> None:
    scene.add("dma", "corrupt", match={"iova": hex(DST)}, with_={"offset": 4000}, times=1)

    done = scene.copy()

    assert done.status == OK
    assert scene.target() == CONTENT[:4000] + b"\xa5" * 96
    assert scene.works()


@pytest.mark.parametrize("offset", [PAGE, 100_000])
def test_what_would_be_wrong_behind_the_access_is_not_there(scene: InjectedEndpoints, offset: int) -> None:
    scene.add("dma", "corrupt", match={"iova": f"{SRC:#x}-{DST:#x}"}, with_={"offset": offset})

    scene.copy()

    assert scene.target() == CONTENT


def test_a_corrupted_write_that_straddles_mappings_is_wrong_in_both(scene: InjectedEndpoints) -> None:
    scene.unmap_all()
    for iova, gpa, nbytes in ((RING, 0, 2 * PAGE), (DST, DST - BASE, PAGE), (DST + PAGE, DST - BASE + 2 * PAGE, PAGE)):
        scene.map(1, iova, gpa, nbytes)
    scene.add("dma", "corrupt", match={"iova": hex(DST + PAGE)}, with_={"offset": 6, "nbytes": 4})

    scene.do(descriptor(Op.FILL, dst=DST + PAGE - 8, nbytes=16, arg=0))

    assert bytes(scene.ram[DST - BASE + PAGE - 8 :][:8]) == bytes(6) + b"\xa5" * 2
    assert bytes(scene.ram[DST - BASE + 2 * PAGE :][:8]) == b"\xa5" * 2 + bytes(6)


def test_a_corrupted_checksum_is_that_of_the_wrong_bytes(scene: InjectedEndpoints) -> None:
    scene.fill_source()
    scene.add("dma", "corrupt", match={"iova": hex(SRC)}, with_={"pattern": 0})

    assert scene.do(descriptor(Op.CHECKSUM, src=SRC, nbytes=PAGE)).result == zlib.crc32(bytes(PAGE))


def test_a_corrupted_descriptor_is_what_the_engine_executes(scene: InjectedEndpoints) -> None:
    scene.add("dma", "corrupt", match={"iova": hex(RING)}, with_={"pattern": 0xFF, "nbytes": 1}, times=1)

    assert scene.copy().status == CompletionStatus.BAD_DESCRIPTOR
    assert scene.works()


# the plan


def test_with_no_rule_the_straight_way_is_taken() -> None:
    scene = InjectedEndpoints()
    rule = scene.add("dma", "corrupt", id="never", match={"iova": "0x0"})
    assert scene.door.detour is not None

    scene.injector.remove(rule)

    assert scene.door.detour is None
    assert scene.works()
