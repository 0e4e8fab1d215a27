"""The accelerator's ring between the IOMMU and its driver (docs/accelerator.md): what goes on, what stops, and why."""

from __future__ import annotations

import zlib

import pytest

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import READ, WRITE, Accel, DmaArena, EngineStopped, TranslationFault, Viommu
from guest_tests.payload.direct.accel import RING_IOVA, BadDescriptor

SOURCE, TARGET, PAGE = 0x1_0000, 0x2_0000, 4096
RECORDS_IOVA = RING_IOVA + engine.COMPLETIONS_OFFSET


@pytest.fixture
def split_accel(viommu: Viommu, accel: Accel) -> Accel:
    """An accelerator in domain 1, whose descriptors and completion records are a mapping each."""
    viommu.attach(domain=1, endpoint=accel.endpoint)
    viommu.map(domain=1, iova=RING_IOVA, gpa=accel.ring.gpa, nbytes=PAGE, access=READ)
    viommu.map(domain=1, iova=RECORDS_IOVA, gpa=accel.ring.gpa + PAGE, nbytes=PAGE, access=WRITE)
    return accel.start(RING_IOVA)


def test_one_bad_operation_among_many_spoils_no_other(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    target = dma.alloc(PAGE)
    viommu.map_buffer(mapped_accel.domain, TARGET, target)
    work = [Operation(engine.FILL, dst=TARGET + 64 * n, nbytes=64, arg=n + 1) for n in range(60)]
    work[37] = Operation(engine.FILL, dst=TARGET + PAGE, nbytes=64)

    completions = mapped_accel.run_all(work)

    statuses = [completion.status for completion in completions]
    assert statuses == [engine.OK] * 37 + [engine.TRANSLATION_FAULT] + [engine.OK] * 22
    words = [int.from_bytes(target.read(8, 64 * n), "little") for n in range(60)]
    assert words == [0 if n == 37 else n + 1 for n in range(60)]


def test_operations_are_done_in_their_order(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    pages = [dma.random(PAGE) for _ in range(2)]
    for number, page in enumerate(pages):
        viommu.map_buffer(mapped_accel.domain, SOURCE + number * PAGE, page)
    first = pages[0].read()

    mapped_accel.run_all(
        [
            Operation(engine.COPY, SOURCE, SOURCE + PAGE, PAGE),
            Operation(engine.FILL, dst=SOURCE, nbytes=PAGE),
        ]
    )

    assert (pages[0].read(), pages[1].read()) == (bytes(PAGE), first)


def test_the_ring_goes_round_many_times(mapped_accel: Accel) -> None:
    before = mapped_accel.registers.read32(engine.COMPLETED)

    for _ in range(5):
        mapped_accel.run_all([Operation(engine.NOP)] * 50)

    assert mapped_accel.registers.read32(engine.COMPLETED) - before == 250


def test_refused_operations_are_counted_as_faulted(mapped_accel: Accel) -> None:
    mapped_accel.run_all([Operation(engine.FILL, dst=TARGET, nbytes=8), Operation(engine.NOP)] * 3)

    assert mapped_accel.registers.read32(engine.FAULTED) == 3


def test_a_descriptor_that_makes_no_sense_does_not_stop_the_engine(mapped_accel: Accel) -> None:
    with pytest.raises(BadDescriptor):
        mapped_accel.do(Operation(99))

    mapped_accel.nop()


def test_an_unmapped_ring_stops_the_engine_where_it_wanted_to_read(viommu: Viommu, split_accel: Accel) -> None:
    split_accel.nop()
    viommu.unmap(domain=1, iova=RING_IOVA, nbytes=PAGE)

    with pytest.raises(EngineStopped) as caught:
        split_accel.nop()

    assert (caught.value.error, caught.value.error_iova) == (engine.ERROR_RING_FETCH, RING_IOVA + 64)
    assert viommu.wait_fault().access == READ


def test_unmapped_completion_records_stop_the_engine_where_it_wanted_to_write(
    viommu: Viommu, split_accel: Accel
) -> None:
    split_accel.nop()
    viommu.unmap(domain=1, iova=RECORDS_IOVA, nbytes=PAGE)

    with pytest.raises(EngineStopped) as caught:
        split_accel.nop()

    assert (caught.value.error, caught.value.error_iova) == (engine.ERROR_COMPLETION_WRITE, RECORDS_IOVA + 32)
    assert viommu.wait_fault().access == WRITE


def test_completion_records_that_may_only_be_read_stop_the_engine(viommu: Viommu, accel: Accel) -> None:
    viommu.attach(domain=1, endpoint=accel.endpoint)
    viommu.map_buffer(1, RING_IOVA, accel.ring, READ)
    accel.start(RING_IOVA)

    with pytest.raises(EngineStopped) as caught:
        accel.nop()

    assert caught.value.error == engine.ERROR_COMPLETION_WRITE
    assert not any(accel.ring.read(PAGE, PAGE))


def test_an_engine_that_stopped_for_its_ring_runs_again_once_it_is_mapped(viommu: Viommu, split_accel: Accel) -> None:
    viommu.unmap(domain=1, iova=RING_IOVA, nbytes=PAGE)
    with pytest.raises(EngineStopped):
        split_accel.nop()

    viommu.map(domain=1, iova=RING_IOVA, gpa=split_accel.ring.gpa, nbytes=PAGE, access=READ)
    split_accel.start(RING_IOVA)

    split_accel.nop()


def test_without_bus_master_the_engine_halts(mapped_accel: Accel) -> None:
    mapped_accel.function.bus_master(False)

    assert mapped_accel.registers.read32(engine.STATUS) == engine.HALTED
    assert mapped_accel.error == engine.ERROR_BUS_MASTER_OFF
    mapped_accel.function.bus_master(True)


def test_without_bus_master_the_engine_does_not_start(mapped_accel: Accel) -> None:
    mapped_accel.function.bus_master(False)

    with pytest.raises(EngineStopped) as caught:
        mapped_accel.start(RING_IOVA)

    mapped_accel.function.bus_master(True)
    assert caught.value.error == engine.ERROR_BUS_MASTER_OFF


def test_bus_master_that_comes_back_lets_the_driver_start_the_engine_again(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    page = dma.random(PAGE)
    viommu.map_buffer(mapped_accel.domain, SOURCE, page, READ)
    mapped_accel.function.bus_master(False)

    mapped_accel.function.bus_master(True)
    is_running = mapped_accel.is_running
    mapped_accel.start(RING_IOVA)

    assert not is_running
    assert mapped_accel.checksum(SOURCE, PAGE) == zlib.crc32(page.read())


def test_a_doorbell_of_an_engine_that_does_not_run_is_an_error(accel: Accel) -> None:
    accel.registers.write32(engine.RING_TAIL, 1)

    assert accel.error == engine.ERROR_NOT_RUNNING
    assert accel.registers.read32(engine.RING_TAIL) == 0


def test_a_tail_outside_the_ring_is_an_error_and_the_engine_goes_on(mapped_accel: Accel) -> None:
    mapped_accel.registers.write32(engine.RING_TAIL, engine.RING_NENTRIES)

    assert mapped_accel.error == engine.ERROR_BAD_TAIL
    mapped_accel.nop()


def test_memory_travels_through_the_device_and_back(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    source, target = dma.random(PAGE), dma.alloc(PAGE)
    viommu.map_buffer(mapped_accel.domain, SOURCE, source, READ)
    viommu.map_buffer(mapped_accel.domain, TARGET, target, WRITE)

    mapped_accel.copy(SOURCE, 0x3000, PAGE, flags=engine.FLAG_DST_DEVMEM)
    mapped_accel.copy(0x3000, TARGET, PAGE, flags=engine.FLAG_SRC_DEVMEM)

    assert target.read() == source.read()


def test_device_memory_is_what_its_bar_shows(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    source = dma.random(PAGE)
    viommu.map_buffer(mapped_accel.domain, SOURCE, source, READ)

    mapped_accel.copy(SOURCE, 0x3000, PAGE, flags=engine.FLAG_DST_DEVMEM)

    seen = mapped_accel.devmem.read64(0x3000 + 64)
    assert seen == int.from_bytes(source.read(8, 64), "little")


def test_an_operand_that_leaves_device_memory_is_no_operation(viommu: Viommu, mapped_accel: Accel) -> None:
    nbytes = mapped_accel.registers.read64(engine.DEVMEM_NBYTES)

    with pytest.raises(BadDescriptor):
        mapped_accel.do(Operation(engine.FILL, dst=nbytes - 8, nbytes=9, flags=engine.FLAG_DST_DEVMEM))

    assert viommu.faults() == []


def test_a_refused_source_leaves_device_memory_as_it_was(mapped_accel: Accel) -> None:
    mapped_accel.devmem.write64(0x3000, 0x1234)

    with pytest.raises(TranslationFault):
        mapped_accel.copy(SOURCE, 0x3000, PAGE, flags=engine.FLAG_DST_DEVMEM)

    assert mapped_accel.devmem.read64(0x3000) == 0x1234


def test_an_access_past_64_bits_is_no_access_at_all(viommu: Viommu, mapped_accel: Accel) -> None:
    with pytest.raises(BadDescriptor):
        mapped_accel.checksum((1 << 64) - PAGE, PAGE + 1)

    assert viommu.faults() == []


def test_a_refused_source_is_found_before_the_target_is_looked_at(mapped_accel: Accel) -> None:
    completion = mapped_accel.run(Operation(engine.COPY, SOURCE, TARGET, PAGE))

    assert completion.status == engine.TRANSLATION_FAULT
    assert (completion.fault_iova, completion.access) == (SOURCE, engine.READ)
