"""What stands between an endpoint's door and the engine that translates for it, while faults are injected there.

A door asks `DmaDoor.translator`, which is the engine until `put_stage` puts a `Staged` in its place and again after
`take_stage` took the last stage away. Accesses and messages go the same way, tagged or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vdev.errors import TranslationFault
from vdev.faults.point import UnitParts
from vdev.iommu.engine import Engine
from vdev.iommu.in_flight import Flight, Piece
from vdev.iommu.settings import UnitSettings
from vdev.iommu.tag import Tag

# Who is asked first: what is injected into one access is meant for it, whatever lives on from before.
TRANSLATION, STALE = range(2)


@dataclass(frozen=True, slots=True)
class Asked:
    """An access of `nbytes` at `iova` (READ=1, WRITE=2) that asks for its pieces. `flight`: it was translated before
    and is in flight; it is asked about a second time only where the unit is told to `revalidate`."""

    endpoint: int
    iova: int
    nbytes: int
    access: int
    tag: Tag | None
    flight: Flight | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Where an access leads, and by whose mappings (None: by nobody's, as an endpoint that bypasses)."""

    pieces: list[Piece]
    domain: int | None


Stage = Callable[[Asked], Found | None]  # None: ask the next; TranslationFault, or another DmaError: refused


class Staged:
    """One endpoint's way to its engine, with `stages` by rank, lowest first. Implements `functions.dma.Translator`."""

    def __init__(self, engine: Engine) -> None:
        """No stages: as the engine."""
        self.stages: dict[int, Stage] = {}
        self.in_flight = engine.in_flight
        self._engine = engine

    @property
    def settings(self) -> UnitSettings:
        """As the engine's."""
        return self._engine.settings

    @property
    def granule(self) -> int:
        """As the engine's."""
        return self._engine.granule

    def translate(self, endpoint: int, iova: int, nbytes: int, access: int, tag: Tag | None = None) -> list[Piece]:
        """As the engine's, unless a stage knows better."""
        found = self._find(Asked(endpoint, iova, nbytes, access, tag))
        return self._engine.translate(endpoint, iova, nbytes, access, tag) if found is None else found.pieces

    def begin(self, endpoint: int, iova: int, nbytes: int, access: int, tag: Tag | None = None) -> Flight:
        """As the engine's, unless a stage knows better. Whatever it was translated by, requests wait for it."""
        found = self._find(Asked(endpoint, iova, nbytes, access, tag))
        if found is None:
            return self._engine.begin(endpoint, iova, nbytes, access, tag)
        pasid = 0 if tag is None else tag.pasid
        flight = Flight(endpoint, found.domain, iova, iova + nbytes, access, found.pieces, False, pasid)
        self.in_flight.begin(flight)
        return flight

    def retranslate(self, flight: Flight, tag: Tag | None) -> list[Piece]:
        """As the engine's, unless a stage knows better."""
        nbytes = flight.stop - flight.start
        found = self._find(Asked(flight.endpoint, flight.start, nbytes, flight.access, tag, flight))
        return self._engine.retranslate(flight, tag) if found is None else found.pieces

    def fault(self, endpoint: int, error: TranslationFault, access: int, tag: Tag | None = None) -> None:
        """As the engine's: an injected refusal is reported like any other."""
        self._engine.fault(endpoint, error, access, tag)

    def _find(self, asked: Asked) -> Found | None:
        for _, stage in sorted(self.stages.items()):
            found = stage(asked)
            if found is not None:
                return found
        return None


def put_stage(unit: UnitParts, rank: int, stage: Stage) -> None:
    """`stage` in front of every endpoint of `unit`, in place of the one of that rank; again after endpoints came."""
    for door in unit.doors.values():
        if not isinstance(door.translator, Staged):
            door.translator = Staged(unit.engine)
        door.translator.stages[rank] = stage


def take_stage(unit: UnitParts, rank: int) -> None:
    """The stage of that rank is gone; with the last, doors ask the engine again. Again is no change."""
    for door in unit.doors.values():
        staged = door.translator
        if isinstance(staged, Staged):
            staged.stages.pop(rank, None)
            if not staged.stages:
                door.translator = unit.engine
