"""The check of a stock device behind the IOMMU: the kernel's own virtio_rng driver, through the DMA API."""

from __future__ import annotations

import os
from pathlib import Path

from . import guest
from .lab import Finding, Lab, endpoint_id, expect

VENDOR_ID = 0x1AF4
DEVICE_ID = 0x1044  # virtio 1.x, device type 4
RNG_CURRENT = "class/misc/hw_random/rng_current"
DEVICE = Path("/dev/hwrng")
NBYTES = 4096
BUFFER_NBYTES = 64  # what the driver asks for at a time
MIN_VALUES = 200  # of 256: 4096 random bytes have fewer once in more runs than there will ever be
TRANSLATED = ("DMA", "DMA-FQ")  # what the kernel calls domains whose mappings it makes for each buffer


def kernel_draws_random_bytes(lab: Lab) -> Finding:
    """/dev/hwrng is our device, its group is translated, and bytes come that look random."""
    found = guest.find_pci(VENDOR_ID, DEVICE_ID)
    expect(bool(found), f"no PCI function {VENDOR_ID:04x}:{DEVICE_ID:04x}")
    bdf = found[0]
    driver = guest.link_name(guest.SYS / "bus/pci/devices" / bdf / "driver")
    expect(driver == "virtio-pci", f"{bdf} is held by driver {driver}, not by virtio-pci")
    group = guest.SYS / "bus/pci/devices" / bdf / "iommu_group"
    expect(group.is_symlink(), f"{bdf} is in no IOMMU group: its DMA is not translated")
    kind = guest.read_text(group / "type")
    expect(kind in TRANSLATED, f"the group of {bdf} is of type {kind}, not one of {', '.join(TRANSLATED)}")
    current = guest.read_text(guest.SYS / RNG_CURRENT)
    expect(current.startswith("virtio_rng"), f"the kernel draws from '{current}', not from virtio_rng")
    expect(DEVICE.is_char_device(), f"{DEVICE} is not there although {current} is")
    first, second = draw(), draw()
    for drawn in (first, second):
        expect(len(set(drawn)) > MIN_VALUES, f"{len(drawn)} bytes have only {len(set(drawn))} values: not random")
    expect(first != second, "two reads gave the same bytes")
    number = guest.link_name(group)
    detail = f"{current} ({bdf}, group {number} of type {kind}) gave 2 x {NBYTES} bytes"
    facts = {"bdf": bdf, "group": number, "type": kind, "current": current, "drawn": (first + second).hex()}
    return Finding(detail, {**facts, "counted_endpoint": endpoint_id(bdf)})


def draw() -> bytes:
    """NBYTES from the device; a read may give less than one asked for."""
    drawn = b""
    descriptor = os.open(DEVICE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while len(drawn) < NBYTES:
            chunk = os.read(descriptor, NBYTES - len(drawn))
            expect(bool(chunk), f"{DEVICE} ended after {len(drawn)} bytes")
            drawn += chunk
    finally:
        os.close(descriptor)
    return drawn
