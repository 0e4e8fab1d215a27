"""How far the guest is with an endpoint: stages rise, each is told once, and a new connection begins anew."""

from __future__ import annotations

import pytest

from tests.support.pci import Recorder, put
from vdev.functions.stages import Stages
from vdev.iommu.events import EndpointStage
from vdev.wire import pci


class Told:
    """Stages of one endpoint, and what was told of them."""

    def __init__(self) -> None:
        self.events: list[EndpointStage] = []
        self.stages = Stages("iommu0", self.events.append)
        self.stages.add(0x100, "e0")

    @property
    def words(self) -> list[str]:
        return [event.stage for event in self.events]


def test_an_endpoint_is_absent_until_somebody_connects() -> None:
    told = Told()
    assert (told.stages.of(0x100), told.words) == ("absent", [])

    told.stages.connection(0x100, True)

    assert told.stages.of(0x100) == "plugged"
    assert told.events == [EndpointStage("iommu0", 0x100, "e0", "plugged")]


def test_stages_rise_and_are_told_once() -> None:
    told = Told()

    told.stages.connection(0x100, True)
    told.stages.reach(0x100, "attached")
    told.stages.reach(0x100, "probed")
    told.stages.reach(0x100, "attached")

    assert (told.stages.of(0x100), told.words) == ("attached", ["plugged", "attached"])


def test_a_new_connection_begins_anew() -> None:
    told = Told()
    told.stages.connection(0x100, True)
    told.stages.reach(0x100, "enumerated")

    told.stages.connection(0x100, False)
    absent = told.stages.of(0x100)
    told.stages.connection(0x100, True)

    assert (absent, told.words) == ("absent", ["plugged", "enumerated", "plugged"])


def test_a_connection_that_ends_after_the_endpoint_left_is_nobodys() -> None:
    told = Told()
    told.stages.remove(0x100)

    told.stages.connection(0x100, False)

    assert told.words == []


@pytest.mark.parametrize(
    ("offset", "nbytes", "value", "sized"),
    [
        (pci.BAR0, 4, 0xFFFFFFFF, True), (pci.BAR0 + 8, 4, 0xFFFFFFFF, True), (pci.BAR0 + 16, 4, 0xFFFFFFF0, True),
        (pci.BAR0, 4, 0, False), (pci.BAR0, 4, 0xFE000000, False), (pci.BAR0 + 4, 4, 0xFFFFFFFF, False),
        (pci.BAR0 + 20, 4, 0xFFFFFFFF, False), (pci.COMMAND, 2, 0xFFFF, False),
    ],
)  # fmt: skip
def test_all_ones_in_the_lower_half_of_a_bar_ask_for_its_size(
    offset: int, nbytes: int, value: int, sized: bool
) -> None:
    function = Recorder()
    asked: list[bool] = []
    function.was_sized = lambda: asked.append(True)

    put(function, offset, nbytes, value)

    assert bool(asked) == sized


def test_a_reset_asks_for_no_size() -> None:
    function = Recorder()
    put(function, pci.BAR0, 4, 0xFFFFFFFF)
    asked: list[bool] = []
    function.was_sized = lambda: asked.append(True)

    function.reset()
    function.disconnected()

    assert asked == []
