"""The numbers of machine.yaml, and requests in them."""

from __future__ import annotations

from guest_tests.payload.direct import READ, WRITE, Map, Status, Unmap, Viommu
from guest_tests.payload.direct.wire import Request

EP, OTHER_EP = 0x100, 0x200  # behind the narrow unit; the first has a reserved region of its own
BYTES_EP = 0x300  # behind the unit of single bytes
GRANULE = 0x10000
INPUT_START, INPUT_STOP = 0x100000, 0x1000000
FIRST_DOMAIN, LAST_DOMAIN = 3, 6
RESERVED_START, RESERVED_STOP = 0x200000, 0x210000  # for EP
MSI_START, MSI_STOP = 0xF00000, 0xF10000  # for both
PROBE_SIZE = 80
MAX_MAPPINGS_PER_DOMAIN = 4
MAX_REQUEST_NBYTES = 160
BYTES_MAX_MAPPINGS = 5
MAX_U64 = 2**64 - 1


def status(viommu: Viommu, request: Request | bytes) -> Status | int | None:
    """How `request` is answered."""
    return viommu.send(request).status


def mapping(
    start: int, stop: int, *, domain: int = FIRST_DOMAIN, phys_start: int = 0, flags: int = READ | WRITE
) -> Map:
    """MAP of [start, stop)."""
    return Map(domain=domain, virt_start=start, virt_end=stop - 1, phys_start=phys_start, flags=flags)


def unmapping(start: int, stop: int, *, domain: int = FIRST_DOMAIN) -> Unmap:
    """UNMAP of [start, stop)."""
    return Unmap(domain=domain, virt_start=start, virt_end=stop - 1)
