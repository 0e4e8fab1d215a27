"""Runs in the guest for quota-stale-removal.yaml: PASIDs till there are no more, a page that goes, a device taken."""

from __future__ import annotations

from typing import Any

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import FILL, STATUS_NAMES, AcceleratorTimeout, Operation
from guest_tests.payload.direct import (
    Accel,
    DmaBuffer,
    DmaPool,
    EngineStopped,
    Feature,
    RequestRefused,
    Status,
    Viommu,
    find_accels,
    find_units,
)
from guest_tests.payload.direct.accel import RING_IOVA

PAGE = 4096
DOMAIN, IOVA = 1, 0x40_0000
ALL_ONES = 0xFFFF_FFFF
HEADER_NBYTES = 64
GONE_S = 2.0  # without a completion, a device that is there would have written one
_pool = DmaPool()
_units: list[Viommu] = []
_accels: list[Accel] = []
_pages: list[DmaBuffer] = []
_pasids: list[int] = []
_header: list[int] = []  # of the accelerator's configuration space


def start() -> dict[str, int]:
    """The unit with PASIDs that the host allocates, and the first accelerator; what the configuration says of them."""
    also = Feature.PASID | Feature.PASID_ALLOC
    unit = Viommu.open(find_units()[0], _pool, also=also)
    _units.append(unit)
    accel = Accel.open(find_accels()[0], _pool).start_in(unit, DOMAIN)
    _accels.append(accel)
    _header.extend(accel.function.read_config(at, 4) for at in range(0, HEADER_NBYTES, 4))
    config = unit.pasids.config()
    return {"quota": config.quota, "used": config.used}


def allocate(count: int) -> dict[str, Any]:
    """PASIDs until there are `count` more, or none is to be had: how many came, and what was said instead of more."""
    had, refused = len(_pasids), None
    while len(_pasids) - had < count and refused is None:
        try:
            _pasids.append(_units[0].pasids.alloc().pasid)
        except RequestRefused as error:
            refused = Status(error.status).name if error.status is not None else "nothing"
    return {"granted": len(_pasids) - had, "refused": refused, "used": _units[0].pasids.config().used}


def free_all() -> int:
    """Give all of them back; how many the unit still counts."""
    while _pasids:
        _units[0].pasids.free(_pasids.pop())
    return _units[0].pasids.config().used


def map_page(byte: int) -> dict[str, int]:
    """A page of memory with `byte` everywhere, mapped for the accelerator."""
    page = _pool.alloc(PAGE).fill(byte)
    _pages.append(page)
    _units[0].map_buffer(DOMAIN, IOVA, page)
    return {"iova": IOVA, "page": len(_pages) - 1}


def unmap_page() -> str:
    """The answer to the UNMAP of it. Raises RequestRefused."""
    return Status(_units[0].unmap(domain=DOMAIN, iova=IOVA, nbytes=PAGE).status or 0).name


def write(byte: int) -> dict[str, Any]:
    """The accelerator writes `byte` to the page's address; what came of it, and what the newest page has."""
    operation = Operation(FILL, dst=IOVA, nbytes=PAGE, arg=int.from_bytes(bytes([byte]) * 8, "little"))
    try:
        status = _accels[0].run(operation, timeout_s=GONE_S).status
    except (EngineStopped, AcceleratorTimeout) as error:
        return {"status": type(error).__name__, "page": _newest()}
    return {"status": STATUS_NAMES[status], "page": _newest()}


def _newest() -> list[int]:
    return sorted(set(_pages[-1].read()))


def registers() -> dict[str, Any]:
    """What a read of the accelerator gives: of its configuration space, and of a register."""
    vendor = _accels[0].function.read_config(0, 2)
    return {"vendor": vendor, "id": _accels[0].registers.read32(engine.ID), "gone": is_gone()}


def is_gone() -> bool:
    """Whether it reads as all-ones, as a device does that was pulled out."""
    return _accels[0].registers.read32(engine.ID) == ALL_ONES


def start_again() -> str:
    """The accelerator as a driver finds it after power-on: addresses written, started anew, its ring where it was."""
    accel = _accels[0]
    for at in reversed(range(0, HEADER_NBYTES, 4)):  # BARs before the command register
        accel.function.write_config(at, 4, _header[at // 4])
    accel.function.awake()
    accel.start(RING_IOVA)
    return STATUS_NAMES[accel.run(Operation(engine.NOP)).status]
