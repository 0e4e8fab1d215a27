"""The one idiom for wire structures: a slots dataclass beside one precompiled Struct."""

from __future__ import annotations

from struct import Struct
from typing import ClassVar, Self


class Record:
    """A fixed-size little-endian structure; subclasses are `@dataclass(slots=True)` and set `layout`.

    Field order equals the layout's. Reserved bytes the specification speaks of are named fields.
    Callers check `len(buf)` against `layout.size` first: `struct.error` never leaves the wire layer's callers.
    """

    __slots__: ClassVar[tuple[str, ...]] = ()
    layout: ClassVar[Struct]

    @classmethod
    def parse(cls, buf: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        """Read one record at `offset`."""
        return cls(*cls.layout.unpack_from(buf, offset))

    def pack(self) -> bytes:
        """The record's bytes, `layout.size` of them."""
        return self.layout.pack(*[getattr(self, name) for name in self.__slots__])
