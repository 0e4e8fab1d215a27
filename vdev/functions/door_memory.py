"""The memory a device behind the IOMMU reaches, in the form a ring takes it: addresses are IOVAs."""

from __future__ import annotations

from vdev.errors import DmaError, MemoryAccessError
from vdev.functions.dma import MAX_PIECES, DmaDoor
from vdev.memory import Region

# The longest chain, in mappings of one granule, and the shortest such limit: a hostile driver with single-byte mappings
# holds the loop for a tenth of a second at most, and no driver with ordinary pages notices.
MAX_CHAIN_PIECES = 4 * MAX_PIECES
MIN_CHAIN_NBYTES = 1 << 16


class DoorMemory:
    """A `memory.Memory` over a `DmaDoor`.

    What the IOMMU refuses, and what is translated to no RAM, is a MemoryAccessError; it is `lost` where the access may
    succeed later with nothing wrong about it: bus master off, frozen, RAM that QEMU is re-arranging.
    """

    def __init__(self, door: DmaDoor) -> None:
        self.generation = 0
        self._door = door

    def renew(self) -> None:
        """A slice begins: mappings may have changed, so no view taken earlier is good any more."""
        self.generation += 1

    def find(self, gpa: int) -> Region | None:
        """None: every buffer is translated for itself."""
        return None

    def slices(self, gpa: int, nbytes: int, *, write: bool) -> list[memoryview]:
        """The bytes behind the IOVAs [gpa, gpa+nbytes) in order; MemoryAccessError as the class says."""
        return self._views(gpa, nbytes, write=write, quiet=False)

    def ring_area(self, gpa: int, nbytes: int, *, write: bool) -> list[memoryview]:
        """The same, of a part of a ring. A trace that told of each slice's look at it would tell of little else."""
        return self._views(gpa, nbytes, write=write, quiet=True)

    def _views(self, gpa: int, nbytes: int, *, write: bool, quiet: bool) -> list[memoryview]:
        try:
            return self._door.views(gpa, nbytes, write=write, quiet=quiet)
        except DmaError as error:
            raise MemoryAccessError(gpa, nbytes, str(error), lost=error.passing) from error
