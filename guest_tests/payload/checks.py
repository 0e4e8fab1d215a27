"""The table of checks, in the order they run. Titles are what the demo prints and the tests are named after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import checks_device, checks_dma, checks_hwrng, checks_open, checks_refused, checks_several
from .lab import Finding, Lab


@dataclass(frozen=True)
class Check:
    """One check: `run` returns what it saw or raises CheckFailed, OSError or AcceleratorTimeout."""

    name: str
    title: str
    run: Callable[[Lab], Finding]
    refusal: bool = False  # the IOMMU must refuse an access here, and guest kernel and vdev must both report it
    naccelerators: int = 1  # a machine with fewer has nothing to check here
    nrngs: int = 0  # likewise


CHECKS = (
    Check("driver-bound", "The stock virtio_iommu driver is bound", checks_open.driver_bound),
    Check("own-group", "The accelerator has an IOMMU group of its own", checks_open.own_group),
    Check("opens-through-vfio", "The accelerator opens through VFIO", checks_open.opens_through_vfio),
    Check("copy", "The accelerator copies 1 MiB through VFIO mappings", checks_dma.copies_a_mebibyte),
    Check("fill-compare-checksum", "Fill, compare and checksum are right", checks_dma.fills_compares_and_sums),
    Check("refused-after-unmap", "The same copy after UNMAP is refused", checks_refused.refused_after_unmap, True),
    Check(
        "read-only-mapping",
        "A write through a read-only mapping is refused",
        checks_refused.write_refused_by_read_only_mapping,
        True,
    ),
    Check(
        "write-only-mapping",
        "A read through a write-only mapping is refused",
        checks_refused.read_refused_by_write_only_mapping,
        True,
    ),
    Check(
        "outside-any-mapping",
        "An address outside any mapping is refused",
        checks_refused.refused_outside_any_mapping,
        True,
    ),
    Check("two-mappings", "A copy across two mappings arrives whole", checks_dma.copies_across_two_mappings),
    Check(
        "end-of-mapping",
        "A copy past the end of a mapping is refused at the boundary",
        checks_refused.refused_where_a_mapping_ends,
        True,
    ),
    Check("interrupt", "The completion interrupt arrives", checks_device.interrupt_arrives),
    Check("device-memory", "A copy to device memory and back is right", checks_dma.copies_through_device_memory),
    Check("reset", "A function reset restores power-on values", checks_device.reset_restores_power_on_values),
    Check("bus-master", "Without bus mastering nothing moves", checks_refused.refused_without_bus_mastering),
    Check("scattered-pages", "256 scattered pages are mapped and unmapped", checks_dma.maps_and_unmaps_scattered_pages),
    Check("remap", "A remap of an address is seen at once", checks_dma.sees_a_remap_at_once),
    Check(
        "several",
        "Every accelerator reaches its own memory at the same address",
        checks_several.each_reaches_its_own_memory,
        naccelerators=2,
    ),
    Check(
        "hwrng",
        "The kernel's own driver draws random bytes through the IOMMU",
        checks_hwrng.kernel_draws_random_bytes,
        nrngs=1,
    ),
    Check("gives-back", "The guest gives everything back", checks_open.gives_everything_back),
)


def chosen(wanted: Sequence[str], naccelerators: int, nrngs: int = 0) -> list[Check]:
    """The checks named, or all if none is, that make sense with so many accelerators and virtio-rng devices."""
    possible = [check for check in CHECKS if check.naccelerators <= naccelerators and check.nrngs <= nrngs]
    return [check for check in possible if not wanted or check.name in wanted]
