"""The memory behind one operand of DMA, and what must be in every byte of it.

An operand is one range of IOVAs behind which lie mappings of any sizes, scattered over a buffer in any order, with gaps
between them that nobody maps. It begins and ends anywhere inside its first and last mapping. Before an operation the
whole area, gaps included, is known noise; whoever takes memory away fills it with other noise, a canary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from ..direct import DmaBuffer

_NOISE = Random(1).randbytes(3 << 20)
_SHIFTS = 1 << 16
_CANARIES = 2 << 19  # canaries are other noise than what was there before: as far away as this


def noise(rng: Random, nbytes: int) -> bytes:
    """`nbytes` of what memory holds before an operation."""
    at = rng.randrange(_SHIFTS)
    return _NOISE[at : at + nbytes]


def canary(rng: Random, nbytes: int) -> bytes:
    """`nbytes` of what nobody but the new owner of memory writes."""
    at = _CANARIES - rng.randrange(_SHIFTS)
    return _NOISE[at : at + nbytes][::-1]


@dataclass(frozen=True, slots=True)
class Piece:
    """One mapping: [iova, stop) to [at, at + nbytes) of the buffer; the operand's bytes from `offset` on are in it.

    `offset` is that of the mapping's first byte, so it is below 0 where the operand begins in the middle of it.
    """

    iova: int
    at: int
    nbytes: int
    offset: int

    @property
    def stop(self) -> int:
        """One past its last IOVA."""
        return self.iova + self.nbytes


@dataclass(slots=True, eq=False)
class Operand:
    """`nbytes` from `iova` on; `area_nbytes` of `buffer`, from its start on, belong to it, gaps included."""

    buffer: DmaBuffer
    iova: int
    nbytes: int
    pieces: tuple[Piece, ...]
    area_nbytes: int
    before: bytes = b""
    content: bytes = field(default=b"", repr=False)  # its own bytes of `before`

    def fill(self, before: bytes) -> None:
        """Put known bytes into the whole area."""
        self.before = before
        self.buffer.memory[: self.area_nbytes] = before
        self.content = b"".join(before[at : at + nbytes] for _, at, nbytes in self._runs(0, self.nbytes))

    def put(self, content: bytes) -> None:
        """Its own bytes become `content`; to be called after `fill`."""
        image = bytearray(self.before)
        self.lay(image, content, 0)
        self.fill(bytes(image))

    def lay(self, image: bytearray, data: bytes, start: int) -> None:
        """`data` over the operand's bytes from `start` on, in an image of its area."""
        cursor = 0
        for _, at, nbytes in self._runs(start, start + len(data)):
            image[at : at + nbytes] = data[cursor : cursor + nbytes]
            cursor += nbytes

    def gather(self, area: bytes | bytearray | memoryview) -> bytes:
        """Its own bytes out of an image of its area."""
        return b"".join(bytes(area[at : at + nbytes]) for _, at, nbytes in self._runs(0, self.nbytes))

    def bytes_in(self, pieces: tuple[Piece, ...]) -> Iterator[tuple[int, int]]:
        """[start, stop) of the operand's bytes behind each of `pieces`."""
        for piece in pieces:
            yield max(piece.offset, 0), min(piece.offset + piece.nbytes, self.nbytes)

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Bytes [start, stop) as runs of memory: offset in the operand, place in the buffer, nbytes."""
        for piece in self.pieces:
            first, last = max(start, piece.offset), min(stop, piece.offset + piece.nbytes)
            if first < last:
                yield first, piece.at + first - piece.offset, last - first


@dataclass(frozen=True, slots=True)
class Scale:
    """How large operands are where mappings have `granule`: at most so many granules a mapping, and so many of them."""

    granule: int
    most: int
    npieces: int = 5


def draw(rng: Random, buffer: DmaBuffer, iova: int, scale: Scale, nbytes: int | None = None) -> Operand:
    """An operand in `buffer` whose first mapping is at `iova`: as long as it comes out, or of `nbytes`."""
    sizes = [scale.granule * rng.randint(1, scale.most) for _ in range(rng.randint(1, scale.npieces))]
    skip = _inside(rng, sizes[0])
    if nbytes is None:
        nbytes = max(1, sum(sizes) - skip - _inside(rng, sizes[-1]))
    else:
        sizes = _long_enough(rng, sizes, skip + nbytes, scale)
    order = list(range(len(sizes)))
    rng.shuffle(order)
    places, cursor = {}, scale.granule
    for number in order:
        places[number] = cursor
        cursor += sizes[number] + scale.granule * rng.choice((0, 1, 1, 2))
    pieces, at = [], iova
    for number, size in enumerate(sizes):
        pieces.append(Piece(at, places[number], size, at - iova - skip))
        at += size
    return Operand(buffer, iova + skip, nbytes, tuple(pieces), cursor + scale.granule)


def _inside(rng: Random, nbytes: int) -> int:
    """An offset in [0, nbytes): often the first, often the last."""
    return rng.choice((0, nbytes - 1, rng.randrange(nbytes)))


def _long_enough(rng: Random, sizes: list[int], nbytes: int, scale: Scale) -> list[int]:
    """Mappings that hold `nbytes` together, and the last of them at least one."""
    out, total = [], 0
    for size in sizes:
        if total >= nbytes:
            break
        out.append(size)
        total += size
    while total < nbytes:
        out.append(scale.granule * rng.randint(1, scale.most))
        total += out[-1]
    return out
