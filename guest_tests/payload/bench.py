"""The guest's half of `make bench`: times the IOMMU in front of this guest's devices, whoever's it is.

The host says which devices and how often (`plan`); each phase answers with medians of equal batches after a warm-up.
All of it is the same for every IOMMU: the same ioctls, the same memory, the same stock drivers. Only PASIDs, which come
last, are vdev's alone.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import bench_dma_api, bench_memory, guest, vfio
from .bench_timing import Count, median, sampled_us
from .checks_open import bind_to_vfio
from .direct.errors import DirectError
from .direct.memory import DmaPool
from .direct.viommu import Viommu, find_units
from .direct.wire_pasid import FEATURES
from .lab import CheckFailed

IOVA = 0x4000_0000  # 1 GiB: aligned for any page size, far from the MSI window
NSCATTERED = 64
NHUGE = 128  # of 2 MiB: 256 MiB
PLAN_TIMEOUT_S = 30.0
BYE_TIMEOUT_S = 10.0
CLOCK = "devices/system/clocksource/clocksource0/current_clocksource"
DRIVER_LINES = ("virtio_iommu ", "DMAR: Intel(R) Virtualization Technology")  # what each driver says when it is bound
Report = Callable[[dict[str, Any]], None]


def main() -> int:
    """Hello, the plan, the phases, done; a phase that fails is a `done` that says so."""
    channel = guest.Channel()
    channel.send({"hello": 1, "kernel": os.uname().release, "cpus": os.cpu_count()})
    problem = ""
    try:
        message = channel.receive(PLAN_TIMEOUT_S)
        if message is None:
            raise OSError("the host sent no plan")
        _measure(message["plan"], channel.send)
    except (OSError, CheckFailed, DirectError, KeyError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    channel.send({"done": True, "ok": not problem, "problem": problem})
    channel.receive(BYE_TIMEOUT_S)
    return 1 if problem else 0


def _measure(plan: dict[str, Any], report: Report) -> None:
    bdf = _only(plan["vfio"])
    bind_to_vfio(bdf)
    group = guest.link_name(guest.SYS / "bus/pci/devices" / bdf / "iommu_group")
    if group is None:
        raise OSError(f"{bdf} is in no IOMMU group: it is not behind the IOMMU")
    report({"bound": bdf, **_surroundings(bdf)})
    counts = {name: Count(*numbers) for name, numbers in plan["counts"].items()}
    with _spinning() if plan["spin"] else _alone():
        container = vfio.Container(int(group))
        for phase in _vfio_phases(container.fd, counts):
            report(phase)
        container.close()
        for phase in bench_dma_api.phases(_only(plan["rng"]), counts):
            report(phase)
        if plan["pasids"]:
            report(_pasids(counts["pasid"]))


def _only(ids: list[int]) -> str:
    found = guest.find_pci(*ids)
    if not found:
        raise OSError(f"no PCI function {ids[0]:04x}:{ids[1]:04x}")
    return found[0]


def _surroundings(bdf: str) -> dict[str, Any]:
    """Facts that help to read the numbers; the driver's own line is on the clock `uptime_s` is read from."""
    lines = guest.KernelLog().find()
    stamps = [line[1:].partition("]")[0] for line in lines if any(words in line for words in DRIVER_LINES)]
    return {
        "uptime_s": time.monotonic(),
        "driver_line_s": float(stamps[0]) if stamps else None,
        "iommu": guest.link_name(guest.SYS / "bus/pci/devices" / bdf / "iommu"),
        "clocksource": guest.read_text(guest.SYS / CLOCK),
    }


def _vfio_phases(fd: int, counts: dict[str, Count]) -> Iterator[dict[str, Any]]:
    def nothing(times: int) -> None:
        for _ in range(times):
            fcntl.ioctl(fd, vfio.GET_API_VERSION)

    yield _phase("floor", sampled_us(counts["floor"], nothing))
    for name, npages, huge in (("page", 1, False), ("scattered", NSCATTERED, False), ("large", NHUGE, True)):
        area = bench_memory.apart(npages, huge=huge)
        samples = sampled_us(counts[name], _map_and_unmap(fd, area.address, area.nbytes))
        yield _phase(name, samples, runs=bench_memory.physical_runs(area.address, area.nbytes))
        area.close()


def _pasids(count: Count) -> dict[str, Any]:
    """A PASID and back, by our own driver, of the unit with nothing behind it: two requests, two answers."""
    _, apart = find_units()
    with Viommu.open(apart, DmaPool(), also=FEATURES) as viommu:
        pasids = viommu.pasids

        def run(times: int) -> None:
            for _ in range(times):
                pasids.free(pasids.alloc().pasid)

        return _phase("pasid", sampled_us(count, run))


def _map_and_unmap(fd: int, address: int, nbytes: int) -> Callable[[int], None]:
    """One MAP_DMA and one UNMAP_DMA a time, requests packed beforehand."""
    add = vfio.DMA_MAP.pack(vfio.DMA_MAP.size, vfio.READ | vfio.WRITE, address, IOVA, nbytes)
    remove = bytearray(vfio.DMA_UNMAP.pack(vfio.DMA_UNMAP.size, 0, IOVA, nbytes))

    def run(times: int) -> None:
        ioctl = fcntl.ioctl
        for _ in range(times):
            ioctl(fd, vfio.IOMMU_MAP_DMA, add)
            ioctl(fd, vfio.IOMMU_UNMAP_DMA, remove)
        if vfio.DMA_UNMAP.unpack(remove)[3] != nbytes:
            raise OSError(f"VFIO unmapped {vfio.DMA_UNMAP.unpack(remove)[3]} of {nbytes} bytes")

    return run


def _phase(name: str, samples_us: list[float], **facts: object) -> dict[str, Any]:
    return {"phase": name, "us": median(samples_us), "min": min(samples_us), "max": max(samples_us), **facts}


@contextmanager
def _alone() -> Iterator[None]:
    yield


@contextmanager
def _spinning() -> Iterator[None]:
    """Keep every other vCPU busy with a process that does nothing but run; we stay on the first."""
    first, *others = sorted(os.sched_getaffinity(0))
    children = [_spin_on(cpu) for cpu in others]
    os.sched_setaffinity(0, {first})
    try:
        yield
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)


def _spin_on(cpu: int) -> int:
    child = os.fork()
    if child:
        return child
    os.sched_setaffinity(0, {cpu})
    while True:
        pass
