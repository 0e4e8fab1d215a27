"""PASIDs: the extension's requests as one means them (`Pasids`), and a driver that keeps its rules (`PasidPool`).

    with Viommu.open(bdf, pool, also=Feature.PASID | Feature.PASID_ALLOC) as viommu:
        granted = viommu.pasids.alloc()
        viommu.pasids.attach(domain=1, endpoint=0x100, pasid=granted.pasid)

`Pasids` sends whatever it is told to. `PasidPool` follows clauses Q1 to Q8 of docs/virtio-iommu-pasid.md, and raises
ValueError before it breaks one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .answers import Answer, RequestRefused
from .errors import NotNegotiated
from .wire import TAIL_NBYTES, Feature, PasidWidth, Request, ResvPasid
from .wire_pasid import (
    ANSWER_NBYTES,
    ATTACH_PASID_MIRROR_RID,
    CONFIG_OFFSET,
    CONFIG_WIDTHS,
    PASID_LAST,
    AttachPasid,
    DetachPasid,
    Granted,
    PasidAlloc,
    PasidConfig,
    PasidFree,
)

if TYPE_CHECKING:
    from .viommu import Viommu


class Pasids:
    """The requests of one unit; each raises RequestRefused, or NoAnswer and its like."""

    def __init__(self, viommu: Viommu) -> None:
        """Touches nothing, and needs no negotiation: what a device says without it can be tried."""
        self._viommu = viommu

    def attach(self, *, domain: int, endpoint: int, pasid: int, flags: int = 0, reserved: bytes = bytes(8)) -> Answer:
        """ATTACH_PASID."""
        request = AttachPasid(domain=domain, endpoint=endpoint, pasid=pasid, flags=flags, reserved=reserved)
        return self._viommu.ask(request)

    def mirror(self, *, endpoint: int, pasid: int) -> Answer:
        """ATTACH_PASID with MIRROR_RID: the pair reaches what the endpoint's RID reaches."""
        return self.attach(domain=0, endpoint=endpoint, pasid=pasid, flags=ATTACH_PASID_MIRROR_RID)

    def detach(self, *, domain: int = 0, endpoint: int, pasid: int, reserved: bytes = bytes(12)) -> Answer:
        """DETACH_PASID; of a mirroring pair without a `domain`."""
        return self._viommu.ask(DetachPasid(domain=domain, endpoint=endpoint, pasid=pasid, reserved=reserved))

    def alloc(self, first: int = 1, last: int = PASID_LAST) -> Granted:
        """PASID_ALLOC of one in `first`..`last`."""
        return Granted.parse(self._whole(PasidAlloc(first=first, last=last)).written)

    def free(self, first: int, last: int | None = None) -> int:
        """PASID_FREE of `first`..`last`, or of one; how many there were."""
        answer = self._whole(PasidFree(first=first, last=first if last is None else last))
        return Granted.parse(answer.written).pasid

    def send(self, request: Request | bytes) -> Answer:
        """PASID_ALLOC or PASID_FREE, or what should be one, with room for its answer; a refusal is an Answer."""
        return self._viommu.send(request, nwritable=ANSWER_NBYTES + TAIL_NBYTES)

    def config(self) -> PasidConfig:
        """The extension's fields of the configuration now, all of one generation."""
        return PasidConfig.parse(self._viommu.transport.read_config_bytes(CONFIG_WIDTHS, CONFIG_OFFSET))

    def _whole(self, request: Request) -> Answer:
        """Q6: an answer shorter than its room is a failure, and the status in it is none."""
        answer = self.send(request)
        if answer.used_nbytes != ANSWER_NBYTES + TAIL_NBYTES or not answer.ok:
            raise RequestRefused(request, answer)
        return answer


@dataclass(eq=False)
class OwnPasid:
    """A PASID of a pool's. `release` stops what uses it, detaches it everywhere and frees it, in this order (Q2)."""

    number: int
    pool: PasidPool
    domains: dict[int, int] = field(default_factory=dict)  # by endpoint; 0 of a pair that mirrors
    stops: list[Callable[[], object]] = field(default_factory=list)

    def attach(self, *, domain: int, endpoint: int, stop: Callable[[], object] | None = None) -> None:
        """Let `endpoint` use it in `domain`; `stop` ends that use. Raises ValueError (Q7), RequestRefused."""
        self.pool.check(self.number, endpoint)
        self.pool.viommu.pasids.attach(domain=domain, endpoint=endpoint, pasid=self.number)
        self._attached(endpoint, domain, stop)

    def mirror(self, *, endpoint: int, stop: Callable[[], object] | None = None) -> None:
        """Let `endpoint` use it for what its RID reaches. Raises as `attach`."""
        self.pool.check(self.number, endpoint)
        self.pool.viommu.pasids.mirror(endpoint=endpoint, pasid=self.number)
        self._attached(endpoint, 0, stop)

    def release(self) -> None:
        """Give it back. Raises RequestRefused; what was undone by then is undone."""
        while self.stops:
            self.stops.pop()()
        while self.domains:
            endpoint, domain = self.domains.popitem()
            self.pool.viommu.pasids.detach(domain=domain, endpoint=endpoint, pasid=self.number)
        self.pool.forget(self)

    def _attached(self, endpoint: int, domain: int, stop: Callable[[], object] | None) -> None:
        self.domains[endpoint] = domain
        if stop is not None:
            self.stops.append(stop)


class PasidPool:
    """The PASIDs of a driver that keeps the rules, on a unit started with PASID, managed or not."""

    def __init__(self, viommu: Viommu) -> None:
        """Raises NotNegotiated."""
        if not viommu.features & Feature.PASID:
            raise NotNegotiated("PASID was not negotiated")
        self.viommu = viommu
        self.owned: dict[int, OwnPasid] = {}
        self._config: PasidConfig | None = None
        self._properties: dict[int, tuple[int, list[ResvPasid]]] = {}

    @property
    def is_managed(self) -> bool:
        """Whether the device hands the numbers out."""
        return bool(self.viommu.features & Feature.PASID_ALLOC)

    @property
    def quota(self) -> int:
        """How many it may have. It is read again after a configuration change, or always without interrupts (Q5)."""
        if self.viommu.msix is not None and (vector := self.viommu.vectors[0]).has_fired:
            vector.settle()
            self._config = None
        if self._config is None or self.viommu.msix is None:
            self._config = self.viommu.pasids.config()
        return self._config.quota

    def take(self, first: int = 1, last: int = PASID_LAST) -> OwnPasid:
        """One of `first`..`last`: of the device's, or a number of our own choice where PASIDs are unmanaged.

        It asks whatever was left the last time (Q5). Raises RequestRefused (NOMEM: there is none), ValueError.
        """
        number = self.viommu.pasids.alloc(first, last).pasid if self.is_managed else self._choose(first, last)
        self.owned[number] = own = OwnPasid(number, self)
        return own

    def check(self, number: int, endpoint: int) -> None:
        """Raises ValueError unless `endpoint` can have `number`, and it is ours (Q3, Q7)."""
        if number not in self.owned:
            raise ValueError(f"PASID {number:#x} was not allocated here")
        bits, reserved = self._of(endpoint)
        if number >> bits:
            raise ValueError(f"PASID {number:#x} does not fit the {bits} bits of endpoint {endpoint:#x}")
        if any(span.start <= number < span.stop for span in reserved):
            raise ValueError(f"PASID {number:#x} is reserved for endpoint {endpoint:#x}")

    def forget(self, own: OwnPasid) -> None:
        """`own` is stopped and detached: free it, where it was allocated."""
        if self.is_managed:
            self.viommu.pasids.free(own.number)
        del self.owned[own.number]

    def _of(self, endpoint: int) -> tuple[int, list[ResvPasid]]:
        if endpoint not in self._properties:
            found = self.viommu.probe(endpoint)
            bits = next((one.bits for one in found if isinstance(one, PasidWidth)), 0)
            self._properties[endpoint] = (bits, [one for one in found if isinstance(one, ResvPasid)])
        return self._properties[endpoint]

    def _choose(self, first: int, last: int) -> int:
        config = self.viommu.pasids.config()
        span = range(max(first, config.start), min(last + 1, config.stop))
        number = next((number for number in span if number not in self.owned), None)
        if number is None:
            raise ValueError(f"no PASID is left in {first:#x}..{last:#x}")
        return number
