"""A unit with PASIDs, and its requests; nothing here asserts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tests.support.iommu_requests import HOLE, MSI, READ, Z3, map_
from tests.support.pasid_allocator import TERMS, PlainAllocator
from vdev.iommu.engine import Engine
from vdev.iommu.events import Event
from vdev.iommu.in_flight import Flight, Wait
from vdev.iommu.pasid_set import PasidSet, Terms
from vdev.iommu.settings import EndpointSettings, PasidSettings, UnitSettings
from vdev.iommu.tag import Tag
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire

ACCEL, NARROW, HOLED, WITHOUT = 0x100, 0x108, 0x110, 0x118  # 20 bits; 4 bits and PASIDs of its own; regions; none
WIDE = PasidSettings(20, execute=True, privileged=True)
SMALL = PasidSettings(4, reserved=((3, 5), (14, 16)))
ENDPOINTS = (
    EndpointSettings(ACCEL, "accel", (), WIDE),
    EndpointSettings(NARROW, "narrow", (), SMALL),
    EndpointSettings(HOLED, "holed", (MSI, HOLE), WIDE),
    EndpointSettings(WITHOUT, "without"),
)
UNIT = UnitSettings("iommu0", pasids=True)
LOOSE = replace(UNIT, isolation="off")
UNMANAGED = ~pasid_wire.F_PASID_ALLOC
NEITHER = ~pasid_wire.FEATURES
BYPASS, MIRROR = pasid_wire.ATTACH_PASID_F_BYPASS, pasid_wire.ATTACH_PASID_F_MIRROR_RID


class Vm:
    """One VM with an allocator, its set and units; requests go to the first unless told. Statuses come back."""

    def __init__(
        self,
        settings: UnitSettings = UNIT,
        *,
        units: int = 1,
        accept: int = -1,
        terms: Terms = TERMS,
        endpoints: Sequence[EndpointSettings] = ENDPOINTS,
    ) -> None:
        self.events: list[Event] = []
        self.allocator = PlainAllocator(terms)
        self.set = PasidSet(self.allocator, self.events.append)
        names = [settings.name, *(f"{settings.name}-{number}" for number in range(1, units))]
        self.units = [Engine(replace(settings, name=name), endpoints, self.events.append, self.set) for name in names]
        for unit in self.units:
            unit.set_features(accept)
        self.unit = self.units[0]

    def send(self, request: bytes, writable_nbytes: int = 4, unit: Engine | None = None) -> bytes:
        """The whole answer, with the allocator's help where that is needed."""
        unit = unit or self.unit
        reply = unit.handle(request, writable_nbytes)
        wait, unit.wait = unit.wait, None
        if wait is not None and wait.late is not None:
            self.allocator.answer()
            return wait.answer() or b""
        return reply

    def status(self, request: bytes, writable_nbytes: int = 4, unit: Engine | None = None) -> int:
        return self.send(request, writable_nbytes, unit)[-wire.TAIL_NBYTES]

    def state(self) -> tuple[object, ...]:
        """All a driver could tell apart."""
        return self.unit.snapshot(), self.unit.config_bytes(), self.set.list_pasids(), self.unit.pasids.list_pairs()

    def attach(self, domain: int, endpoint: int, pasid: int, flags: int = 0, unit: Engine | None = None) -> int:
        return self.status(attach_request(domain, endpoint, pasid, flags), unit=unit)

    def mirror(self, endpoint: int, pasid: int, unit: Engine | None = None) -> int:
        return self.attach(0, endpoint, pasid, MIRROR, unit)

    def detach(self, domain: int, endpoint: int, pasid: int, unit: Engine | None = None) -> int:
        return self.status(detach_request(domain, endpoint, pasid), unit=unit)

    def alloc(self, first: int = 1, last: int = pasid_wire.PASID_LAST, unit: Engine | None = None) -> int:
        """The PASID, or minus the status."""
        pasid, _, status = self.alloc_answer(first, last, unit)
        return -status if status else pasid

    def alloc_answer(
        self, first: int = 1, last: int = pasid_wire.PASID_LAST, unit: Engine | None = None
    ) -> tuple[int, int, int]:
        """PASID, remaining, status."""
        reply = self.send(alloc_request(first, last), 12, unit)
        granted = pasid_wire.PasidGranted.parse(reply)
        return granted.pasid, granted.remaining, reply[8]

    def free(self, first: int, last: int | None = None, unit: Engine | None = None) -> tuple[int, int]:
        """How many were freed, status."""
        reply = self.send(free_request(first, first if last is None else last), 12, unit)
        return pasid_wire.PasidFreed.parse(reply).freed, reply[8]

    def attached(self, domain: int = 1, endpoint: int = ACCEL, unit: int = 0) -> int:
        """A PASID in a domain with a page at IOVA 0x1000."""
        pasid = self.alloc(unit=self.units[unit])
        self.attach(domain, endpoint, pasid, unit=self.units[unit])
        map_(self.units[unit], domain, 0x1000, 0x1FFF)
        return pasid

    def flying(self, pasid: int, endpoint: int = ACCEL, unit: int = 0) -> Flight:
        """An access with `pasid` in flight, to a page that is there."""
        return self.units[unit].begin(endpoint, 0x1000, 8, READ, Tag(pasid))

    def waits(self, request: bytes, room: int = 4, unit: int = 0) -> Wait | None:
        """What the answer to `request` waits for."""
        self.units[unit].handle(request, room)
        wait, self.units[unit].wait = self.units[unit].wait, None
        return wait

    def reach(self, endpoint: int, pasid: int, iova: int, access: int = 1, unit: Engine | None = None) -> int:
        """Where one byte leads; raises TranslationFault."""
        return (unit or self.unit).translate(endpoint, iova, 1, access, Tag(pasid))[0][0]


def attach_request(domain: int, endpoint: int, pasid: int, flags: int = 0, reserved: bytes = bytes(8)) -> bytes:
    return pasid_wire.AttachPasid(pasid_wire.T_ATTACH_PASID, Z3, domain, endpoint, pasid, flags, reserved).pack()


def detach_request(domain: int, endpoint: int, pasid: int, reserved: bytes = bytes(12)) -> bytes:
    return pasid_wire.DetachPasid(pasid_wire.T_DETACH_PASID, Z3, domain, endpoint, pasid, reserved).pack()


def alloc_request(first: int, last: int, reserved: bytes = bytes(8)) -> bytes:
    return pasid_wire.PasidAlloc(pasid_wire.T_PASID_ALLOC, Z3, first, last, reserved).pack()


def free_request(first: int, last: int, reserved: bytes = bytes(8)) -> bytes:
    return pasid_wire.PasidFree(pasid_wire.T_PASID_FREE, Z3, first, last, reserved).pack()
