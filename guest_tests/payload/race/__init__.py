"""Races between DMA under way and whatever takes its memory away, with canaries: docs/races.md.

The same operations are played in process, where time is exact, and in a guest, where it is not.
"""

from __future__ import annotations

from .errors import RaceError
from .field import Clock, Field, WallClock
from .ground import Scale
from .play import RACES, play
from .tally import Tally

__all__ = ["RACES", "Clock", "Field", "RaceError", "Scale", "Tally", "WallClock", "play"]
