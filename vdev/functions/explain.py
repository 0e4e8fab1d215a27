"""Why a DMA access of an endpoint would succeed or be refused: the gates of `DmaDoor`, the IOMMU, guest memory.

It takes `DmaDoor.views`'s decisions in their order and changes nothing: nothing is counted, reported or traced.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vdev.errors import ConfigError, MemoryAccessError, TranslationFault
from vdev.functions.dma import WRITE, DmaDoor, joined
from vdev.iommu.engine import Engine
from vdev.iommu.explain import MAX_EXPLAINED, Asked, Step, explain
from vdev.iommu.tag import Tag
from vdev.memory import Region, RegionTable
from vdev.wire.viommu_pasid import FAULT_R_PASID_REQUIRED

TAG_REFUSALS = {  # by the reason's word (`DmaDoor.check_tag`)
    "pasid-disabled": "the endpoint's PASID capability is not enabled",
    "pasid-too-wide": "PASID {pasid:#x} does not fit the capability's {bits} bits",
    "execute-disabled": "it requests execution, which the capability has not enabled",
    "privileged-disabled": "it requests privilege, which the capability has not enabled",
}


@dataclass(frozen=True, slots=True)
class Access:
    """One access of an endpoint, READ=1 or WRITE=2, `tag` with a PASID. `holders` says who holds its DMA, if the door
    is frozen."""

    endpoint: str
    iova: int
    nbytes: int
    access: int
    holders: str = ""
    tag: Tag | None = None


@dataclass(frozen=True, slots=True)
class MemoryPiece:
    """[iova, iova + nbytes) leads to `gpa`, where `memory` is: ram, ram-read-only or no-ram."""

    iova: int
    gpa: int
    nbytes: int
    memory: str


@dataclass(slots=True)
class AccessExplanation:
    """`reason` is the word counters have, "" for an access that succeeds; `fault` the reason of the fault record."""

    steps: list[Step]
    pieces: list[MemoryPiece] = field(default_factory=list)
    reason: str = ""
    fault: int | None = None

    def _refuse(self, step: str, text: str, reason: str) -> AccessExplanation:
        self.steps.append(Step(step, False, text))
        self.reason = reason
        return self

    def _pass(self, step: str, text: str) -> None:
        self.steps.append(Step(step, True, text))


def explain_access(engine: Engine, door: DmaDoor, asked: Access) -> AccessExplanation:
    """What an access would meet now. ConfigError when it crosses more than MAX_EXPLAINED mappings or RAM regions."""
    function, number = door.function, door.endpoint_id
    bdf = f"{number >> 8:02x}:{number >> 3 & 0x1F:02x}.{number & 7}"
    where = f"{asked.endpoint} is endpoint {number:#x} ({bdf}) of {engine.settings.name}"
    told = AccessExplanation([Step("endpoint", True, where)])
    if not function.dma_enabled:
        text = "the function may not reach the bus: bus master is off, or it was stopped or removed"
        return told._refuse("bus-master", text, "bus-master-off")
    told._pass("bus-master", "bus master is on")
    if door.frozen:
        return told._refuse("frozen", f"its DMA is held ({asked.holders})", "frozen")
    told._pass("frozen", "nobody holds its DMA")
    if not _explain_tag(told, door, asked.iova, asked.tag):
        return told
    found = explain(engine.table, engine.settings, number, Asked(asked.iova, asked.nbytes, asked.access, asked.tag))
    told.steps += found.steps
    told.pieces = [piece for given in found.pieces for piece in _split(function.memory, *given)]
    if len(told.pieces) > MAX_EXPLAINED:
        problem = f"the access crosses more than {MAX_EXPLAINED} mappings and RAM regions"
        raise ConfigError("nbytes", problem, "ask for a shorter one")
    if found.fault is not None:
        told.reason, told.fault = found.fault.reason, found.fault.fault_reason
        return told
    try:
        for gpa, nbytes in joined([(gpa, nbytes) for _, gpa, nbytes in found.pieces]):
            function.memory.slices(gpa, nbytes, write=asked.access == WRITE)
    except MemoryAccessError as error:
        return told._refuse("memory", str(error), "unsupported-request")
    told._pass("memory", "it is RAM that allows the access")
    return told


def _explain_tag(told: AccessExplanation, door: DmaDoor, iova: int, tag: Tag | None) -> bool:
    """The door's decisions about PASIDs; whether the access goes on."""
    if tag is None:
        if not door.pasid_only:
            return True
        told._refuse("pasid", "it has no PASID, and the endpoint is configured as dma: pasid_only", "pasid-required")
        told.fault = FAULT_R_PASID_REQUIRED
        return False
    try:
        door.check_tag(iova, tag)
    except TranslationFault as refused:
        bits = door.function.pasid_bits
        told._refuse("pasid", TAG_REFUSALS[refused.reason].format(pasid=tag.pasid, bits=bits), refused.reason)
        told.fault = refused.fault_reason
        return False
    told._pass("pasid", f"the endpoint's capability lets accesses with PASID {tag.pasid:#x} out")
    return True


def _split(memory: RegionTable, iova: int, gpa: int, nbytes: int) -> list[MemoryPiece]:
    """The piece, cut where one RAM region ends and something else begins; at most one piece too many."""
    pieces = []
    for start, length, region in memory.spans(gpa, nbytes):
        pieces.append(MemoryPiece(iova + start - gpa, start, length, _word(region)))
        if len(pieces) > MAX_EXPLAINED:
            break
    return pieces


def _word(region: Region | None) -> str:
    if region is None or region.view is None:
        return "no-ram"
    return "ram" if region.writable else "ram-read-only"
