"""What stands between an endpoint's door and its engine: in place only while somebody needs it, asked in order."""

from __future__ import annotations

import pytest

from tests.support.flight import BUFFER, FILLED, PAGE, FlightScene, status
from tests.support.virtio_pci import RAM_GPA
from vdev.errors import TranslationFault
from vdev.faults.translators import STALE, TRANSLATION, Asked, Found, put_stage, take_stage
from vdev.functions.dma import READ
from vdev.wire import viommu as wire
from vdev.wire.accelerator import CompletionStatus


@pytest.fixture
def scene() -> FlightScene:
    """accel0 in domain 1; its DMA takes time."""
    return FlightScene().set_up()


def translated(scene: FlightScene) -> list[tuple[int, int]]:
    door = scene.unit.doors["accel0"]
    return door.translator.translate(door.endpoint_id, BUFFER, 1, READ)


def leading_to(gpa: int) -> Found:
    return Found([(gpa, 1)], None)


def test_a_door_asks_the_engine_until_there_is_a_stage_and_after_the_last(scene: FlightScene) -> None:
    door = scene.unit.doors["accel0"]
    before = door.translator

    put_stage(scene.unit, STALE, lambda asked: leading_to(1))
    put_stage(scene.unit, TRANSLATION, lambda asked: None)
    during = translated(scene)
    take_stage(scene.unit, STALE)
    with_one = door.translator
    take_stage(scene.unit, TRANSLATION)
    take_stage(scene.unit, TRANSLATION)

    assert (before, during) == (scene.engine, [(1, 1)])
    assert with_one is not scene.engine
    assert door.translator is scene.engine


def test_stages_are_asked_by_rank_and_the_engine_last(scene: FlightScene) -> None:
    asked: list[str] = []

    def stage(name: str, found: Found | None) -> None:
        def find(given: Asked) -> Found | None:
            asked.append(name)
            return found

        put_stage(scene.unit, {"first": TRANSLATION, "second": STALE}[name], find)

    stage("second", None)
    stage("first", None)
    by_nobody = translated(scene)
    stage("first", leading_to(7))

    assert by_nobody == [(RAM_GPA + BUFFER, 1)]
    assert translated(scene) == [(7, 1)]
    assert asked == ["first", "second", "first"]


def test_an_access_is_in_flight_whoever_translated_it(scene: FlightScene) -> None:
    def find(asked: Asked) -> Found | None:
        return Found([(RAM_GPA + BUFFER, asked.nbytes)], 1) if asked.iova == BUFFER + PAGE else None

    put_stage(scene.unit, TRANSLATION, find)
    scene.fill(iova=BUFFER + PAGE)
    early = scene.ask(scene.unmap(BUFFER + PAGE))
    scene.land()

    assert (early, scene.buffer()) == ([], FILLED)


def test_a_stage_may_refuse_and_the_guest_is_told(scene: FlightScene) -> None:
    def refuse(asked: Asked) -> Found | None:
        raise TranslationFault(wire.FAULT_R_MAPPING, "not-mapped", asked.iova)

    scene.ask(scene.map_ring(domain=1))
    put_stage(scene.unit, TRANSLATION, lambda asked: refuse(asked) if asked.iova == BUFFER else None)
    scene.fill()

    assert status(scene) == CompletionStatus.TRANSLATION_FAULT
    assert wire.Fault.parse(scene.engine.pending_faults[0]).address == BUFFER


def test_an_endpoint_that_comes_gets_the_stage_when_it_is_put_again(scene: FlightScene) -> None:
    put_stage(scene.unit, TRANSLATION, lambda asked: leading_to(7))
    scene.unit.doors["accel0"].translator = scene.engine

    put_stage(scene.unit, TRANSLATION, lambda asked: leading_to(8))

    assert translated(scene) == [(8, 1)]
