"""Very many mappings of a page each, live at once. VDEV_TIER=soak has 100,000 of them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import pytest

from guest_tests.payload import accel, guest, vfio
from guest_tests.payload.guest import KernelLog
from guest_tests.payload.lab import PAGE, Lab
from guest_tests.payload.stock import Machine, Unit
from guest_tests.payload.stock_fixtures import opened_lab

pytestmark = pytest.mark.machines("lazy-*")  # what VFIO does depends on no default domain

SOAK = os.environ.get("VDEV_TIER") == "soak"  # of the host, which keeps the time
FIRST_IOVA = 1 << 32  # above every reserved region
COUNTS = {"normal": 2_000, "soak": 100_000}
BUFFER_NPAGES = 4096
STRIDE = 2 * PAGE  # a page between two mappings: nothing can be merged
STEP = 7919  # prime to both counts: neighbours in time are far apart in address
STRAY = 16
NUSED = 64  # mappings that are used for DMA
LIMIT = guest.SYS / "module/vfio_iommu_type1/parameters/dma_entry_limit"


@pytest.fixture
def roomy(kernel_log: KernelLog, stock: Machine) -> Iterator[Lab]:
    """A lab whose container takes as many mappings as the test makes; Linux's own limit is 65535."""
    count = COUNTS[stock.facts["tier"]]
    before = guest.read_text(LIMIT)
    LIMIT.write_text(str(max(count + 1, int(before))))  # the ring is mapped, too
    try:
        with opened_lab(kernel_log) as lab:
            yield lab
    finally:
        LIMIT.write_text(before)


class Scattered:
    """`count` mappings in an order that is neither rising nor falling, each of one page of `buffer`."""

    def __init__(self, lab: Lab, count: int) -> None:
        self.count = count
        self._container = lab.container
        self.buffer = vfio.Buffer(BUFFER_NPAGES * PAGE)
        for page in range(BUFFER_NPAGES):
            self.buffer.memory[page * PAGE : page * PAGE + 8] = page.to_bytes(8, "little")

    def place(self, number: int) -> tuple[int, int]:
        """IOVA and offset in the buffer of mapping `number`."""
        return FIRST_IOVA + number * STEP % self.count * STRIDE, number % BUFFER_NPAGES * PAGE

    def map(self) -> None:
        """Map all."""
        for number in range(self.count):
            iova, offset = self.place(number)
            self._container.map(iova, self.buffer, vfio.READ, offset=offset, nbytes=PAGE)

    def unmap(self) -> None:
        """Unmap all, in the same order, a page at a time."""
        for number in range(self.count):
            self._container.unmap(self.place(number)[0], PAGE)


@pytest.mark.soak(count=COUNTS["soak"], seed="none")
@pytest.mark.timeout(1200 if SOAK else 90)
def test_so_many_single_pages_are_mapped_used_and_unmapped_and_counted_right(
    roomy: Lab, stock: Machine, unit: Unit
) -> None:
    scattered = Scattered(roomy, COUNTS[stock.facts["tier"]])
    before = unit.domain_of(roomy.bdf)
    requests = unit.requests()
    assert before is not None

    scattered.map()
    peak = unit.domain_of(roomy.bdf)
    for number in range(0, scattered.count, scattered.count // NUSED):
        iova, offset = scattered.place(number)
        summed = roomy.run_ok(accel.Operation(accel.CHECKSUM, src=iova, nbytes=PAGE))
        assert summed.result == zlib.crc32(scattered.buffer.memory[offset : offset + PAGE])
    scattered.unmap()
    after = unit.domain_of(roomy.bdf)
    asked = unit.requests()

    assert peak is not None
    assert (peak.id, peak.mappings) == (before.id, before.mappings + scattered.count)
    assert after == before
    for kind in ("MAP", "UNMAP"):  # the kernel's own thread may draw from the rng meanwhile
        assert scattered.count <= asked[kind] - requests[kind] <= scattered.count + STRAY
    roomy.run_refused(
        accel.Operation(accel.CHECKSUM, src=scattered.place(0)[0], nbytes=PAGE), scattered.place(0)[0], accel.READ
    )


def test_linux_keeps_to_its_own_limit_of_mappings(kernel_log: KernelLog, unit: Unit) -> None:
    before = guest.read_text(LIMIT)
    LIMIT.write_text("17")
    try:
        with opened_lab(kernel_log) as lab:
            empty = unit.domain_of(lab.bdf)
            with pytest.raises(OSError, match="No space left on device"):
                Scattered(lab, 17).map()
            full = unit.domain_of(lab.bdf)
    finally:
        LIMIT.write_text(before)

    assert empty is not None
    assert full is not None
    assert full.mappings == empty.mappings + 16  # and the ring


def test_a_big_buffer_is_mapped_in_pieces_the_kernel_chooses_and_is_whole(roomy: Lab, unit: Unit) -> None:
    buffer = vfio.Buffer(8 << 20)
    content = bytes(range(256)) * (buffer.nbytes // 256)
    buffer.memory[:] = content
    before = unit.trace("MAP", "accel0", 1)[-1]["seq"]

    with roomy.container.mapped(FIRST_IOVA, buffer, vfio.READ):
        # By the endpoint: the unit's own count has the MAPs of the kernel's thread, which may draw from the rng.
        mapped = unit.trace("MAP", "accel0", buffer.nbytes // PAGE + 1)
        pieces = [record["fields"] for record in mapped if record["seq"] > before]
        summed = roomy.run_ok(accel.Operation(accel.CHECKSUM, src=FIRST_IOVA, nbytes=buffer.nbytes))
        domain = unit.domain_of(roomy.bdf)
    left = unit.domain_of(roomy.bdf)

    assert summed.result == zlib.crc32(content)
    assert domain is not None
    assert left is not None
    assert domain.mappings == left.mappings + len(pieces)
    ends = [FIRST_IOVA, *(int(piece["virt_end"], 16) + 1 for piece in pieces)]
    assert [int(piece["virt_start"], 16) for piece in pieces] == ends[:-1]
    assert ends[-1] == FIRST_IOVA + buffer.nbytes
