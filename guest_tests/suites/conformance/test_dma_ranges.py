"""Where mappings begin and end, and accesses that go over the edges. D37: IOVA - virt_start + phys_start."""

from __future__ import annotations

import zlib

import pytest

from guest_tests.payload.direct import READ, WRITE, Accel, DmaArena, Mismatch, TranslationFault, Viommu

SOURCE, TARGET, PAGE = 0x1_0000, 0x80_0000, 4096
MIB = 1 << 20
ADDRESSES = 1 << 64


def test_g22_neighbouring_mappings_of_scattered_pages_are_one_piece_for_the_device(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    sources, targets = dma.alloc_pieces(16 * PAGE, PAGE), dma.alloc_pieces(16 * PAGE, PAGE)
    content = b"".join(page.randomise() for page in sources)
    for number, (source, target) in enumerate(zip(sources, reversed(targets), strict=True)):
        viommu.map_buffer(mapped_accel.domain, SOURCE + number * PAGE, source, READ)
        viommu.map_buffer(mapped_accel.domain, TARGET + number * PAGE, target, WRITE)

    mapped_accel.copy(SOURCE, TARGET, len(content))

    assert b"".join(page.read() for page in reversed(targets)) == content


def test_d37_a_mapping_of_several_pages_is_contiguous_in_memory(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    buffer = dma.random(8 * PAGE)
    viommu.map_buffer(mapped_accel.domain, SOURCE, buffer, READ)

    checksum = mapped_accel.checksum(SOURCE + 5 * PAGE + 7, 2 * PAGE)

    assert checksum == zlib.crc32(buffer.read(2 * PAGE, 5 * PAGE + 7))


def test_d37_a_copy_of_odd_bytes_leaves_their_neighbours_alone(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    source, target = dma.random(PAGE), dma.alloc(PAGE).fill(0x5A)
    viommu.map_buffer(mapped_accel.domain, SOURCE, source, READ)
    viommu.map_buffer(mapped_accel.domain, TARGET, target, WRITE)

    mapped_accel.copy(SOURCE + 13, TARGET + 101, 1001)

    assert target.read() == b"\x5a" * 101 + source.read(1001, 13) + b"\x5a" * (PAGE - 1102)


def test_g22_fill_repeats_its_pattern_over_the_border_of_two_mappings(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    first, second = dma.alloc(PAGE), dma.alloc(PAGE)
    viommu.map_buffer(mapped_accel.domain, TARGET, first, WRITE)
    viommu.map_buffer(mapped_accel.domain, TARGET + PAGE, second, WRITE)
    pattern = 0x8877_6655_4433_2211

    mapped_accel.fill(TARGET + PAGE - 5, 19, pattern)

    filled = (pattern.to_bytes(8, "little") * 3)[:19]
    assert first.read(5, PAGE - 5) + second.read(15) == filled + b"\0"


def test_g22_compare_finds_the_first_difference_behind_a_border(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    source, same, other = dma.random(2 * PAGE), dma.alloc(PAGE), dma.alloc(PAGE)
    same.write(source.read(PAGE))
    other.write(source.read(PAGE, PAGE))
    other.memory[17] ^= 1
    viommu.map_buffer(mapped_accel.domain, SOURCE, source, READ)
    viommu.map_buffer(mapped_accel.domain, TARGET, same, READ)
    viommu.map_buffer(mapped_accel.domain, TARGET + PAGE, other, READ)

    with pytest.raises(Mismatch) as caught:
        mapped_accel.compare(SOURCE, TARGET, 2 * PAGE)

    assert caught.value.offset == PAGE + 17


def test_g22_checksum_is_the_crc_of_scattered_pages(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    pages = dma.alloc_pieces(4 * PAGE, PAGE)
    content = b"".join(page.randomise() for page in pages)
    for number, page in enumerate(pages):
        viommu.map_buffer(mapped_accel.domain, SOURCE + number * PAGE, page, READ)

    assert mapped_accel.checksum(SOURCE, 4 * PAGE) == zlib.crc32(content)


def test_d37_one_page_at_two_addresses_is_the_same_memory(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    page = dma.alloc(PAGE)
    viommu.map_buffer(mapped_accel.domain, SOURCE, page, READ)
    viommu.map_buffer(mapped_accel.domain, TARGET, page, WRITE)

    mapped_accel.fill(TARGET, PAGE, 0x0102_0304_0506_0708)

    assert mapped_accel.checksum(SOURCE, PAGE) == zlib.crc32(bytes(range(8, 0, -1)) * (PAGE // 8))


def test_d37_the_last_byte_of_a_mapping_is_there_and_the_next_one_is_not(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    page = dma.random(PAGE)
    viommu.map_buffer(mapped_accel.domain, SOURCE, page, READ)

    assert mapped_accel.checksum(SOURCE + PAGE - 1, 1) == zlib.crc32(page.read(1, PAGE - 1))
    with mapped_accel.refused(SOURCE + PAGE, READ):
        mapped_accel.checksum(SOURCE + PAGE, 1)


def test_d37_the_first_byte_of_a_mapping_is_there_and_the_one_before_is_not(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    page = dma.random(PAGE)
    viommu.map_buffer(mapped_accel.domain, SOURCE, page, READ)

    assert mapped_accel.checksum(SOURCE, 1) == zlib.crc32(page.read(1))
    with mapped_accel.refused(SOURCE - 1, READ):
        mapped_accel.checksum(SOURCE - 1, 1)


def test_g22_a_write_one_byte_past_the_end_is_refused_whole(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    page = dma.alloc(PAGE).fill(0x33)
    viommu.map_buffer(mapped_accel.domain, TARGET, page, WRITE)

    with mapped_accel.refused(TARGET + PAGE, WRITE):
        mapped_accel.fill(TARGET + PAGE - 8, 9, 0)

    assert page.read() == b"\x33" * PAGE


def test_g22_a_hole_between_two_mappings_is_refused_at_its_first_byte(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    first, last = dma.alloc(PAGE), dma.alloc(PAGE)
    viommu.map_buffer(mapped_accel.domain, SOURCE, first, READ)
    viommu.map_buffer(mapped_accel.domain, SOURCE + 2 * PAGE, last, READ)

    with mapped_accel.refused(SOURCE + PAGE, READ):
        mapped_accel.checksum(SOURCE, 3 * PAGE)


def test_d37_the_first_page_of_the_address_space_can_be_mapped_and_reached(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    page = dma.random(PAGE)
    viommu.map_buffer(mapped_accel.domain, 0, page, READ)

    assert mapped_accel.checksum(0, PAGE) == zlib.crc32(page.read())


def test_d37_the_last_page_of_the_aperture_can_be_reached_up_to_its_last_byte(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    page, stop = dma.random(PAGE), viommu.config.input_range.stop
    viommu.map_buffer(mapped_accel.domain, stop - PAGE, page, READ)

    assert stop > 1 << 32
    assert mapped_accel.checksum(stop - PAGE, PAGE) == zlib.crc32(page.read())
    with mapped_accel.refused(stop, READ):
        mapped_accel.checksum(stop - 1, 2)


def test_d37_addresses_that_differ_above_32_bits_are_different(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    low, high = dma.random(PAGE), dma.random(PAGE)
    viommu.map_buffer(mapped_accel.domain, SOURCE, low, READ)
    viommu.map_buffer(mapped_accel.domain, (1 << 36) + SOURCE, high, READ)

    assert mapped_accel.checksum(SOURCE, PAGE) == zlib.crc32(low.read())
    assert mapped_accel.checksum((1 << 36) + SOURCE, PAGE) == zlib.crc32(high.read())
    with mapped_accel.refused((1 << 35) + SOURCE, READ):
        mapped_accel.checksum((1 << 35) + SOURCE, PAGE)


def test_d37_an_access_up_to_the_last_byte_of_64_bits_is_refused_where_it_starts(mapped_accel: Accel) -> None:
    with mapped_accel.refused(ADDRESSES - PAGE, READ):
        mapped_accel.checksum(ADDRESSES - PAGE, PAGE)


def test_d37_three_megabytes_arrive_as_they_left(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    sources, targets = dma.alloc_pieces(3 * MIB, MIB), dma.alloc_pieces(3 * MIB, MIB)
    content = b"".join(piece.randomise() for piece in sources)
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        viommu.map_buffer(mapped_accel.domain, SOURCE + number * MIB, source, READ)
        viommu.map_buffer(mapped_accel.domain, 8 * TARGET + number * MIB, target, WRITE)

    mapped_accel.copy(SOURCE, 8 * TARGET, 3 * MIB)

    assert b"".join(piece.read() for piece in targets) == content


def test_g22_a_long_copy_into_a_hole_has_written_what_it_says_and_nothing_more(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    source, target = dma.random(2 * MIB), dma.alloc(2 * MIB)
    viommu.map_buffer(mapped_accel.domain, 8 * TARGET, source, READ)
    viommu.map(domain=mapped_accel.domain, iova=TARGET, gpa=target.gpa, nbytes=MIB, access=WRITE)

    with pytest.raises(TranslationFault) as caught:
        mapped_accel.copy(8 * TARGET, TARGET, 2 * MIB)

    done = caught.value.nbytes_done
    assert caught.value.fault_iova == TARGET + MIB
    assert done <= MIB
    assert target.read() == source.read(done) + bytes(2 * MIB - done)
