"""Checks of a machine with more than one accelerator."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from . import accel, vfio
from .lab import (
    MARKER,
    RING_IOVA,
    SOURCE_IOVA,
    TARGET_IOVA,
    Finding,
    Lab,
    copy,
    expect,
    run_ok,
    run_refused,
    running_engine,
)

NBYTES = 0x10000


@dataclass(frozen=True)
class Station:
    """One accelerator at work, with memory of its own at the addresses all of them use."""

    bdf: str
    container: vfio.Container
    engine: accel.Accelerator
    source: vfio.Buffer
    target: vfio.Buffer


def each_reaches_its_own_memory(lab: Lab) -> Finding:
    """All accelerators copy between the same two addresses, each through its own mappings, and lose them one by one."""
    with contextlib.ExitStack() as stack:
        stations = [_station(lab.bdf, lab.container, lab.engine)]
        for bdf, group in lab.accelerators.items():
            if bdf != lab.bdf:
                stations.append(stack.enter_context(_opened_station(bdf, group)))
        for station in stations:
            stack.enter_context(station.container.mapped(SOURCE_IOVA, station.source, vfio.READ))
            station.container.map(TARGET_IOVA, station.target, vfio.WRITE)
        refusals = []
        for gone, station in enumerate(stations):
            _expect_copies(stations[gone:])
            station.container.unmap(TARGET_IOVA, NBYTES)
            station.target.fill(MARKER)
            fault = (TARGET_IOVA, accel.WRITE)
            refusals.append(run_refused(lab.log, station.engine, station.bdf, copy(NBYTES), fault))
            lab.expect_untouched(station.target)
    names = ", ".join(station.bdf for station in stations)
    return Finding(f"{names} copied at the same addresses, each its own 64 KiB, until unmapped", {"refusals": refusals})


def _station(bdf: str, container: vfio.Container, engine: accel.Accelerator) -> Station:
    return Station(bdf, container, engine, vfio.Buffer(NBYTES), vfio.Buffer(NBYTES))


@contextlib.contextmanager
def _opened_station(bdf: str, group: int) -> Iterator[Station]:
    """Another accelerator, opened and running for the length of the block."""
    with contextlib.closing(vfio.Container(group)) as container, running_engine(container, bdf, RING_IOVA) as engine:
        yield _station(bdf, container, engine)


def _expect_copies(stations: list[Station]) -> None:
    """Every station copies new content of its own, and nobody else's arrives."""
    for station in stations:
        station.source.memory[:] = os.urandom(NBYTES)
        station.target.fill(MARKER)
    for station in stations:
        run_ok(station.engine, copy(NBYTES))
    for station in stations:
        expect(station.target.memory == station.source.memory, f"{station.bdf} copied something else than its own")
