"""The user-space driver's DMA memory: placement in huge pages, and where pages come from, with a fake kernel."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from guest_tests.payload.direct.errors import OutOfDmaMemory
from guest_tests.payload.direct.memory import HUGE_NBYTES, DmaPool, HugePages, physical_address

PRESENT = 1 << 63


class Pages:
    """Pages that are not neighbours."""

    def __init__(self, first: int = 0x4000_0000, step: int = 2 * HUGE_NBYTES) -> None:
        self.next, self.step = first, step
        self.is_closed = False

    def take(self) -> tuple[int, memoryview]:
        gpa, self.next = self.next, self.next + self.step
        return gpa, memoryview(bytearray(HUGE_NBYTES))

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def pool() -> DmaPool:
    return DmaPool(Pages(), max_pages=2)


def test_a_buffer_is_zeroed_aligned_memory_of_the_size_asked_for(pool: DmaPool) -> None:
    with pool.alloc(100, 1) as first:
        first.fill(0xFF)

    buffer = pool.alloc(5000, 8192)

    assert buffer.gpa % 8192 == 0
    assert (buffer.nbytes, len(buffer.memory)) == (5000, 5000)
    assert buffer.read() == bytes(5000)


def test_buffers_do_not_overlap_and_lie_in_one_page_each(pool: DmaPool) -> None:
    buffers = [pool.alloc(nbytes, align) for nbytes, align in [(1, 1), (4096, 4096), (700, 16), (1 << 20, 1 << 20)]]

    spans = sorted((buffer.gpa, buffer.gpa + buffer.nbytes) for buffer in buffers)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(spans))
    assert len({gpa // HUGE_NBYTES for span in spans for gpa in (span[0], span[1] - 1)}) == 1
    assert pool.npages == 1


def test_memory_seen_through_two_buffers_is_each_ones_own(pool: DmaPool) -> None:
    one, other = pool.alloc(64, 1), pool.alloc(64, 1)

    one.write(b"one", 61)
    content = other.randomise()

    assert one.read() == bytes(61) + b"one"
    assert one.read(2, 61) == b"on"
    assert other.read() == content


def test_what_is_freed_is_whole_again(pool: DmaPool) -> None:
    buffers = [pool.alloc(1 << 18) for _ in range(8)]
    for buffer in buffers[::2] + buffers[1::2]:
        buffer.close()

    whole = pool.alloc(HUGE_NBYTES)

    assert (whole.nbytes, pool.npages) == (HUGE_NBYTES, 1)


def test_memory_just_freed_is_not_given_out_next(pool: DmaPool) -> None:
    first = pool.alloc()
    first.close()

    assert pool.alloc().gpa != first.gpa


def test_closing_twice_frees_once(pool: DmaPool) -> None:
    buffer = pool.alloc()
    buffer.close()
    buffer.close()

    assert pool.nbytes_free == HUGE_NBYTES


def test_a_freed_buffer_cannot_be_used(pool: DmaPool) -> None:
    buffer = pool.alloc()
    buffer.close()

    with pytest.raises(ValueError, match="released"):
        buffer.fill(0)


def test_a_second_page_is_taken_when_the_first_is_full_and_then_no_more(pool: DmaPool) -> None:
    one, two = pool.alloc(HUGE_NBYTES), pool.alloc(HUGE_NBYTES)

    assert two.gpa - one.gpa == 2 * HUGE_NBYTES
    with pytest.raises(OutOfDmaMemory, match=r"all 2 huge pages are in use \(4194304 bytes of them\): close buffers"):
        pool.alloc(1)


def test_more_than_a_page_comes_in_pieces(pool: DmaPool) -> None:
    pieces = pool.alloc_pieces(HUGE_NBYTES + 4096)

    assert [piece.nbytes for piece in pieces] == [HUGE_NBYTES, 4096]


@pytest.mark.parametrize("nbytes", [0, -1, HUGE_NBYTES + 1])
def test_sizes_that_cannot_be_contiguous_are_refused_with_the_way_out(pool: DmaPool, nbytes: int) -> None:
    with pytest.raises(ValueError, match=f"^{nbytes} bytes: .* see alloc_pieces$"):
        pool.alloc(nbytes)


@pytest.mark.parametrize("align", [0, 3, 4 << 20])
def test_alignments_that_mean_nothing_are_refused(pool: DmaPool, align: int) -> None:
    with pytest.raises(ValueError, match=f"alignment {align} is not a power of two"):
        pool.alloc(1, align)


def test_writes_and_reads_past_the_end_are_refused(pool: DmaPool) -> None:
    buffer = pool.alloc(16, 1)

    with pytest.raises(ValueError, match="2 bytes at offset 15 leave a buffer of 16"):
        buffer.write(b"ab", 15)
    with pytest.raises(ValueError, match="17 bytes at offset 0 leave"):
        buffer.read(17)


def test_an_arena_frees_what_it_gave_and_nothing_else(pool: DmaPool) -> None:
    kept = pool.alloc()
    with pool.arena() as arena:
        arena.alloc()
        arena.random(64)
        arena.alloc_pieces(8192, 4096)
        arena.alloc().close()

    assert not kept.is_free
    assert pool.nbytes_free == HUGE_NBYTES - kept.nbytes


def test_a_page_that_is_not_aligned_like_a_huge_one_is_refused() -> None:
    with pytest.raises(OutOfDmaMemory, match="0x40001000 is not aligned to 2 MiB"):
        DmaPool(Pages(first=0x4000_1000)).alloc()


def test_closing_the_pool_gives_the_pages_back() -> None:
    pages = Pages()
    pool = DmaPool(pages)
    pool.alloc()

    pool.close()

    assert pages.is_closed
    assert pool.npages == 0


def _pagemap(directory: Path, *entries: int) -> Path:
    path = directory / "pagemap"
    path.write_bytes(b"".join(entry.to_bytes(8, "little") for entry in entries))
    return path


def test_pagemap_entries_are_frames_of_4096_bytes(tmp_path: Path) -> None:
    # bits 55-62 are flags, 61 says "shared": none of the frame number
    path = _pagemap(tmp_path, 0, PRESENT | 1 << 61 | 1 << 55 | 0x12345)

    assert physical_address(4096 + 0x678, path) == 0x1234_5678


@pytest.mark.parametrize(
    ("entry", "words"), [(0, "has no memory behind it"), (PRESENT, "hides page frame numbers: this needs root")]
)
def test_pagemap_entries_that_say_nothing_are_errors(tmp_path: Path, entry: int, words: str) -> None:
    with pytest.raises(OutOfDmaMemory, match=words):
        physical_address(0, _pagemap(tmp_path, entry))


def test_a_kernel_without_huge_pages_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutOfDmaMemory, match="the kernel has no huge pages of 2 MiB"):
        HugePages(tmp_path / "none").take()


def test_a_kernel_that_reserves_none_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "free_hugepages").write_text("0")
    (tmp_path / "nr_hugepages").write_text("3")
    monkeypatch.setattr(Path, "write_text", lambda self, text: len(text))  # a kernel takes the number and ignores it

    with pytest.raises(OutOfDmaMemory, match="no 2 MiB free in one piece for huge page 4"):
        HugePages(tmp_path).take()
