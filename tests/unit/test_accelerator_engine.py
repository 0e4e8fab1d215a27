"""The accelerator's ring: operations, completions, faults in every place, and everything that stops it."""

from __future__ import annotations

import zlib

import pytest

from tests.support.accelerator import COMPLETIONS, PAGE, READ, RING, WRITE, Rig, descriptor
from vdev.endpoints.accelerator_engine import SLICE_NBYTES
from vdev.wire.accelerator import (
    MAX_OPERATION_NBYTES,
    PASID_STOP,
    Access,
    Completion,
    CompletionStatus,
    Control,
    Descriptor,
    ErrorCode,
    Flag,
    Op,
    Register,
    Status,
)

A, B = 0x100_0000, 0x200_0000  # IOVAs of the two operands
LONG = 4 * SLICE_NBYTES


def rig_with_buffers(nbytes: int = 4 * PAGE) -> Rig:
    """A running engine; A maps the first `nbytes` of RAM (pseudo-random bytes), B the next (zeros)."""
    rig = Rig(ram_nbytes=2 * nbytes)
    rig.map(A, 0, nbytes)
    rig.map(B, nbytes, nbytes)
    rig.ram[:nbytes] = (bytes(range(251)) * (nbytes // 251 + 1))[:nbytes]
    return rig.start()


def outcome(completion: Completion) -> tuple[int, int, int, int]:
    return completion.status, completion.result, completion.fault_iova, completion.access


# --- operations


def test_copy_moves_host_memory_at_odd_offsets_across_pages() -> None:
    rig = rig_with_buffers()
    done = rig.do(descriptor(Op.COPY, tag=77, src=A + 3, dst=B + 4093, nbytes=2 * PAGE))
    assert outcome(done) == (CompletionStatus.OK, 2 * PAGE, 0, Access.NONE)
    assert done.tag == 77
    assert rig.ram[4 * PAGE + 4093 : 6 * PAGE + 4093] == rig.ram[3 : 2 * PAGE + 3]


@pytest.mark.parametrize("flags", [Flag.SRC_DEVMEM, Flag.DST_DEVMEM, Flag.SRC_DEVMEM | Flag.DST_DEVMEM])
def test_copy_moves_between_host_and_device_memory(flags: Flag) -> None:
    rig = rig_with_buffers()
    rig.devmem[:256] = bytes(range(256))
    src = 16 if flags & Flag.SRC_DEVMEM else A
    dst = 2000 if flags & Flag.DST_DEVMEM else B
    expected = bytes(rig.devmem[16:116]) if flags & Flag.SRC_DEVMEM else bytes(rig.ram[:100])
    assert rig.do(descriptor(Op.COPY, flags=flags, src=src, dst=dst, nbytes=100)).status == CompletionStatus.OK
    landed = rig.devmem[2000:2100] if flags & Flag.DST_DEVMEM else rig.ram[4 * PAGE : 4 * PAGE + 100]
    assert bytes(landed) == expected


def test_copy_within_one_piece_of_memory_behaves_as_memmove() -> None:
    rig = rig_with_buffers()
    before = bytes(rig.ram[:PAGE])
    rig.do(descriptor(Op.COPY, src=A, dst=A + 100, nbytes=1000))
    assert rig.ram[100:1100] == before[:1000]


def test_fill_repeats_its_pattern_from_the_destinations_first_byte() -> None:
    rig = rig_with_buffers()
    rig.do(descriptor(Op.FILL, dst=B + 5, nbytes=21, arg=0x0807060504030201))
    assert bytes(rig.ram[4 * PAGE : 4 * PAGE + 28]) == bytes(5) + (bytes(range(1, 9)) * 3)[:21] + bytes(2)


def test_a_long_fill_keeps_its_phase_over_slices() -> None:
    rig = rig_with_buffers(LONG)
    odd = descriptor(Op.FILL, dst=B, nbytes=0x8003)  # leaves an odd number of bytes of the first slice
    rig.put(odd, descriptor(Op.FILL, dst=B + 1, nbytes=LONG - 3, arg=0x0807060504030201))
    rig.run()
    assert bytes(rig.ram[LONG + 1 : 2 * LONG - 2]) == (bytes(range(1, 9)) * (LONG // 8))[: LONG - 3]


def test_compare_of_equal_memory_is_ok() -> None:
    rig = rig_with_buffers()
    rig.ram[4 * PAGE : 8 * PAGE] = bytes(rig.ram[: 4 * PAGE])
    assert outcome(rig.do(descriptor(Op.COMPARE, src=A + 1, dst=B + 1, nbytes=3 * PAGE))) == (
        CompletionStatus.OK,
        3 * PAGE,
        0,
        0,
    )


@pytest.mark.parametrize("at", [0, 1, PAGE - 1, PAGE, 3 * PAGE - 1])
def test_compare_finds_the_first_mismatch(at: int) -> None:
    rig = rig_with_buffers()
    rig.ram[4 * PAGE : 8 * PAGE] = bytes(rig.ram[: 4 * PAGE])
    rig.ram[4 * PAGE + 1 + at] ^= 1
    rig.ram[7 * PAGE + 1] ^= 0xFF
    done = rig.do(descriptor(Op.COMPARE, src=A + 1, dst=B + 1, nbytes=3 * PAGE + 10))
    assert outcome(done) == (CompletionStatus.MISMATCH, at, 0, 0)
    assert rig.read32(Register.FAULTED) == 0


def test_compare_only_reads() -> None:
    rig = rig_with_buffers()
    rig.map(A, 0, PAGE, READ)
    rig.map(B, 0, PAGE, READ)
    assert rig.do(descriptor(Op.COMPARE, src=A, dst=B, nbytes=PAGE)).status == CompletionStatus.OK


def test_checksum_is_the_crc32_of_the_source_over_slices() -> None:
    rig = rig_with_buffers(LONG)
    done = rig.do(descriptor(Op.CHECKSUM, src=A + 1, nbytes=LONG - 1))
    assert outcome(done) == (CompletionStatus.OK, zlib.crc32(rig.ram[1:LONG]), 0, 0)


def test_nop_completes_whatever_its_operands_say() -> None:
    rig = rig_with_buffers()
    done = rig.do(descriptor(Op.NOP, tag=9, src=1 << 63, dst=(1 << 64) - 1, nbytes=(1 << 64) - 1))
    assert (done.tag, *outcome(done)) == (9, CompletionStatus.OK, 0, 0, 0)


# --- descriptors that are refused


@pytest.mark.parametrize(
    "bad",
    [
        descriptor(5, nbytes=1),
        descriptor(Op.NOP, flags=0x40),
        descriptor(Op.NOP, flags=0x80),
        descriptor(Op.NOP, reserved=bytes(23) + b"\1"),
        descriptor(Op.NOP, pasid=1),
        descriptor(Op.COPY, nbytes=0),
        descriptor(Op.COPY, nbytes=MAX_OPERATION_NBYTES + 1),
        descriptor(Op.COPY, flags=Flag.SRC_DEVMEM, src=4 * PAGE - 1, nbytes=2),
        descriptor(Op.FILL, flags=Flag.DST_DEVMEM, dst=(1 << 64) - 1, nbytes=1),
        descriptor(Op.COMPARE, flags=Flag.DST_DEVMEM, dst=4 * PAGE, nbytes=1),
        descriptor(Op.CHECKSUM, src=(1 << 64) - 1, nbytes=2),
        descriptor(Op.NOP, flags=Flag.EXECUTE),
        descriptor(Op.NOP, flags=Flag.PRIVILEGED),
        descriptor(Op.NOP, flags=Flag.PASID_VALID),
        descriptor(Op.NOP, flags=Flag.PASID_VALID, pasid=PASID_STOP),
    ],
)
def test_a_bad_descriptor_is_refused_and_touches_nothing(bad: Descriptor) -> None:
    rig = rig_with_buffers()
    before = bytes(rig.ram)
    assert outcome(rig.do(bad)) == (CompletionStatus.BAD_DESCRIPTOR, 0, 0, 0)
    assert rig.read32(Register.STATUS) == Status.RUNNING
    assert (rig.read32(Register.COMPLETED), rig.read32(Register.FAULTED)) == (1, 0)
    assert rig.ram == before


def test_flags_of_operands_an_operation_does_not_use_are_ignored() -> None:
    rig = rig_with_buffers()
    done = rig.do(descriptor(Op.FILL, flags=Flag.SRC_DEVMEM, src=1 << 60, dst=B, nbytes=8))
    assert done.status == CompletionStatus.OK


# --- faults of operands


def test_a_source_fault_is_reported_and_the_next_descriptor_runs() -> None:
    rig = rig_with_buffers()
    rig.door.unmap(A, PAGE)
    rig.put(
        descriptor(Op.COPY, tag=1, src=A, dst=B, nbytes=PAGE), descriptor(Op.COPY, src=A + PAGE, dst=B, nbytes=PAGE)
    )
    rig.run()
    assert outcome(rig.completion(0)) == (CompletionStatus.TRANSLATION_FAULT, 0, A, Access.READ)
    assert rig.completion(1).status == CompletionStatus.OK
    assert (rig.read32(Register.COMPLETED), rig.read32(Register.FAULTED)) == (2, 1)
    assert rig.read32(Register.ERROR) == ErrorCode.NONE


def test_a_destination_fault_of_a_read_only_page_is_reported_as_a_write() -> None:
    rig = rig_with_buffers()
    rig.map(B + PAGE, 5 * PAGE, PAGE, READ)
    done = rig.do(descriptor(Op.COPY, src=A, dst=B, nbytes=2 * PAGE))
    assert outcome(done) == (CompletionStatus.TRANSLATION_FAULT, 0, B + PAGE, Access.WRITE)
    assert bytes(rig.ram[4 * PAGE : 5 * PAGE]) == bytes(PAGE)


def test_a_write_only_source_is_a_read_fault() -> None:
    rig = rig_with_buffers()
    rig.map(A, 0, PAGE, WRITE)
    done = rig.do(descriptor(Op.CHECKSUM, src=A, nbytes=8))
    assert outcome(done) == (CompletionStatus.TRANSLATION_FAULT, 0, A, Access.READ)


def test_compare_faults_on_its_destination_as_a_read() -> None:
    rig = rig_with_buffers()
    done = rig.do(descriptor(Op.COMPARE, src=A, dst=B + 4 * PAGE, nbytes=8))
    assert outcome(done) == (CompletionStatus.TRANSLATION_FAULT, 0, B + 4 * PAGE, Access.READ)


def test_an_access_to_something_that_is_not_ram_is_an_unsupported_request() -> None:
    rig = rig_with_buffers()
    rig.map(B, None, PAGE)
    done = rig.do(descriptor(Op.FILL, dst=B + 8, nbytes=8))
    assert outcome(done) == (CompletionStatus.UNSUPPORTED_REQUEST, 0, B + 8, Access.WRITE)
    assert rig.read32(Register.FAULTED) == 1


@pytest.mark.parametrize("op", [Op.COPY, Op.FILL, Op.COMPARE, Op.CHECKSUM])
def test_a_fault_in_a_later_slice_reports_the_bytes_done_before_it(op: Op) -> None:
    rig = rig_with_buffers(LONG)
    rig.ram[LONG : 2 * LONG] = bytes(rig.ram[:LONG])
    rig.door.unmap((B if op == Op.FILL else A) + 2 * SLICE_NBYTES + PAGE, PAGE)
    done = rig.do(descriptor(op, src=A, dst=B, nbytes=LONG))
    assert done.status == CompletionStatus.TRANSLATION_FAULT
    assert done.result == 2 * SLICE_NBYTES
    assert done.fault_iova == (B if op == Op.FILL else A) + 2 * SLICE_NBYTES + PAGE


# --- faults of the ring itself


def test_a_fault_of_the_ring_fetch_halts_the_engine() -> None:
    rig = rig_with_buffers()
    rig.door.unmap(RING, PAGE)
    rig.put(descriptor(Op.NOP))
    rig.run()
    assert rig.read32(Register.STATUS) == Status.HALTED
    assert (rig.read32(Register.ERROR), rig.read64(Register.ERROR_IOVA)) == (ErrorCode.RING_FETCH, RING)
    assert (rig.read32(Register.RING_HEAD), rig.read32(Register.COMPLETED)) == (0, 0)
    assert rig.host.vectors == [1]


def test_a_fault_of_the_completion_write_halts_the_engine() -> None:
    rig = rig_with_buffers()
    rig.door.map(COMPLETIONS, PAGE, PAGE, READ)
    rig.put(descriptor(Op.FILL, flags=Flag.IRQ, dst=B, nbytes=8, arg=1), descriptor(Op.NOP))
    rig.run()
    assert rig.read32(Register.STATUS) == Status.HALTED
    assert (rig.read32(Register.ERROR), rig.read64(Register.ERROR_IOVA)) == (ErrorCode.COMPLETION_WRITE, COMPLETIONS)
    assert (rig.read32(Register.RING_HEAD), rig.read32(Register.COMPLETED)) == (0, 0)
    assert rig.host.vectors == [1]


def test_a_halted_engine_starts_again_when_enabled() -> None:
    rig = rig_with_buffers()
    rig.door.unmap(RING, PAGE)
    rig.put(descriptor(Op.NOP))
    rig.run()
    rig.door.map(RING, 0, PAGE)
    rig.write32(Register.ERROR, ErrorCode.RING_FETCH)
    assert rig.read64(Register.ERROR_IOVA) == 0
    assert rig.start().do(descriptor(Op.NOP)).status == CompletionStatus.OK
    assert rig.read32(Register.STATUS) == Status.RUNNING


# --- completions, interrupts, order


def test_the_status_byte_is_stored_alone_and_last() -> None:
    rig = rig_with_buffers()
    rig.do(descriptor(Op.NOP, tag=5))
    body, status = rig.door.stores
    assert body == (COMPLETIONS, Completion(5, 0, 0, 0, 0, 0, 0, 0).pack())
    assert status == (COMPLETIONS + 2, bytes([CompletionStatus.OK]))


@pytest.mark.parametrize(
    ("flags", "control", "vectors"),
    [
        (Flag.IRQ, Control.ENABLE | Control.IRQ_ENABLE, [0]),
        (0, Control.ENABLE | Control.IRQ_ENABLE, []),
        (Flag.IRQ, Control.ENABLE, []),
    ],
)
def test_a_completion_interrupts_only_when_both_sides_ask(flags: int, control: int, vectors: list[int]) -> None:
    rig = rig_with_buffers()
    rig.write32(Register.CONTROL, control)
    rig.do(descriptor(Op.NOP, flags=flags))
    assert rig.host.vectors == vectors


def test_an_error_does_not_interrupt_without_irq_enable() -> None:
    rig = rig_with_buffers()
    rig.write32(Register.CONTROL, Control.ENABLE)
    rig.write32(Register.RING_TAIL, 100)
    assert rig.host.vectors == []


def test_the_ring_wraps_and_executes_in_order() -> None:
    rig = rig_with_buffers()
    tags = []
    for tag in range(20):
        index = rig.tail
        rig.do(descriptor(Op.NOP, tag=tag))
        tags.append(rig.completion(index).tag)
    assert tags == list(range(20))
    assert rig.read32(Register.RING_HEAD) == 20 % 8
    assert rig.read32(Register.COMPLETED) == 20


def test_short_descriptors_share_a_slice_and_long_ones_are_cut() -> None:
    rig = rig_with_buffers(LONG)
    rig.put(*[descriptor(Op.FILL, dst=B, nbytes=8)] * 7)
    assert rig.run() == 1
    rig.put(descriptor(Op.COPY, src=A, dst=B, nbytes=LONG))
    assert rig.run() == 4


# --- everything that stops it


def half_done_copy() -> Rig:
    """A long copy of which one slice has been done."""
    rig = rig_with_buffers(LONG)
    rig.put(descriptor(Op.COPY, tag=3, flags=Flag.IRQ, src=A, dst=B, nbytes=LONG))
    rig.engine.run(0)
    return rig


def test_reset_in_the_middle_of_a_copy_lets_nothing_land_afterwards() -> None:
    rig = half_done_copy()
    rig.write32(Register.CONTROL, Control.RESET)
    before, accesses = bytes(rig.door.ram), rig.door.accesses
    rig.engine.run(0)
    assert rig.run() == 0
    assert rig.door.ram == before
    assert rig.door.accesses == accesses
    assert rig.completion().status == CompletionStatus.PENDING
    assert rig.read32(Register.STATUS) == 0


@pytest.mark.parametrize("code", [ErrorCode.BUS_MASTER_OFF, ErrorCode.STOPPED])
def test_losing_dma_in_the_middle_of_a_copy_halts_without_another_access(code: ErrorCode) -> None:
    rig = half_done_copy()
    accesses = rig.door.accesses
    rig.engine.stop(code)
    rig.engine.run(0)
    assert rig.door.accesses == accesses
    assert rig.read32(Register.STATUS) == Status.HALTED
    assert rig.read32(Register.ERROR) == code
    assert rig.host.vectors == []


def test_stopping_an_idle_engine_leaves_no_error() -> None:
    rig = Rig()
    rig.engine.stop(ErrorCode.STOPPED)
    assert (rig.read32(Register.STATUS), rig.read32(Register.ERROR)) == (0, 0)


def test_clearing_enable_in_the_middle_of_a_copy_completes_it_as_aborted() -> None:
    rig = half_done_copy()
    rig.write32(Register.CONTROL, Control.IRQ_ENABLE)
    assert outcome(rig.completion()) == (CompletionStatus.ABORTED, SLICE_NBYTES, 0, 0)
    assert rig.run() == 0
    assert bytes(rig.ram[LONG + SLICE_NBYTES : 2 * LONG]) == bytes(LONG - SLICE_NBYTES)
    assert rig.read32(Register.STATUS) == 0
    assert rig.read32(Register.RING_HEAD) == 1
    assert rig.host.vectors == [0]


def test_clearing_enable_leaves_waiting_descriptors_untouched() -> None:
    rig = rig_with_buffers()
    rig.put(descriptor(Op.NOP), descriptor(Op.NOP))
    rig.write32(Register.CONTROL, 0)
    assert rig.run() == 0
    assert rig.read32(Register.COMPLETED) == 0


def test_a_mapping_taken_away_between_slices_stops_the_copy_there() -> None:
    rig = half_done_copy()
    rig.door.unmap(B, LONG)
    rig.run()
    assert outcome(rig.completion()) == (
        CompletionStatus.TRANSLATION_FAULT,
        SLICE_NBYTES,
        B + SLICE_NBYTES,
        Access.WRITE,
    )
