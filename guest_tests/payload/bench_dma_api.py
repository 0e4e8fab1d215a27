"""The DMA API's share of an I/O: a stock driver's reads with the device's group translated, and as identity.

virtio_rng maps a buffer, waits for the device, and unmaps it, once an I/O. Driver, device and interrupt are the same
in both modes, so the difference is what mapping and unmapping cost. The kernel's own trace events count the mappings.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import guest
from .bench_timing import Count, median, sampled_us
from .checks_hwrng import DEVICE, RNG_CURRENT

READ_NBYTES = 64  # one buffer of the driver
TRANSLATED, IDENTITY = "DMA", "identity"  # as sysfs spells them; "DMA" is the strict one
TRACEFS = Path("/sys/kernel/tracing")
EVENTS = ("map", "unmap")
BIND_TIMEOUT_S = 10.0


def phases(bdf: str, counts: dict[str, Count]) -> Iterator[dict[str, Any]]:
    """The phases `dma` and `identity`: us a read, and mappings and unmappings a read as the kernel counted them.

    The two alternate, so that a machine that gets slower meanwhile does not look like a mapping's cost. Raises OSError.
    """
    samples: dict[str, list[float]] = {TRANSLATED: [], IDENTITY: []}
    counted: dict[str, dict[str, float]] = {}
    for _ in range(counts["turns"].times):
        for kind in samples:
            _become(bdf, kind)
            fd = os.open(DEVICE, os.O_RDONLY | os.O_CLOEXEC)
            samples[kind] += sampled_us(counts["rng"], _reader(fd))
            counted[kind] = counted.get(kind) or _counted(fd, counts["counted"].times)
            os.close(fd)
    for name, kind in (("dma", TRANSLATED), ("identity", IDENTITY)):
        us = samples[kind]
        yield {"phase": name, "us": median(us), "min": min(us), "max": max(us), **counted[kind]}


def _become(bdf: str, kind: str) -> None:
    """Have the function's group be of this kind, with its stock driver bound."""
    group = guest.SYS / "bus/pci/devices" / bdf / "iommu_group"
    if guest.read_text(group / "type") != kind:
        guest.unbind_driver(bdf)
        (group / "type").write_text(kind)
        guest.bind_driver(bdf, "virtio-pci")
    deadline = time.monotonic() + BIND_TIMEOUT_S
    while not (DEVICE.exists() and guest.read_text(guest.SYS / RNG_CURRENT).startswith("virtio_rng")):
        if time.monotonic() > deadline:
            raise OSError(f"{bdf} does not serve {DEVICE}")
        time.sleep(0.01)
    if (found := guest.read_text(group / "type")) != kind:
        raise OSError(f"the group of {bdf} is of type {found}, not {kind}")


def _read(fd: int, times: int) -> None:
    for _ in range(times):
        if not os.read(fd, READ_NBYTES):
            raise OSError(f"{DEVICE} ended")


def _reader(fd: int) -> Callable[[int], None]:
    def run(times: int) -> None:
        _read(fd, times)

    return run


def _counted(fd: int, times: int) -> dict[str, float]:
    """iommu:map and iommu:unmap events a read, in a pass that is not timed."""
    with _tracing() as lines:
        _read(fd, times)
    return {f"{name}s": sum(f": {name}: " in line for line in lines) / times for name in EVENTS}


@contextmanager
def _tracing() -> Iterator[list[str]]:
    """The list holds the trace's lines once the block is over."""
    if not (TRACEFS / "events").is_dir():
        os.spawnvp(os.P_WAIT, "busybox", ["busybox", "mount", "-t", "tracefs", "tracefs", str(TRACEFS)])
    lines: list[str] = []
    (TRACEFS / "trace").write_text("")
    for name in EVENTS:
        (TRACEFS / f"events/iommu/{name}/enable").write_text("1")
    try:
        yield lines
    finally:
        for name in EVENTS:
            (TRACEFS / f"events/iommu/{name}/enable").write_text("0")
        lines += (TRACEFS / "trace").read_text().splitlines()
