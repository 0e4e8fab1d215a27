"""Checks of DMA that must work: through mappings, across them, to device memory, after a remap."""

from __future__ import annotations

import time
import zlib

from . import accel, vfio
from .lab import (
    MARKER,
    MIB,
    PAGE,
    PAIR_IOVA,
    SCATTER_IOVA,
    SOURCE_IOVA,
    TARGET_IOVA,
    Finding,
    Lab,
    copy,
    expect,
)

HALF = 0x8000
PART = 0x10000
SCATTER_NCYCLES = 256
SCATTER_STRIDE = 0x20_0000
DEVMEM_OFFSET = 0x1000


def copies_a_mebibyte(lab: Lab) -> Finding:
    """One MiB of random bytes arrives whole."""
    content = lab.randomise_source()
    started = time.monotonic_ns()
    with lab.both_mapped():
        map_ms = (time.monotonic_ns() - started) / 1e6
        completion = lab.run_ok(copy())
        expect(lab.target.memory == content, "the copy differs from its source")
    expect(completion.result == MIB, f"the device says it copied {completion.result} bytes")
    rate = MIB / 1e6 / (completion.ms / 1e3)
    detail = f"2 MiB mapped in {map_ms:.2f} ms, 1 MiB copied in {completion.ms:.2f} ms ({rate:.0f} MB/s) and compared"
    return Finding(detail, {"nbytes": MIB, "map_ms": map_ms, "copy_ms": completion.ms})


def fills_compares_and_sums(lab: Lab) -> Finding:
    """FILL, COMPARE (equal and different) and CHECKSUM agree with what the guest computes."""
    content = lab.randomise_source()
    pattern = 0x0123_4567_89AB_CDEF
    both = vfio.READ | vfio.WRITE
    with lab.container.mapped(SOURCE_IOVA, lab.source, both), lab.container.mapped(TARGET_IOVA, lab.target, both):
        summed = lab.run_ok(accel.Operation(accel.CHECKSUM, src=SOURCE_IOVA, nbytes=MIB))
        expect(summed.result == zlib.crc32(content), f"CRC-32 {summed.result:#x}, expected {zlib.crc32(content):#x}")
        lab.run_ok(copy())
        lab.run_ok(accel.Operation(accel.COMPARE, src=SOURCE_IOVA, dst=TARGET_IOVA, nbytes=MIB))
        lab.target.memory[MIB // 2] ^= 1
        other = lab.engine.run(accel.Operation(accel.COMPARE, src=SOURCE_IOVA, dst=TARGET_IOVA, nbytes=MIB))
        expect(other.status == accel.MISMATCH, f"one changed bit: the device answered {other.describe()}")
        expect(other.result == MIB // 2, f"the difference is said to be at {other.result:#x}, it is at {MIB // 2:#x}")
        lab.run_ok(accel.Operation(accel.FILL, dst=TARGET_IOVA, nbytes=PART, arg=pattern))
    expect(lab.target.memory[:PART] == pattern.to_bytes(8, "little") * (PART // 8), "FILL wrote something else")
    expect(lab.target.memory[PART : 2 * PART] == content[PART : 2 * PART], "FILL went past its end")
    detail = (
        f"CRC-32 {summed.result:#010x} as zlib computes it, one changed bit found at {other.result:#x}, 64 KiB filled"
    )
    return Finding(detail, {"crc32": summed.result, "mismatch": other.result})


def copies_across_two_mappings(lab: Lab) -> Finding:
    """A copy whose target begins in one mapping and ends in the next."""
    content = lab.randomise_source()
    first, second = vfio.Buffer(PART), vfio.Buffer(PART)
    with (
        lab.container.mapped(SOURCE_IOVA, lab.source, vfio.READ),
        lab.container.mapped(PAIR_IOVA, first, vfio.WRITE),
        lab.container.mapped(PAIR_IOVA + PART, second, vfio.WRITE),
    ):
        lab.run_ok(copy(PART, dst=PAIR_IOVA + HALF))
    expect(first.memory[HALF:] == content[:HALF], "the part in the first mapping differs")
    expect(second.memory[:HALF] == content[HALF:PART], "the part in the second mapping differs")
    expect(first.memory[:HALF] == bytes(HALF) and second.memory[HALF:] == bytes(HALF), "bytes outside the copy changed")
    return Finding(f"64 KiB across the boundary at {PAIR_IOVA + PART:#x} arrived whole", {"boundary": PAIR_IOVA + PART})


def copies_through_device_memory(lab: Lab) -> Finding:
    """RAM to the device's own memory, looked at through its BAR, and back to RAM."""
    content = lab.randomise_source()
    there = copy(PART, dst=DEVMEM_OFFSET, flags=accel.FLAG_DST_DEVMEM)
    back = copy(PART, src=DEVMEM_OFFSET, flags=accel.FLAG_SRC_DEVMEM)
    with lab.both_mapped():
        lab.run_ok(there)
        for at in (0, PAGE, PART - 4):
            seen = lab.devmem.read32(DEVMEM_OFFSET + at)
            expected = int.from_bytes(content[at : at + 4], "little")
            expect(seen == expected, f"BAR2 reads {seen:#x} at {DEVMEM_OFFSET + at:#x}, expected {expected:#x}")
        lab.run_ok(back)
    expect(lab.target.memory[:PART] == content[:PART], "what came back differs")
    lab.expect_untouched(lab.target, PART)
    return Finding("64 KiB went to device memory, were seen through BAR2, and came back equal", {"nbytes": PART})


def maps_and_unmaps_scattered_pages(lab: Lab) -> Finding:
    """256 map and unmap cycles at scattered addresses, timed; each fourth mapping is used."""
    content = lab.randomise_source()
    maps: list[float] = []
    unmaps: list[float] = []
    for cycle in range(SCATTER_NCYCLES):
        iova = SCATTER_IOVA + (cycle * 97 % SCATTER_NCYCLES) * SCATTER_STRIDE
        at = cycle * PAGE
        before = time.monotonic_ns()
        lab.container.map(iova, lab.source, vfio.READ, offset=at, nbytes=PAGE)
        maps.append((time.monotonic_ns() - before) / 1e3)
        try:
            if cycle % 4 == 0:
                summed = lab.run_ok(accel.Operation(accel.CHECKSUM, src=iova, nbytes=PAGE))
                expect(summed.result == zlib.crc32(content[at : at + PAGE]), f"page {cycle} at {iova:#x} reads wrong")
        finally:
            before = time.monotonic_ns()
            lab.container.unmap(iova, PAGE)
            unmaps.append((time.monotonic_ns() - before) / 1e3)
    map_us, unmap_us = _median(maps), _median(unmaps)
    detail = f"{SCATTER_NCYCLES} cycles, median {map_us:.0f} us a map and {unmap_us:.0f} us an unmap"
    return Finding(detail, {"cycles": SCATTER_NCYCLES, "map_us": map_us, "unmap_us": unmap_us})


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def sees_a_remap_at_once(lab: Lab) -> Finding:
    """The same I/O address, mapped to other memory, reads the other memory with the very next access."""
    first, second = vfio.Buffer(PAGE), vfio.Buffer(PAGE)
    first.fill(0x11)
    second.fill(0x22)
    lab.target.fill(MARKER)
    with lab.container.mapped(TARGET_IOVA, lab.target, vfio.WRITE):
        for buffer in (first, second, first, second):
            with lab.container.mapped(SOURCE_IOVA, buffer, vfio.READ):
                lab.run_ok(copy(PAGE))
            expect(lab.target.memory[:PAGE] == buffer.memory, "the device read memory that is no longer mapped there")
    return Finding(f"four remaps of {SOURCE_IOVA:#x}, each seen by the next access", {"remaps": 4})
