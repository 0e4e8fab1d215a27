"""The split virtqueue as it lies in guest memory: sizes, flags, offsets and the two index rules.

virtio 1.x, "Split Virtqueues". All fields are little endian. The descriptor and the used element are bare
Structs rather than Records: the queue unpacks them on the hottest path of the system.

    descriptor table  16 * size          aligned to 16  gpa u64, nbytes u32, flags u16, next u16
    available ring    4 + 2 * size [+2]  aligned to 2   flags u16, idx u16, ring[size] u16 [, used_event u16]
    used ring         4 + 8 * size [+2]  aligned to 4   flags u16, idx u16, ring[size] {id, len u32} [, avail_event u16]

The bracketed words exist when VIRTIO_RING_F_EVENT_IDX is negotiated.
"""

from __future__ import annotations

from struct import Struct

F_INDIRECT_DESC = 1 << 28  # VIRTIO_RING_F_INDIRECT_DESC
F_EVENT_IDX = 1 << 29  # VIRTIO_RING_F_EVENT_IDX

MAX_QUEUE_SIZE = 32768

DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4
AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1

DESCRIPTOR = Struct("<QIHH")
DESCRIPTOR_NBYTES = DESCRIPTOR.size
USED_ELEMENT = Struct("<II")

DESC_ALIGNMENT = 16
AVAIL_ALIGNMENT = 2
USED_ALIGNMENT = 4

# Positions in the rings seen as arrays of 16-bit words (the same in both rings).
FLAGS_WORD = 0
IDX_WORD = 1
AVAIL_RING_WORD = 2
USED_RING_OFFSET = 4  # bytes


def desc_nbytes(size: int) -> int:
    """Bytes of the descriptor table of a ring with `size` entries."""
    return DESCRIPTOR_NBYTES * size


def avail_nbytes(size: int, *, event_idx: bool) -> int:
    """Bytes of the available ring."""
    return 4 + 2 * size + (2 if event_idx else 0)


def used_nbytes(size: int, *, event_idx: bool) -> int:
    """Bytes of the used ring."""
    return 4 + 8 * size + (2 if event_idx else 0)


def used_event_word(size: int) -> int:
    """Word index of `used_event`, which follows the available ring's entries."""
    return AVAIL_RING_WORD + size


def avail_event_word(size: int) -> int:
    """Word index of `avail_event`, which follows the used ring's entries."""
    return (USED_RING_OFFSET + 8 * size) // 2


def need_event(event: int, new: int, old: int) -> bool:
    """Whether moving an index from `old` to `new` passes `event`, modulo 2^16: then the other side is told."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
