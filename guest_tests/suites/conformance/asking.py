"""What the modules share: the numbers of the machines, requests in them, and what the host knows of a unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from guest_tests.payload.direct import READ, WRITE, Map, Status, Unmap, Viommu
from guest_tests.payload.direct.wire import Request
from guest_tests.payload.host import Host

MAX_U64 = 2**64 - 1

# The first unit, as a PC has it.
EP, OTHER_EP = 0x100, 0x200
PAGE = 4096
INPUT_STOP = 1 << 39
MSI_START, MSI_STOP = 0xFEE00000, 0xFEF00000  # the machine's MSI doorbell, reserved for every endpoint
NO_RAM = 0xD0000000  # in the hole below 4 GiB, where this machine has neither RAM nor a BAR
GPA = 0x40000  # what tests map that never access it
DOMAIN, OTHER_DOMAIN = 1, 2

# The narrow unit. Its accelerators: the first has a reserved region of its own.
NARROW = 1
HOLED_EP, PLAIN_EP = 0x300, 0x400
HOLED, PLAIN = 2, 3  # numbers of the accelerators
GRANULE = 0x10000
INPUT = range(0x100000, 0x1000000)
DOMAINS = range(3, 7)
HOLE = range(0x200000, 0x210000)
MSI = range(0xF00000, 0xF10000)
PROBE_SIZE = 80
MAX_MAPPINGS_PER_DOMAIN = 4
MAX_PENDING_FAULTS = 8
MAX_REQUEST_NBYTES = 160

# The unit of single bytes.
BYTES = 2
BYTES_EP = 0x500
OF_BYTES = 4  # number of the accelerator
BYTES_MAX_MAPPINGS = 64

UNKNOWN_ENDPOINTS = {
    "zero": 0,
    "function-1": 0x101,
    "of-another-unit": HOLED_EP,
    "the-unit": 0x80,
    "max": 2**32 - 1,
}


def of(table: dict[str, Any]) -> Any:
    """Arguments of `pytest.mark.parametrize`: the values of `table` (tuples for several names), its keys as ids."""
    return [pytest.param(*(row if isinstance(row, tuple) else (row,)), id=name) for name, row in table.items()]


def one_byte_set(nbytes: int) -> list[bytes]:
    """Reserved fields of `nbytes`: each has another byte that is not zero."""
    return [bytes(0xA5 * (at == position) for at in range(nbytes)) for position in range(nbytes)]


def status(viommu: Viommu, request: Request | bytes) -> Status | int | None:
    """How `request` is answered."""
    return viommu.send(request).status


def statuses(viommu: Viommu, requests: Mapping[str, Request]) -> dict[str, Status | int | None]:
    """How each is answered, sent in one batch; by the names of `requests`."""
    answers = viommu.submit(list(requests.values()))
    return {name: answer.status for name, answer in zip(requests, answers, strict=True)}


def map_span(start: int, stop: int, *, domain: int, phys_start: int = 0, flags: int = READ | WRITE) -> Map:
    """MAP of [start, stop)."""
    return Map(domain=domain, virt_start=start, virt_end=stop - 1, phys_start=phys_start, flags=flags)


def unmap_span(start: int, stop: int, *, domain: int) -> Unmap:
    """UNMAP of [start, stop)."""
    return Unmap(domain=domain, virt_start=start, virt_end=stop - 1)


def map_pages(
    first: int, npages: int = 1, *, domain: int = DOMAIN, phys_start: int = GPA, flags: int = READ | WRITE
) -> Map:
    """MAP of pages [first, first + npages) of the first unit's input range."""
    return map_span(first * PAGE, (first + npages) * PAGE, domain=domain, phys_start=phys_start, flags=flags)


def unmap_pages(first: int, npages: int = 1, *, domain: int = DOMAIN) -> Unmap:
    """UNMAP of pages [first, first + npages)."""
    return unmap_span(first * PAGE, (first + npages) * PAGE, domain=domain)


def is_mapped(viommu: Viommu, page: int, domain: int = DOMAIN) -> bool:
    """Whether any byte of `page` is mapped: a MAP there would overlap (D31). Leaves no trace."""
    answer = viommu.send(map_pages(page, domain=domain))
    if answer.ok:
        viommu.ask(unmap_pages(page, domain=domain))
    return not answer.ok


def exists(viommu: Viommu, domain: int) -> bool:
    """Whether there is such a domain: UNMAP of a range where nothing is mapped asks nothing else (D40, D41)."""
    return status(viommu, Unmap(domain=domain, virt_start=INPUT_STOP, virt_end=INPUT_STOP)) != Status.NOENT


def unit_state(host: Host, name: str = "iommu0") -> dict[str, Any]:
    """What the host's query-iommu says about a unit."""
    return next(unit for unit in host.control("query-iommu") if unit["unit"] == name)


def domains(host: Host, name: str = "iommu0") -> dict[int, tuple[list[int], int]]:
    """The host's view: id of each domain -> its endpoints, and how many mappings it has."""
    return {one["id"]: (one["endpoints"], one["mappings"]) for one in unit_state(host, name)["domains"]}


def is_strict(machine: dict[str, Any]) -> bool:
    """Whether the units answer by the letter."""
    return str(machine["units"][0]["mode"]) == "strict"
