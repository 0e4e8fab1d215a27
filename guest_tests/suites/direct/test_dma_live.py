"""Mappings that go while DMA through them is under way: once the answer is there, no byte of it lands any more."""

from __future__ import annotations

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import ATTACH_BYPASS, READ, Accel, DmaArena, DmaBuffer, Viommu, wait
from guest_tests.payload.fixtures import OpenAccel
from guest_tests.payload.host import Host

TARGET, BIG, PAGE = 0x400_0000, 2 << 20, 4096
NOPERATIONS = 60
NALIASES = 16  # of one buffer, one behind the other: operations that take long


def map_aliases(viommu: Viommu, domain: int, buffer: DmaBuffer) -> None:
    """All of them, from TARGET on."""
    for number in range(NALIASES):
        viommu.map_buffer(domain, TARGET + number * BIG, buffer)


def fill_again_and_again(accel: Accel, iova: int, nbytes: int = BIG) -> int:
    """Keep the engine busy with `nbytes` at `iova`, each time with another pattern; the index of the last operation.

    Returns when the first operation is done, so that the others are under way.
    """
    work = [Operation(engine.FILL, dst=iova, nbytes=nbytes, arg=number) for number in range(1, NOPERATIONS + 1)]
    last = accel.engine.submit(*work)
    first = (last + 1 - NOPERATIONS) % engine.RING_NENTRIES
    assert wait.until(lambda: accel.engine.status_of(first) == engine.OK, 5.0)
    return last


def assert_nothing_lands(buffer: DmaBuffer, accel: Accel, last: int, host: Host) -> None:
    """The buffer stays as it is now, until the engine is through with everything or has stopped."""
    just_after = buffer.read()
    assert wait.until(lambda: accel.engine.status_of(last) != engine.PENDING or not accel.is_running, 10.0)
    host.control("query-status")
    assert buffer.read() == just_after


def test_after_the_answer_to_an_unmap_no_byte_lands(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena, host: Host
) -> None:
    target = dma.alloc(BIG)
    viommu.map_buffer(mapped_accel.domain, TARGET, target)
    last = fill_again_and_again(mapped_accel, TARGET)

    viommu.unmap(domain=mapped_accel.domain, iova=TARGET, nbytes=BIG)

    assert_nothing_lands(target, mapped_accel, last, host)


def test_operations_under_an_unmap_end_with_a_translation_fault(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    map_aliases(viommu, mapped_accel.domain, dma.alloc(BIG))
    last = fill_again_and_again(mapped_accel, TARGET, NALIASES * BIG)

    viommu.unmap(domain=mapped_accel.domain, iova=TARGET, nbytes=NALIASES * BIG)

    assert wait.until(lambda: mapped_accel.engine.status_of(last) != engine.PENDING, 10.0)
    assert mapped_accel.engine.status_of(last) == engine.TRANSLATION_FAULT
    assert mapped_accel.is_running


def test_after_the_answer_to_a_detach_no_byte_lands(blocking: Viommu, accel: Accel, dma: DmaArena, host: Host) -> None:
    # D28: MUST NOT reach any mapping of that domain
    target = dma.alloc(BIG)
    accel.start_in(blocking, domain=1)
    map_aliases(blocking, 1, target)
    last = fill_again_and_again(accel, TARGET, NALIASES * BIG)

    blocking.detach(domain=1, endpoint=accel.endpoint)

    assert_nothing_lands(target, accel, last, host)
    assert accel.error in (engine.ERROR_RING_FETCH, engine.ERROR_COMPLETION_WRITE)


def test_after_the_answer_to_an_attach_elsewhere_no_byte_lands(
    viommu: Viommu, open_accel: OpenAccel, dma: DmaArena, host: Host
) -> None:
    # D21
    accel, target = open_accel(0), dma.alloc(BIG)
    accel.start_in(viommu, domain=1)
    viommu.map_buffer(1, TARGET, target)
    last = fill_again_and_again(accel, TARGET)

    viommu.attach(domain=2, endpoint=accel.endpoint)

    assert_nothing_lands(target, accel, last, host)


def test_after_bypass_was_switched_off_no_byte_lands(blocking: Viommu, accel: Accel, dma: DmaArena, host: Host) -> None:
    # D14
    target = dma.alloc(BIG)
    blocking.bypass = True
    accel.start()
    last = fill_again_and_again(accel, target.gpa)

    blocking.bypass = False
    assert not blocking.bypass  # the write is done when a read comes back

    assert_nothing_lands(target, accel, last, host)


def test_a_mapping_changed_under_way_sends_the_rest_to_the_new_memory_alone(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena, host: Host
) -> None:
    old, new = dma.alloc(BIG), dma.alloc(BIG)
    viommu.map_buffer(mapped_accel.domain, TARGET, old)
    last = fill_again_and_again(mapped_accel, TARGET)

    viommu.unmap(domain=mapped_accel.domain, iova=TARGET, nbytes=BIG)
    viommu.map_buffer(mapped_accel.domain, TARGET, new)

    assert_nothing_lands(old, mapped_accel, last, host)
    mapped_accel.fill(TARGET, BIG, 0x99)
    assert new.read() == (0x99).to_bytes(8, "little") * (BIG // 8)


def test_a_mapping_made_read_only_under_way_is_not_written_any_more(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena, host: Host
) -> None:
    # D35
    target = dma.alloc(BIG)
    viommu.map_buffer(mapped_accel.domain, TARGET, target)
    last = fill_again_and_again(mapped_accel, TARGET)

    viommu.unmap(domain=mapped_accel.domain, iova=TARGET, nbytes=BIG)
    viommu.map_buffer(mapped_accel.domain, TARGET, target, READ)

    assert_nothing_lands(target, mapped_accel, last, host)


def test_mappings_that_come_and_go_elsewhere_disturb_no_operation(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    target = dma.alloc(BIG)
    viommu.map_buffer(mapped_accel.domain, TARGET, target)
    last = fill_again_and_again(mapped_accel, TARGET)

    for number in range(50):
        viommu.map(domain=mapped_accel.domain, iova=TARGET + BIG, gpa=number * PAGE, nbytes=PAGE)
        viommu.unmap(domain=mapped_accel.domain, iova=TARGET + BIG, nbytes=PAGE)

    assert wait.until(lambda: mapped_accel.engine.status_of(last) == engine.OK, 10.0)
    assert mapped_accel.registers.read32(engine.FAULTED) == 0
    assert target.read() == NOPERATIONS.to_bytes(8, "little") * (BIG // 8)


def test_another_endpoint_that_comes_and_goes_disturbs_no_operation(
    viommu: Viommu, open_accel: OpenAccel, dma: DmaArena
) -> None:
    accel, other = open_accel(0), open_accel(1)
    accel.start_in(viommu, domain=1)
    viommu.map_buffer(1, TARGET, dma.alloc(BIG))
    last = fill_again_and_again(accel, TARGET)

    for _ in range(20):
        viommu.attach(domain=1, endpoint=other.endpoint)
        viommu.attach(domain=2, endpoint=other.endpoint, flags=ATTACH_BYPASS)
        viommu.detach(domain=2, endpoint=other.endpoint)

    assert wait.until(lambda: accel.engine.status_of(last) == engine.OK, 10.0)
    assert accel.registers.read32(engine.FAULTED) == 0
