"""Runs in the guest, called by test_runner_handle.py: mappings that stay from one call to the next."""

from __future__ import annotations

import time

from guest_tests.payload.direct import Accel, DmaBuffer, DmaPool, Viommu, find_accels, find_units

PAGE = 4096
FIRST_IOVA = 0x10_0000
kept: list[tuple[Viommu, Accel, list[DmaBuffer]]] = []


def make(count: int) -> list[int]:
    """Start the unit and the accelerator, map so many pages, and keep everything; their addresses."""
    pool = DmaPool()
    viommu = Viommu.open(find_units()[0], pool)
    accel = Accel.open(find_accels()[0], pool).start_in(viommu)
    pages = [pool.alloc(PAGE) for _ in range(count)]
    for number, page in enumerate(pages):
        viommu.map_buffer(accel.domain, FIRST_IOVA + number * PAGE, page)
    kept.append((viommu, accel, pages))
    return [page.gpa for page in pages]


def fill(byte: int) -> list[int]:
    """Have the accelerator fill all of them; the first byte of each."""
    _, accel, pages = kept[-1]
    accel.fill(FIRST_IOVA, len(pages) * PAGE, int.from_bytes(bytes([byte]) * 8, "little"))
    return [page.read(1)[0] for page in pages]


def hang() -> None:
    """Say nothing for a long time."""
    time.sleep(600)
