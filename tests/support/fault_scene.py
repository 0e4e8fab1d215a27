"""A unit with two accelerators behind either attachment, and a fault plan. Time passes where a test lets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.support.flight import OK, Attachment, FlightScene
from vdev.config import Config, UnitConfig
from vdev.errors import TranslationFault
from vdev.faults.events import FaultInjected
from vdev.faults.rule import NS
from vdev.functions.dma import READ
from vdev.injector import Around, Injector
from vdev.iommu.events import RequestHandled
from vdev.iommu.pasid_set import PasidSet
from vdev.iommu.tag import Tag
from vdev.wire import viommu as wire
from vdev.wire import vring


class FaultScene(FlightScene):
    """`FlightScene` with `faults`."""

    def __init__(
        self,
        attach: Attachment = "vfio-user",
        *,
        latency_us: int = 0,
        pasids: PasidSet | None = None,
        process: Callable[..., None] | None = None,
        **unit: Any,
    ) -> None:
        """By default accesses land at once, and nobody may order, stall or die; else `process` is told of it."""
        super().__init__(attach, latency_us=latency_us, pasids=pasids, **unit)
        around = Around(
            emit=self.events.append,
            clock_ns=lambda: self.now_ns,
            wake_at=self._wake_at,
            order=process or _not_wanted,
            stall=process or _not_wanted,
            die=process or _not_wanted,
        )
        self.faults = Injector(self.machine, Config(units=(UnitConfig(name="iommu0"),)), around, pasids)

    def add(self, at: str, do: str, *, parameters: Mapping[str, Any] | None = None, **more: Any) -> str:
        """A rule; `parameters` is its `with`."""
        given = {"at": at, "do": do, **more}
        return self.faults.add(given if parameters is None else {**given, "with": parameters})

    def pass_time(self, seconds: float) -> None:
        """Time passes, and what is due happens."""
        self.now_ns += round(seconds * NS)
        self.run()

    def leave_no_room(self) -> None:
        """As much waits for its time as may."""
        while self.faults.has_room:
            self.faults.later(3000, lambda: None)

    def held(self) -> int:
        """How many things are held for whatever rule."""
        plan = self.faults.describe()
        return int(sum(rule["held"] for rule in plan["rules"]) + plan["held-by-none"])

    @property
    def firings(self) -> list[FaultInjected]:
        return [event for event in self.events if isinstance(event, FaultInjected)]

    @property
    def told(self) -> list[tuple[str, int | None, str]]:
        """Type, status and problem of every request there was, as a trace has them."""
        return [(one.type_name, one.status, one.problem) for one in self.events if isinstance(one, RequestHandled)]

    def maps(self, *pages: int) -> list[wire.Map]:
        """A MAP of each page (numbers of IOVA pages) in domain 1."""
        return [self.map(page << 12, page << 12) for page in pages]

    def used(self) -> list[tuple[int, int]]:
        """Head and used length of every element in the used ring, the ring having come round at most once."""
        ring = self.requests
        words, size = ring.used_words, ring.size
        count = int(words[vring.IDX_WORD])
        raw = words.cast("B")
        first = max(count - size, 0)
        at = [vring.USED_RING_OFFSET + 8 * (number % size) for number in range(first, count)]
        return [vring.USED_ELEMENT.unpack_from(raw, offset) for offset in at]


def _not_wanted(*_: object) -> None:
    raise AssertionError("no test of this scene orders, stalls or dies")


@pytest.fixture
def scene(attach: Attachment) -> FaultScene:
    """accel0 in domain 1."""
    scene = FaultScene(attach)
    assert scene.ask(scene.attach()) == [OK]
    return scene


def mapped(scene: FlightScene) -> int:
    """How many mappings the unit has."""
    return scene.engine.table.nmappings


def translated(scene: FaultScene, iova: int, nbytes: int = 1, access: int = READ, tag: Tag | None = None) -> object:
    """The pieces of an access of accel0, or the word of the fault."""
    door = scene.unit.doors["accel0"]
    try:
        return door.translator.translate(door.endpoint_id, iova, nbytes, access, tag)
    except TranslationFault as error:
        return error.reason
