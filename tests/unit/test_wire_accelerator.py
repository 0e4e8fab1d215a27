"""The accelerator's layouts against hand-written bytes."""

from __future__ import annotations

from vdev.wire.accelerator import (
    CAPS_VALUE,
    COMPLETION_NBYTES,
    COMPLETION_STATUS_OFFSET,
    DESCRIPTOR_NBYTES,
    Completion,
    Descriptor,
    Register,
)

DESCRIPTOR_HEX = (
    "01 05 3412 78560000"
    " 0010000000000000 0020000000000000 0000100000000000 efcdab8967452301"
    " 000102030405060708090a0b0c0d0e0f1011121314151617"
)
COMPLETION_HEX = "3412 02 00 00000000 0000040000000000 0020000000000000 02000000 00000000"


def test_a_descriptor_is_64_bytes_in_the_documented_order() -> None:
    data = bytes.fromhex(DESCRIPTOR_HEX)
    descriptor = Descriptor.parse(data)
    assert DESCRIPTOR_NBYTES == len(data) == 64
    assert (descriptor.op, descriptor.flags, descriptor.tag, descriptor.pasid) == (1, 5, 0x1234, 0x5678)
    assert (descriptor.src, descriptor.dst, descriptor.nbytes) == (0x1000, 0x2000, 0x100000)
    assert descriptor.arg == 0x0123456789ABCDEF
    assert descriptor.reserved == bytes(range(24))
    assert descriptor.pack() == data


def test_a_completion_is_32_bytes_in_the_documented_order() -> None:
    data = bytes.fromhex(COMPLETION_HEX)
    completion = Completion(0x1234, 2, 0, 0, 0x40000, 0x2000, 2, 0)
    assert COMPLETION_NBYTES == len(data) == 32
    assert completion.pack() == data
    assert Completion.parse(data) == completion
    assert data[COMPLETION_STATUS_OFFSET] == completion.status


def test_registers_are_naturally_aligned_and_keep_their_offsets() -> None:
    wide = {Register.RING_BASE, Register.COMPLETION_BASE, Register.ERROR_IOVA, Register.DEVMEM_NBYTES}
    assert all(register % (8 if register in wide else 4) == 0 for register in Register)
    assert {register.name: int(register) for register in Register} == {
        "ID": 0x00,
        "VERSION": 0x04,
        "CAPS": 0x08,
        "STATUS": 0x0C,
        "CONTROL": 0x10,
        "RING_BASE": 0x18,
        "RING_SIZE": 0x20,
        "RING_HEAD": 0x24,
        "RING_TAIL": 0x28,
        "COMPLETION_BASE": 0x30,
        "ERROR": 0x38,
        "ERROR_IOVA": 0x40,
        "DEVMEM_NBYTES": 0x48,
        "COMPLETED": 0x50,
        "FAULTED": 0x54,
        "RING_PASID": 0x58,
        "KERNEL_PASID": 0x5C,
    }
    assert CAPS_VALUE == 0x1F
