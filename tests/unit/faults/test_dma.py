"""The point dma with the accelerator: what becomes of accesses that the IOMMU let through."""

from __future__ import annotations

import zlib

import pytest

from tests.support.accelerator import descriptor
from tests.support.injected_endpoints import (
    BASE,
    COMPLETIONS,
    CONTENT,
    DST,
    PAGE,
    RING,
    RNG,
    SLOW,
    SRC,
    InjectedEndpoints,
)
from vdev.endpoints.accelerator_engine import SLICE_NBYTES
from vdev.functions.base import Progress
from vdev.wire import pci
from vdev.wire import viommu as wire
from vdev.wire.accelerator import CompletionStatus, Control, ErrorCode, Flag, Op, Register

READ, WRITE = wire.MAP_F_READ, wire.MAP_F_WRITE
OK, PENDING = CompletionStatus.OK, CompletionStatus.PENDING


@pytest.fixture(params=["at once", "with a latency"])
def scene(request: pytest.FixtureRequest) -> InjectedEndpoints:
    return InjectedEndpoints() if request.param == "at once" else InjectedEndpoints(SLOW)


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


# delayed


def test_a_delayed_operand_moves_its_bytes_in_its_time(scene: InjectedEndpoints) -> None:
    scene.add("dma", "delay", match={"iova": hex(DST)}, with_={"seconds": 0.5}, times=1)

    waiting = scene.copy().status, scene.target()
    scene.pass_time(0.49)
    scene.run()
    early = scene.target()
    scene.pass_time(0.01)
    woken = scene.accel in scene.woken
    scene.run()

    assert waiting == (PENDING, bytes(PAGE))
    assert early == bytes(PAGE)
    assert woken
    assert (scene.completion(0).status, scene.target()) == (OK, CONTENT)
    assert scene.works()


def test_a_delay_shorter_than_the_latency_changes_nothing() -> None:
    scene = InjectedEndpoints(SLOW)
    scene.add("dma", "delay", match={"iova": hex(DST)}, with_={"seconds": 0.000_001})
    began = scene.now_ns
    scene.fill_source()
    scene.submit(descriptor(Op.COPY, src=SRC, dst=DST, nbytes=PAGE))
    scene.accel.run_slice(scene.now_ns)

    scene.pass_time(0.000_001)
    scene.run()

    assert scene.now_ns - began == 50_000
    assert scene.target() == CONTENT


def test_an_unmap_waits_for_a_delayed_operand_which_lands_where_it_was_translated_to(
    scene: InjectedEndpoints,
) -> None:
    scene.add("dma", "delay", match={"iova": hex(DST)}, with_={"seconds": 1})
    scene.fill_source()
    scene.submit(descriptor(Op.COPY, src=SRC, dst=DST, nbytes=PAGE))
    scene.run()

    scene.unmap_all()
    wait = scene.unit.engine.wait
    assert wait is not None
    before = wait.is_over
    scene.pass_time(1)
    scene.run()

    assert (before, wait.is_over) == (False, True)
    assert scene.target() == CONTENT
    assert scene.read(Register.ERROR) == ErrorCode.COMPLETION_WRITE  # it is unmapped by then


@pytest.mark.parametrize("how", ["release", "clear", "remove and release"])
def test_what_is_delayed_goes_on_when_it_is_let_go(scene: InjectedEndpoints, how: str) -> None:
    rule = scene.add("dma", "delay", match={"iova": hex(SRC)}, with_={"seconds": 3600})
    scene.copy()
    held = scene.injector.describe()["rules"][0]["held"]

    if how == "clear":
        assert scene.injector.clear().undone == ["1 delayed accesses of accel0 go on"]
    else:
        if how == "remove and release":
            scene.injector.remove(rule)
        assert scene.injector.release(rule if how == "release" else None) == 1
    scene.run()

    assert held == 1
    assert (scene.completion(0).status, scene.target()) == (OK, CONTENT)
    assert scene.injector.describe()["held-by-none"] == 0
    if how != "release":
        assert scene.door.detour is None


def test_a_delayed_descriptor_is_read_again_and_met_once(scene: InjectedEndpoints) -> None:
    scene.add("dma", "delay", match={"iova": hex(RING)}, with_={"seconds": 1})

    waiting = scene.copy().status
    scene.run()
    scene.pass_time(1)
    scene.run()

    assert waiting == PENDING
    assert scene.completion(0).status == OK
    assert scene.firings == [("r1", 1)]
    assert scene.read(Register.ERROR) == ErrorCode.NONE


def test_a_delayed_descriptor_is_read_by_the_mappings_of_then() -> None:
    scene = InjectedEndpoints()
    scene.add("dma", "delay", match={"iova": hex(RING)}, with_={"seconds": 1})
    scene.copy()

    scene.unmap_all()
    waits = scene.unit.engine.wait is not None
    scene.pass_time(1)
    scene.run()

    assert not waits
    assert (scene.read(Register.ERROR), scene.read(Register.ERROR_IOVA)) == (ErrorCode.RING_FETCH, RING)


@pytest.mark.parametrize("nth", [1, 2])
def test_a_delayed_completion_is_seen_in_its_time_and_is_whole(scene: InjectedEndpoints, nth: int) -> None:
    # the first access is the record, the second its status byte
    scene.add("dma", "delay", match={"iova": hex(COMPLETIONS)}, when={"every": 1}, with_={"seconds": 1})
    scene.injector.clear()
    area = f"{COMPLETIONS:#x}-{COMPLETIONS + 31:#x}"
    scene.add("dma", "delay", match={"iova": area}, when={"nth": nth}, with_={"seconds": 1})
    following = descriptor(Op.FILL, dst=DST, nbytes=8, arg=7)

    scene.fill_source()
    scene.submit(descriptor(Op.COPY, src=SRC, dst=DST, nbytes=PAGE, tag=9, flags=Flag.IRQ), following)
    scene.run()
    waiting = scene.completion(0).status, scene.read(Register.COMPLETED), list(scene.vectors), scene.target()
    scene.pass_time(1)
    scene.run()

    assert waiting == (PENDING, 0, [], CONTENT)  # the operation is done, and nothing after it has begun
    assert (scene.completion(0).status, scene.completion(0).tag, scene.completion(1).status) == (OK, 9, OK)
    assert scene.vectors == [0]
    assert scene.read(Register.COMPLETED) == 2


def test_the_engine_that_is_disabled_writes_a_delayed_completion_at_once(scene: InjectedEndpoints) -> None:
    scene.add("dma", "delay", match={"iova": f"{COMPLETIONS:#x}-{COMPLETIONS + 31:#x}"}, with_={"seconds": 9})
    scene.copy()

    scene.write(Register.CONTROL, 0)
    seen = scene.completion(0).status, bytes(scene.ram)
    scene.pass_time(10)
    scene.run()

    assert seen[0] == OK
    assert bytes(scene.ram) == seen[1]
    assert scene.injector.describe()["rules"][0]["held"] == 0


def test_the_engine_that_is_disabled_gives_a_delayed_operation_up(scene: InjectedEndpoints) -> None:
    scene.add("dma", "delay", match={"iova": hex(DST)}, with_={"seconds": 9})
    scene.copy()

    scene.write(Register.CONTROL, 0)
    scene.pass_time(10)
    scene.run()

    assert scene.completion(0).status == CompletionStatus.ABORTED
    assert scene.target() == bytes(PAGE)
    assert (scene.door.nflights, scene.injector.describe()["rules"][0]["held"]) == (0, 0)


@pytest.mark.parametrize("where", [RING, DST, COMPLETIONS])
@pytest.mark.parametrize("how", ["register", "function", "bus master"])
def test_nothing_that_was_delayed_lands_after_a_reset(scene: InjectedEndpoints, where: int, how: str) -> None:
    scene.add("dma", "delay", match={"iova": hex(where)}, with_={"seconds": 1}, times=1)
    scene.copy()

    if how == "register":
        scene.write(Register.CONTROL, Control.RESET)
    elif how == "function":
        scene.accel.function_level_reset()
    else:
        scene.accel.config_write(pci.COMMAND, bytes(2))
    before = bytes(scene.ram)
    scene.pass_time(2)
    scene.run()

    assert bytes(scene.ram) == before
    assert scene.door.nflights == 0
    scene.start()
    assert scene.works()
    assert scene.injector.describe()["waiting"] == 0


def test_a_stopped_vm_waits_and_the_access_is_translated_anew(scene: InjectedEndpoints) -> None:
    scene.add("dma", "delay", match={"iova": hex(DST)}, with_={"seconds": 1})
    scene.copy()

    scene.accel.freeze(True)
    unmaps_wait = scene.door.nflights
    scene.run()
    scene.accel.freeze(False)
    scene.run()
    waiting = scene.completion(0).status, scene.door.nflights
    scene.pass_time(1)
    scene.run()

    assert unmaps_wait == 0
    assert waiting == (PENDING, 2)
    assert (scene.completion(0).status, scene.target()) == (OK, CONTENT)
    assert scene.firings == [("r1", 1)]


def test_a_long_operation_is_delayed_slice_by_slice(scene: InjectedEndpoints) -> None:
    scene.add("dma", "delay", match={"iova": f"{DST:#x}-{DST + 3 * SLICE_NBYTES - 1:#x}"}, with_={"seconds": 1})
    scene.copy(3 * SLICE_NBYTES)

    for _ in range(2):
        scene.pass_time(1)
        scene.run()
    nearly = scene.completion(0).status, any(scene.target(3 * SLICE_NBYTES)[2 * SLICE_NBYTES :])
    scene.pass_time(1)
    scene.run()

    assert nearly == (PENDING, False)
    assert scene.completion(0).status == OK
    assert scene.firings == [("r1", 1), ("r1", 2), ("r1", 3)]


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


def test_an_endpoint_that_came_later_is_met_and_one_that_left_is_forgotten() -> None:
    scene = InjectedEndpoints()
    scene.add("dma", "delay", match={"iova": hex(DST)}, with_={"seconds": 5})
    scene.copy()
    gone = scene.accel

    scene.machine.remove_endpoint("accel0")
    scene.woken.clear()
    scene.pass_time(6)

    assert gone not in scene.woken
    assert scene.injector.describe()["rules"][0]["held"] == 0
    config = next(endpoint for endpoint in SLOW.endpoints if endpoint.name == "accel0")
    scene.machine.add_endpoint(config)
    assert scene.door.detour is not None


def test_the_worker_is_idle_while_it_waits() -> None:
    scene = InjectedEndpoints()
    scene.add("dma", "delay", with_={"seconds": 5})
    scene.fill_source()
    scene.submit(descriptor(Op.COPY, src=SRC, dst=DST, nbytes=PAGE))

    assert scene.accel.run_slice(scene.now_ns) is Progress.IDLE
    assert "accel0" not in scene.alarms
