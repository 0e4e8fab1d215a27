"""Runs in the guest for refused-map-stock.yaml: the accelerator through VFIO, every driver Linux's own."""

from __future__ import annotations

from typing import Any

from guest_tests.payload import accel, checks_open, vfio
from guest_tests.payload.guest import KernelLog
from guest_tests.payload.lab import PAGE, Lab

IOVA = 1 << 32
_labs: list[Lab] = []


def start() -> dict[str, Any]:
    """Open the accelerator."""
    lab = Lab(KernelLog())
    for check in (checks_open.driver_bound, checks_open.own_group, checks_open.opens_through_vfio):
        check(lab)
    _labs.append(lab)
    return {"bdf": lab.bdf, "group": lab.group}


def map_page() -> dict[str, Any]:
    """Have VFIO map a page; what it says."""
    try:
        _labs[0].container.map(IOVA, _labs[0].target, vfio.READ | vfio.WRITE, nbytes=PAGE)
    except OSError as error:
        return {"mapped": False, "error": error.strerror}
    return {"mapped": True, "error": None}


def unmap_page() -> str:
    """Have VFIO take it away; `done`, or why not."""
    try:
        _labs[0].container.unmap(IOVA, PAGE)
    except OSError as error:
        return str(error)
    return "done"


def write() -> dict[str, Any]:
    """The accelerator writes to it: what came of it, and what the kernel's log says of a fault."""
    lab = _labs[0]
    mark = lab.log.mark()
    completion = lab.engine.run(accel.Operation(accel.FILL, dst=IOVA, nbytes=PAGE, arg=0))
    said = lab.log.wait_for("page fault from EP", since=mark) if completion.status != accel.OK else None
    return {"status": accel.STATUS_NAMES[completion.status], "kernel": said}
