"""Guest-physical memory as a region table: bounds, order, splits, and a brute-force model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdev.errors import MemoryAccessError
from vdev.memory import GPA_SPACE, MAX_LOST, Region, RegionTable


def ram(gpa: int, nbytes: int, *, writable: bool = True) -> Region:
    return Region(gpa, nbytes, memoryview(bytearray(nbytes)), writable=writable)


def table(*regions: Region) -> RegionTable:
    out = RegionTable()
    for region in regions:
        out.add(region)
    return out


def test_a_write_across_two_adjacent_regions_reads_back() -> None:
    memory = table(ram(0x2000, 16), ram(0x2010, 16))

    memory.write(0x2008, b"0123456789abcdef")

    assert memory.read(0x2008, 16) == b"0123456789abcdef"


@pytest.mark.parametrize("gpa", [0x1FFF, 0x200F, 0x2010, 0])
def test_a_range_that_leaves_ram_is_refused_by_its_address(gpa: int) -> None:
    with pytest.raises(MemoryAccessError, match="no RAM") as caught:
        table(ram(0x2000, 16)).read(gpa, 2)

    assert (caught.value.gpa, caught.value.nbytes) == (gpa, 2)


def test_a_refused_write_changes_nothing() -> None:
    memory = table(ram(0, 16))

    with pytest.raises(MemoryAccessError):
        memory.write(8, b"x" * 16)

    assert memory.read(0, 16) == bytes(16)


def test_ram_without_a_descriptor_is_not_reachable() -> None:
    with pytest.raises(MemoryAccessError, match="file descriptor"):
        table(Region(0, 16, None)).read(0, 1)


def test_read_only_ram_is_read_and_not_written() -> None:
    memory = table(ram(0, 16, writable=False))

    assert memory.read(0, 4) == bytes(4)
    with pytest.raises(MemoryAccessError, match="not writable"):
        memory.write(0, b"x")


@pytest.mark.parametrize(("gpa", "nbytes"), [(8, 16), (0, 1), (15, 1), (0, 64)])
def test_an_overlapping_region_is_refused_and_the_table_kept(gpa: int, nbytes: int) -> None:
    memory = table(ram(0, 16))

    with pytest.raises(MemoryAccessError, match="overlaps"):
        memory.add(ram(gpa, nbytes))

    assert (len(memory), memory.generation) == (1, 1)


@pytest.mark.parametrize(("gpa", "nbytes"), [(0, 0), (GPA_SPACE - 8, 16)])
def test_an_empty_or_endless_region_is_refused(gpa: int, nbytes: int) -> None:
    with pytest.raises(MemoryAccessError):
        RegionTable().add(Region(gpa, nbytes, None))


def test_remove_takes_all_regions_inside_the_range() -> None:
    memory = table(ram(0, 16), ram(32, 16), ram(64, 16))

    gone = memory.remove(16, 40)

    assert [region.gpa for region in gone] == [32]
    assert [region.gpa for region in memory.regions()] == [0, 64]


def test_remove_that_would_split_a_region_is_refused_and_removes_nothing() -> None:
    memory = table(ram(0, 16), ram(16, 16))

    with pytest.raises(MemoryAccessError, match="split"):
        memory.remove(0, 24)

    assert len(memory) == 2


def test_the_generation_moves_only_when_the_table_does() -> None:
    memory = table(ram(0, 16))

    memory.remove(64, 16)
    before = memory.generation
    memory.clear()

    assert (before, memory.generation) == (1, 2)


@given(
    layout=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20)), min_size=1, max_size=8),
    gpa=st.integers(0, 200),
    nbytes=st.integers(1, 120),
)
def test_slices_are_exactly_the_bytes_a_flat_model_has(layout: list[tuple[int, int]], gpa: int, nbytes: int) -> None:
    memory, model, cursor = RegionTable(), {}, 0
    for gap, size in layout:
        start = cursor + gap
        region = ram(start, size)
        assert region.view is not None
        for at in range(size):
            region.view[at] = model[start + at] = (start + at) * 7 % 256
        memory.add(region)
        cursor = start + size

    wanted = [model.get(gpa + at) for at in range(nbytes)]

    if None in wanted:
        with pytest.raises(MemoryAccessError):
            memory.slices(gpa, nbytes, write=False)
    else:
        assert list(b"".join(memory.slices(gpa, nbytes, write=True))) == wanted


def test_memory_that_was_unmapped_is_told_from_memory_that_never_was() -> None:
    memory = RegionTable()
    memory.add(ram(0, 100))
    memory.remove(0, 100)
    memory.add(ram(0, 40))
    memory.add(ram(50, 10))

    lost = {at: _is_lost(memory, at) for at in (45, 60, 99, 100)}

    assert lost == {45: True, 60: True, 99: True, 100: False}


def test_what_is_remembered_as_lost_is_bounded_and_forgotten_with_the_connection() -> None:
    memory = RegionTable()
    for start in range(0, 200, 2):
        memory.add(ram(start, 1))
        memory.remove(start, 1)
    found = sum(_is_lost(memory, at) for at in range(0, 200, 2))

    memory.clear()

    assert found == MAX_LOST
    assert not any(_is_lost(memory, at) for at in range(0, 200, 2))


def _is_lost(memory: RegionTable, gpa: int) -> bool:
    with pytest.raises(MemoryAccessError) as caught:
        memory.slices(gpa, 1, write=False)
    return caught.value.lost
