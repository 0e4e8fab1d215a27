"""What the modules about PASIDs share: numbers of the machines beside those of asking.py, requests, and engines."""

from __future__ import annotations

from typing import Any

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import (
    PASID_LAST,
    Accel,
    AttachPasid,
    DetachPasid,
    Fault,
    Feature,
    PasidAlloc,
    PasidFree,
    Status,
    Viommu,
)
from guest_tests.payload.direct.wire import Request

BOTH = Feature.PASID | Feature.PASID_ALLOC
QUOTA = 12  # of the VM; one is the kernel PASID of the endpoint that makes no other accesses
KERNEL = 1
ONLY, ONLY_EP = 5, 0x600  # number of that accelerator, and what the unit knows it by
NARROW_PASIDS = range(6, 14)  # what the first endpoint of the narrow unit can have and does not keep
KEPT = (3, 4, 5, 14)  # what it keeps
MAX_PAIRS = 3  # of the narrow unit
RING_DOMAINS, RING_IOVA = 0x8000, 0x0100_0000
NEVER = 0x777  # what no test allocates
REFUSED_ADDRESS = 0x5000


def attach(pasid: int, endpoint: int = 0x100, domain: int = 1, **fields: Any) -> AttachPasid:
    """ATTACH_PASID."""
    return AttachPasid(domain=domain, endpoint=endpoint, pasid=pasid, **fields)


def detach(pasid: int, endpoint: int = 0x100, domain: int = 1, **fields: Any) -> DetachPasid:
    """DETACH_PASID."""
    return DetachPasid(domain=domain, endpoint=endpoint, pasid=pasid, **fields)


def status(viommu: Viommu, request: Request | bytes) -> Status | int | None:
    """How any request of the extension is answered."""
    kind = (request if isinstance(request, bytes) else request.pack())[0]
    has_answer = kind in (PasidAlloc().type, PasidFree(first=1, last=1).type)
    return (viommu.pasids.send(request) if has_answer else viommu.send(request)).status


def every_request(pasid: int) -> dict[str, Request]:
    """Each that names a PASID, for this one; at both ends where there are two."""
    return {
        "attach": attach(pasid),
        "detach": detach(pasid),
        "alloc-first": PasidAlloc(first=pasid, last=PASID_LAST),
        "alloc-last": PasidAlloc(first=1, last=pasid),
        "free-first": PasidFree(first=pasid, last=PASID_LAST),
        "free-last": PasidFree(first=1, last=pasid),
    }


def with_ring_apart(viommu: Viommu, accel: Accel) -> Accel:
    """Start an engine whose ring has a PASID and a domain of its own, so that the RID and other PASIDs are free."""
    accel.function.enable_pasids(7)
    ring = viommu.pasids.alloc(first=0x100).pasid
    domain = RING_DOMAINS + accel.endpoint
    viommu.pasids.attach(domain=domain, endpoint=accel.endpoint, pasid=ring)
    viommu.map_buffer(domain, RING_IOVA, accel.ring)
    return accel.start(RING_IOVA, ring)


def read_at(accel: Accel, iova: int, pasid: int = 0, flags: int = 0, nbytes: int = 8) -> int:
    """Read there; the status of the completion."""
    return accel.run(Operation(engine.CHECKSUM, iova, nbytes=nbytes, pasid=pasid, flags=flags)).status


def refused(viommu: Viommu, accel: Accel, iova: int, pasid: int = 0, flags: int = 0) -> Fault:
    """The fault of a read that must be refused."""
    assert read_at(accel, iova, pasid, flags) == engine.TRANSLATION_FAULT
    return viommu.wait_fault()
