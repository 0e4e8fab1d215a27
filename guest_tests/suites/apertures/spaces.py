"""What endpoints of several units can be mapped to: the ranges VFIO must report, and what the units say meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from guest_tests.payload import checks_hwrng, guest, vfio
from guest_tests.payload.host import Host
from guest_tests.payload.stock import Domain, Machine, Unit

MSI_FIRST, MSI_LAST = 0xFEE00000, 0xFEEFFFFF
PAGE_SIZES = (1 << 64) - 4096  # every multiple of the guest's page
TOP = 1 << 64
HWRNG = guest.SYS / "class/misc/hw_random"

Ranges = tuple[tuple[int, int], ...]  # ends included, as VFIO and the configuration write them


@dataclass(frozen=True)
class Yard:
    """The machine's accelerators, held by vfio-pci, and its units, all by name."""

    stock: Machine
    host: Host
    groups: dict[str, int]  # IOMMU group of each accelerator

    def unit(self, endpoint: str) -> Unit:
        """The unit in front of `endpoint`."""
        return Unit(self.host, self.stock.unit_of(endpoint))

    def container(self, *endpoints: str) -> vfio.Container:
        """A container with the groups of `endpoints`, put in in this order. Raises OSError."""
        return vfio.Container(*(self.groups[name] for name in endpoints))

    def domain(self, endpoint: str) -> Domain:
        """The domain `endpoint` is attached to."""
        found = self.unit(endpoint).domain_of(self.stock.bdf(endpoint))
        assert found is not None
        return found

    def seen(self, *endpoints: str) -> list[tuple[int | None, int, dict[str, int]]]:
        """The domain of each endpoint, how many mappings that has, and what its unit refused so far, all at once.

        VFIO waits for its requests, so none of its own is under way.
        """
        units = {unit["unit"]: unit for unit in self.host.control("query-iommu")}
        behind = {name: units[self.stock.unit_of(name)] for name in endpoints}
        functions = {name: unit["functions"][name] for name, unit in behind.items()}
        return [
            (functions[name]["domain"], functions[name]["mappings"], unit["counters"]["refused"])
            for name, unit in behind.items()
        ]

    def usable(self, *endpoints: str) -> Ranges:
        """What lies in the input ranges of all their units and outside the MSI window."""
        ranges = [self.stock.input_range(name) for name in endpoints]
        first, last = max(start for start, _ in ranges), min(end for _, end in ranges)
        parts = ((first, min(last, MSI_FIRST - 1)), (max(first, MSI_LAST + 1), last))
        return tuple((start, end) for start, end in parts if start <= end)


MakeContainer = Callable[..., vfio.Container]  # fixture `container`: closed after the test


def draw_from(yard: Yard, name: str) -> bytes:
    """What /dev/hwrng gives while the rng called `name` is behind it."""
    unit = yard.unit(name)
    before = unit.function(name)["bytes"]
    for device in guest.read_text(HWRNG / "rng_available").split():
        if device != "none":
            (HWRNG / "rng_current").write_text(device)
            drawn = checks_hwrng.draw()
            if unit.function(name)["bytes"] - before >= checks_hwrng.NBYTES:
                return drawn
    raise AssertionError(f"no device of the kernel draws from {name}")
