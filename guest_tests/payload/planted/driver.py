"""A small driver that does all it must: lends memory to a device, lets users share it by PASIDs, hears of faults.

It is what a kernel has between the requests of `direct` and those who want DMA. `wrong` has variants of it, each with
one mistake that drivers have made. Memory that was given back is given out again at once, as slab allocators do:
whoever still writes there is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..direct import (
    READ,
    WRITE,
    Accel,
    Answer,
    AttachPasid,
    DetachPasid,
    DmaBuffer,
    DmaPool,
    Fault,
    Feature,
    Map,
    RequestRefused,
    Unmap,
    Viommu,
    find_accels,
    find_units,
)
from ..direct.wire import Request

DOMAIN, FIRST_IOVA, STEP = 1, 0x1000_0000, 0x10_0000  # a loan a step, with a hole behind it; the ring lies below
READ_WRITE = READ | WRITE
FIRST_PASID, USER_DOMAIN, USER_IOVA = 0x10, 0x100, 0x80_0000


@dataclass(eq=False)
class Loan:
    """Memory a device may reach at `iova`."""

    buffer: DmaBuffer
    iova: int


@dataclass(eq=False)
class User:
    """Somebody with a PASID, and a domain of its own in which its memory is at USER_IOVA."""

    pasid: int
    domain: int
    buffer: DmaBuffer


class Driver:
    """One unit and the first accelerator behind it, started."""

    def __init__(self, *, pasids: bool = False, msix: bool = False) -> None:
        """`pasids`: with PASIDs that the driver numbers. `msix`: the unit interrupts. Raises as Viommu.open."""
        self.pool = DmaPool()
        self.viommu = Viommu.open(find_units()[0], self.pool, also=Feature.PASID if pasids else 0, msix=msix)
        self.accel = Accel.open(find_accels()[0], self.pool).start_in(self.viommu, DOMAIN)
        if pasids:
            self.accel.function.enable_pasids()
        self._spare: dict[int, list[DmaBuffer]] = {}  # by size; the one given back last is given out first
        self._nloans = 0
        self._pasids_in_use: set[int] = set()

    # memory

    def alloc(self, nbytes: int) -> DmaBuffer:
        """Memory of anybody's, as its last owner left it. Raises OutOfDmaMemory."""
        spare = self._spare.get(nbytes)
        return spare.pop() if spare else self.pool.alloc(nbytes)

    def free(self, buffer: DmaBuffer) -> None:
        """Memory that nobody needs; the next to ask for as much gets it."""
        self._spare.setdefault(buffer.nbytes, []).append(buffer)

    def lend(self, nbytes: int) -> Loan:
        """Memory that the accelerator reaches, all of it. Raises RequestRefused: then nothing is lent."""
        loan = Loan(self.alloc(nbytes), FIRST_IOVA + self._nloans * STEP)
        self._nloans += 1
        try:
            self.ask(self.map_of(loan))
        except RequestRefused:
            self._withdraw(loan)
            raise
        return loan

    def map_of(self, loan: Loan) -> Map:
        """The MAP that lends."""
        return _map(DOMAIN, loan.iova, loan.buffer)

    def take_back(self, loan: Loan) -> None:
        """The accelerator reaches it no longer, and it is free. Raises RequestRefused: then it is not."""
        self.ask(Unmap(domain=DOMAIN, virt_start=loan.iova, virt_end=loan.iova + loan.buffer.nbytes - 1))
        self.free(loan.buffer)

    def _withdraw(self, loan: Loan) -> None:
        """Nobody knows whether what was refused was done all the same: undone, it is free again; else never."""
        try:
            self.take_back(loan)
        except RequestRefused:
            return

    # users of PASIDs

    def admit(self, nbytes: int) -> User:
        """A new user, with the lowest PASID that nobody has, a domain of its own, and memory in it. RequestRefused."""
        pasid = next(number for number in range(FIRST_PASID, FIRST_PASID + 1000) if number not in self._pasids_in_use)
        user = User(pasid, USER_DOMAIN + self._nloans, self.alloc(nbytes))
        self._nloans += 1
        self._pasids_in_use.add(pasid)
        self.ask(AttachPasid(domain=user.domain, endpoint=self.accel.endpoint, pasid=pasid))
        self.ask(_map(user.domain, USER_IOVA, user.buffer))
        return user

    def dismiss(self, user: User) -> None:
        """Its PASID and its memory are free for the next. Raises RequestRefused."""
        self.ask(self.detach_of(user))
        self._forget(user)

    def detach_of(self, user: User) -> DetachPasid:
        """The DETACH_PASID that ends it."""
        return DetachPasid(domain=user.domain, endpoint=self.accel.endpoint, pasid=user.pasid)

    def _forget(self, user: User) -> None:
        self._pasids_in_use.discard(user.pasid)
        self.free(user.buffer)

    # faults, and requests

    def faults(self) -> list[Fault]:
        """Those since the last call; each buffer they came in is the device's again."""
        return self.viommu.faults()

    def ask(self, request: Request) -> Answer:
        """Send a request that is to succeed, and wait for its answer. Raises RequestRefused, NoAnswer."""
        return self.viommu.ask(request)


def _map(domain: int, iova: int, buffer: DmaBuffer) -> Map:
    end = iova + buffer.nbytes - 1
    return Map(domain=domain, virt_start=iova, virt_end=end, phys_start=buffer.gpa, flags=READ_WRITE)
