"""Operations over scattered pages against a model that knows only flat bytes."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.accelerator import PAGE, READ, WRITE, Rig, descriptor
from vdev.wire.accelerator import Access, CompletionStatus, Descriptor, Flag, Op

PAGES = 6
A, B = 0x100_0000, 0x200_0000


@dataclass
class Case:
    """Two operands over shuffled pages, of which some are not mapped or lack a right, in the address space of `pasid`.

    With a PASID the function's own space, without one that of PASID 1 has other pages at the same addresses.
    """

    order: list[int]
    access: list[int]
    src: int
    dst: int
    nbytes: int
    arg: int
    latency_ns: int
    pasid: int  # 0: none
    flags: int  # of the descriptor

    def build(self, seed: bytes) -> Rig:
        rig = Rig(ram_nbytes=2 * PAGES * PAGE, latency_ns=self.latency_ns)
        here = rig.door.space(self.pasid) if self.pasid else rig.door
        elsewhere = rig.door if self.pasid else rig.door.space(1)
        for index in range(2 * PAGES):
            iova = (A if index < PAGES else B) + index % PAGES * PAGE
            elsewhere.map(iova, rig.at(self.order[index - 1] * PAGE), PAGE)
            if self.access[index]:
                here.map(iova, rig.at(self.order[index] * PAGE), PAGE, self.access[index])
        rig.ram[:] = (seed * (len(rig.ram) // len(seed) + 1))[: len(rig.ram)]
        return rig.start()

    def descriptor(self, op: Op) -> Descriptor:
        """The operation on the case's operands."""
        return descriptor(
            op,
            flags=self.flags,
            pasid=self.pasid,
            src=A + self.src,
            dst=B + self.dst,
            nbytes=self.nbytes,
            arg=self.arg,
        )

    def virtual(self, rig: Rig, operand: int) -> bytearray:
        """The operand's address space as flat bytes, whatever its rights."""
        pages = self.order[operand * PAGES : (operand + 1) * PAGES]
        return bytearray(b"".join(rig.ram[page * PAGE : (page + 1) * PAGE] for page in pages))

    def first_refused(self, operand: int, right: int) -> int | None:
        """Offset in the operand's space of the first byte the operation may not touch."""
        start = self.src if operand == 0 else self.dst
        for at in range(start // PAGE, (start + self.nbytes - 1) // PAGE + 1):
            if not self.access[operand * PAGES + at] & right:
                return max(start, at * PAGE)
        return None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    nbytes = draw(st.integers(1, PAGES * PAGE))
    room = PAGES * PAGE - nbytes
    access = st.sampled_from([READ | WRITE] * 12 + [0, READ, WRITE])
    pasid = draw(st.sampled_from([0, 0, 1, 0xFFFFF]))
    rights = draw(st.sampled_from([0, Flag.EXECUTE, Flag.PRIVILEGED, Flag.EXECUTE | Flag.PRIVILEGED]))
    return Case(
        order=draw(st.permutations(range(2 * PAGES))),
        access=draw(st.lists(access, min_size=2 * PAGES, max_size=2 * PAGES)),
        src=draw(st.integers(0, room)),
        dst=draw(st.integers(0, room)),
        nbytes=nbytes,
        arg=draw(st.integers(0, (1 << 64) - 1)),
        latency_ns=draw(st.sampled_from([0, 1])),
        pasid=pasid,
        flags=Flag.PASID_VALID | rights if pasid else 0,
    )


RIGHTS = {Op.COPY: (READ, WRITE), Op.FILL: (0, WRITE), Op.COMPARE: (READ, READ), Op.CHECKSUM: (READ, 0)}


@settings(max_examples=250, deadline=None)
@given(case=cases(), op=st.sampled_from(sorted(RIGHTS)), seed=st.binary(min_size=1, max_size=40))
def test_an_operation_does_what_flat_memory_would_or_faults_and_changes_nothing(
    case: Case, op: Op, seed: bytes
) -> None:
    rig = case.build(seed)
    before = bytes(rig.ram)
    source = case.virtual(rig, 0)[case.src : case.src + case.nbytes]
    target = case.virtual(rig, 1)
    old = bytes(target[case.dst : case.dst + case.nbytes])
    done = rig.do(case.descriptor(op))

    for operand, (base, right) in enumerate(zip((A, B), RIGHTS[op], strict=True)):
        refused = case.first_refused(operand, right) if right else None
        if refused is not None:
            assert (done.status, done.result) == (CompletionStatus.TRANSLATION_FAULT, 0)
            assert (done.fault_iova, done.access, done.pasid) == (base + refused, Access(right), case.pasid)
            assert rig.ram == before
            return

    expected = {
        Op.COPY: (CompletionStatus.OK, case.nbytes, bytes(source)),
        Op.FILL: (CompletionStatus.OK, case.nbytes, (case.arg.to_bytes(8, "little") * case.nbytes)[: case.nbytes]),
        Op.CHECKSUM: (CompletionStatus.OK, zlib.crc32(source), old),
        Op.COMPARE: (*compared(bytes(source), old), old),
    }[op]
    target[case.dst : case.dst + case.nbytes] = expected[2]
    assert (done.status, done.result) == expected[:2]
    assert case.virtual(rig, 1) == target
    assert unmapped_by_target(case, rig.ram) == unmapped_by_target(case, memoryview(before))


@settings(max_examples=100, deadline=None)
@given(case=cases(), flip=st.integers(0, PAGES * PAGE - 1))
def test_compare_after_copy_is_equal_until_one_byte_is_changed(case: Case, flip: int) -> None:
    case.access = [READ | WRITE] * len(case.access)
    rig = case.build(bytes(range(1, 250)))
    rig.do(case.descriptor(Op.COPY))
    assert rig.do(case.descriptor(Op.COMPARE)).status == CompletionStatus.OK
    at = flip % case.nbytes
    page = case.order[PAGES + (case.dst + at) // PAGE]
    rig.ram[page * PAGE + (case.dst + at) % PAGE] ^= 1
    done = rig.do(case.descriptor(Op.COMPARE))
    assert (done.status, done.result) == (CompletionStatus.MISMATCH, at)


def compared(left: bytes, right: bytes) -> tuple[CompletionStatus, int]:
    """What COMPARE says of two byte strings, found byte by byte."""
    for at, (one, other) in enumerate(zip(left, right, strict=True)):
        if one != other:
            return CompletionStatus.MISMATCH, at
    return CompletionStatus.OK, len(left)


def unmapped_by_target(case: Case, ram: memoryview) -> list[bytes]:
    """The pages that are not the destination's."""
    return [bytes(ram[page * PAGE : (page + 1) * PAGE]) for page in case.order[:PAGES]]
