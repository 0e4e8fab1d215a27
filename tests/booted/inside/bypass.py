"""Runs in the guest, called by test_system_reset.py: the bypass bytes of all units, by rising address."""

from __future__ import annotations

from guest_tests.payload.direct import DmaPool, Viommu, find_units


def flip() -> list[bool]:
    """Set every bypass byte to what it is not; what they are now. The units are taken from the kernel's driver."""
    pool, now = DmaPool(), []
    for bdf in find_units():
        with Viommu.open(bdf, pool) as viommu:
            viommu.bypass = not viommu.bypass
            now.append(viommu.bypass)
    return now
