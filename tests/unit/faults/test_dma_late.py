"""The point dma with the accelerator: accesses that move their bytes later, and everything that may come in between."""

from __future__ import annotations

import pytest

from tests.support import injected_endpoints
from tests.support.accelerator import descriptor
from tests.support.injected_endpoints import (
    COMPLETIONS,
    CONTENT,
    DST,
    PAGE,
    RING,
    SLOW,
    SRC,
    InjectedEndpoints,
)
from vdev.endpoints.accelerator_engine import SLICE_NBYTES
from vdev.functions.base import Progress
from vdev.wire import pci
from vdev.wire.accelerator import CompletionStatus, Control, ErrorCode, Flag, Op, Register

OK, PENDING = CompletionStatus.OK, CompletionStatus.PENDING


scene = injected_endpoints.scene  # a fixture


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
    scene.woken.clear()

    if how == "clear":
        assert scene.injector.clear().undone == ["1 delayed accesses of accel0 go on"]
    else:
        if how == "remove and release":
            scene.injector.remove(rule)
        assert scene.injector.release(rule if how == "release" else None) == 1
    assert scene.accel in scene.woken
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
    assert scene.injector.describe()["rules"][0]["matched"] == 2  # a record, a status byte, and nothing done again


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


def test_what_was_given_back_is_translated_anew_and_not_late_any_more_where_it_is_refused() -> None:
    scene = InjectedEndpoints()
    scene.add("dma", "delay", match={"iova": hex(DST)}, with_={"seconds": 1})
    scene.copy()

    scene.accel.on_pasid_rights_lost()  # what is in flight is given back
    scene.unmap_all()
    waits = scene.unit.engine.wait
    scene.run()

    assert waits is None
    assert scene.read(Register.ERROR) == ErrorCode.COMPLETION_WRITE  # the operation faulted, and so did its record
    assert scene.firings == [("r1", 1)]
    assert scene.injector.describe()["rules"][0]["held"] == 0


def test_a_late_operand_of_an_operation_whose_other_is_refused_is_not_held() -> None:
    scene = InjectedEndpoints()
    scene.add("dma", "delay", match={"iova": hex(SRC)}, with_={"seconds": 500})

    done = scene.do(descriptor(Op.COPY, src=SRC, dst=0x5000, nbytes=PAGE))

    assert done.status == CompletionStatus.TRANSLATION_FAULT
    assert (scene.door.nflights, scene.injector.describe()["rules"][0]["held"]) == (0, 0)
