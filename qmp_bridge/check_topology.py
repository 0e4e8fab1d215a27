"""Whether the guest's PCI addresses are those of the configuration: endpoint ids are made of them.

vfio-user never tells a device its address, so this comparison is the only thing between a wrong bus number and an
IOMMU that takes one endpoint for another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from qemu.qmp import QMPClient

from qmp_bridge.errors import VmDied
from vdev.config import format_bdf

NUMBERING_SECONDS = 60.0  # firmware needs under a second, also emulated; a machine under load much more
SETTLED_SECONDS = 2.0  # wrong, but complete and unchanged for so long: it will not get better
POLL_SECONDS = 0.05
_UNNUMBERED = (0, 0xFF)  # bus numbers of a bridge before and while firmware goes through them


def function_addresses(buses: Any) -> dict[str, int]:
    """Device id -> PCI address, from the answer to `query-pci`. Bridges are walked; what has no id is left out."""
    return {name: address for bus in buses for name, address in _walk(bus["devices"])}


def _walk(devices: Any) -> Iterator[tuple[str, int]]:
    for device in devices:
        if device.get("qdev_id"):
            yield device["qdev_id"], device["bus"] << 8 | device["slot"] << 3 | device["function"]
        yield from _walk(device.get("pci_bridge", {}).get("devices", []))


def topology_problems(found: Mapping[str, int], expected: Mapping[str, int]) -> list[str]:
    """What differs, one line per function; empty when all is well."""
    problems = []
    for name, address in expected.items():
        if name not in found:
            problems.append(f"{name} should be {format_bdf(address)} and is not there")
        elif found[name] != address:
            problems.append(f"{name} should be {format_bdf(address)} and is {format_bdf(found[name])}")
    return problems


def is_numbered(found: Mapping[str, int], expected: Mapping[str, int]) -> bool:
    """Whether firmware has given every function of ours that sits behind a port a bus number."""
    behind_ports = [name for name, address in expected.items() if address >> 8]
    return all(name in found and found[name] >> 8 not in _UNNUMBERED for name in behind_ports)


async def check_topology(qmp: QMPClient, expected: Mapping[str, int], seconds: float = NUMBERING_SECONDS) -> None:
    """Return when the guest's addresses are `expected`; VmDied when they settle on others, or not at all."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    before: Mapping[str, int] = {}
    since = clock()
    while True:
        found = function_addresses(await qmp.execute("query-pci"))
        problems = topology_problems(found, expected)
        if not problems:
            return
        if found != before:
            before, since = found, clock()
        settled = is_numbered(found, expected) and clock() - since > SETTLED_SECONDS
        if settled or clock() > deadline:
            raise VmDied("the guest's PCI addresses are not the configuration's: " + "; ".join(problems))
        await asyncio.sleep(POLL_SECONDS)
