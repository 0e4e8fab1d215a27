"""What the tests of requests and rings share: the numbers of machine.yaml, and what the host knows of a unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from guest_tests.payload.direct import READ, WRITE, Attach, Map, Status, Viommu
from guest_tests.payload.direct.wire import Request
from guest_tests.payload.host import Host

EP = 0x100  # of the first accelerator, as machine.yaml has it

PAGE = 4096
INPUT_STOP = 1 << 39
MSI_START, MSI_STOP = 0xFEE00000, 0xFEF00000  # the machine's MSI doorbell, reserved for every endpoint
RAM_STOP = 256 << 20
NO_RAM = 0xD0000000  # in the hole below 4 GiB, where this machine has neither RAM nor a BAR
GPA = 0x40000  # what tests map that never access it

DOMAIN, OTHER_DOMAIN = 1, 2
EVENT_S = 10.0  # for what the host does at once, when the machine is not busy


def of(table: dict[str, Any]) -> Any:
    """Arguments of `pytest.mark.parametrize`: the values of `table` (tuples for several names), its keys as ids."""
    return [pytest.param(*(row if isinstance(row, tuple) else (row,)), id=name) for name, row in table.items()]


def status(viommu: Viommu, request: Request | bytes) -> Status | int | None:
    """How `request` is answered."""
    return viommu.send(request).status


def statuses(viommu: Viommu, requests: Mapping[str, Request]) -> dict[str, Status | int | None]:
    """How each is answered, sent in one batch; by the names of `requests`."""
    answers = viommu.submit(list(requests.values()))
    return {name: answer.status for name, answer in zip(requests, answers, strict=True)}


def map_pages(
    first: int, npages: int = 1, *, domain: int = DOMAIN, phys_start: int = GPA, flags: int = READ | WRITE
) -> Map:
    """MAP of pages [first, first + npages) of the input range."""
    start, stop = first * PAGE, (first + npages) * PAGE
    return Map(domain=domain, virt_start=start, virt_end=stop - 1, phys_start=phys_start, flags=flags)


def unit_state(host: Host, name: str = "iommu0") -> dict[str, Any]:
    """What the host's query-iommu says about a unit."""
    return next(unit for unit in host.control("query-iommu") if unit["unit"] == name)


def domains(host: Host, name: str = "iommu0") -> dict[int, tuple[list[int], int]]:
    """The host's view: id of each domain -> its endpoints, and how many mappings it has."""
    return {one["id"]: (one["endpoints"], one["mappings"]) for one in unit_state(host, name)["domains"]}


def serves(viommu: Viommu) -> bool:
    """Whether a good request is answered OK. Attaches EP to a domain of its own."""
    return viommu.send(Attach(domain=1000, endpoint=EP)).ok


def is_broken(viommu: Viommu, host: Host, machine: dict[str, Any]) -> bool:
    """Whether the unit serves nothing until it is reset; by vhost-user it cannot show a guest that: the host knows."""
    if machine["attach"] == "vfio-user":
        return viommu.is_broken
    functions = host.control("query-status")["functions"]
    unit = next(function for function in functions if function["function"] == "iommu0")
    return bool(unit["connection"]["broken"])
