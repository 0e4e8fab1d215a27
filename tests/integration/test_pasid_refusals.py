"""An accelerator's DMA with a PASID that may not: no canary in any region changes, and completion and fault tell it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.pasid_scene import (
    CANARY,
    DOMAIN,
    ENDPOINT,
    IOVA,
    LACKS,
    REGIONS,
    Lack,
    Rig,
    attached,
    flags_of,
    mirror,
)
from vdev.iommu.tag import Tag
from vdev.wire import pci
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire
from vdev.wire.accelerator import Access, CompletionStatus, Op

OPERATIONS = (Op.FILL, Op.COPY, Op.COMPARE, Op.CHECKSUM)
# FILL reads nothing, so there is no execution it could request
CASES = [
    pytest.param(lack, op, id=f"{lack.name}-{op.name}")
    for lack in LACKS
    for op in OPERATIONS
    if op is not Op.FILL or lack.name not in ("without_execute", "executing")
]
SLICE_NBYTES = 256  # with a granule of one byte
LONG = 8 * SLICE_NBYTES
FILLING = 0x5A5A5A5A5A5A5A5A


@pytest.mark.parametrize("latency_us", [0, 5])
@pytest.mark.parametrize(("lack", "op"), CASES)
def test_p47_no_operation_changes_a_canary_with_a_pasid_that_may_not(lack: Lack, op: Op, latency_us: int) -> None:
    rig = Rig(bits=lack.bits, latency_us=latency_us)
    tag = lack.prepare(rig)
    rig.start(by_rid=not lack.name.startswith("mirror"))  # a RID that is mirrored has to stay as it is
    rig.submit(op, tag, src=IOVA, dst=IOVA, nbytes=64, arg=FILLING)

    done = rig.finish()

    writes = op is Op.FILL
    told = pasid_wire.FaultPasid(lack.reason, bytes(3), flags_of(tag, write=writes), ENDPOINT, tag.pasid, IOVA)
    assert rig.is_untouched
    assert rig.faults() == [told]
    assert (done.status, done.result, done.pasid) == (CompletionStatus.TRANSLATION_FAULT, 0, tag.pasid)
    assert (done.fault_iova, done.access) == (IOVA, Access.WRITE if writes else Access.READ)


def free(rig: Rig, pasid: int) -> None:
    rig.free(pasid)


def detach(rig: Rig, pasid: int) -> None:
    rig.detach(pasid)


def move(rig: Rig, pasid: int) -> None:
    rig.attach(pasid, DOMAIN + 1)


def unmap(rig: Rig, pasid: int) -> None:
    rig.unmap()


def free_and_detach(rig: Rig, pasid: int) -> None:
    rig.free(pasid)
    rig.detach(pasid)


def disable(rig: Rig, pasid: int) -> None:
    rig.set_control(0)


def take_a_right(rig: Rig, pasid: int) -> None:
    rig.set_control(pci.PASID_ENABLE)


Cut = Callable[[Rig, int], None]
NO_PAIR, DISABLED = pasid_wire.FAULT_R_PASID, pasid_wire.FAULT_R_PASID_DISABLED
CUTS: list[tuple[Cut, str, int]] = [
    (free, "pasid-free-pending", NO_PAIR),
    (detach, "pasid-not-attached", NO_PAIR),
    (free_and_detach, "pasid-not-attached", NO_PAIR),
    (move, "not-mapped", wire.FAULT_R_MAPPING),
    (unmap, "not-mapped", wire.FAULT_R_MAPPING),
    (disable, "pasid-disabled", DISABLED),
    (take_a_right, "privileged-disabled", DISABLED),
]
AT_ONCE = (disable, take_a_right)  # register accesses: nothing in flight lands after them


def filled(rig: Rig) -> int:
    """How many bytes of the page the accelerator has filled; AssertionError for a canary beyond them."""
    page, nbytes = rig.regions[0], 0
    while page[nbytes] == FILLING & 0xFF:
        nbytes += 1
    assert page[nbytes:] == CANARY[nbytes:]
    assert rig.regions[1:] == [bytearray(CANARY)] * (len(REGIONS) - 1)
    return nbytes


def fill_halfway(rig: Rig, tag: Tag) -> int:
    """Start a FILL of several slices and let two land, with a latency a third is in flight. The bytes filled."""
    rig.start(by_rid=True)
    rig.submit(Op.FILL, tag, dst=IOVA, nbytes=LONG, arg=FILLING)
    while filled(rig) < 2 * SLICE_NBYTES:
        rig.slice()
    while rig.is_latent and not rig.door.nflights:
        rig.slice()
    return filled(rig)


@pytest.mark.parametrize("latency_us", [0, 5])
@pytest.mark.parametrize(("cut", "word", "reason"), CUTS, ids=[cut.__name__ for cut, _, _ in CUTS])
def test_p29_p38_p47_an_operation_that_loses_its_pasid_halfway_changes_nothing_from_there_on(
    cut: Cut, word: str, reason: int, latency_us: int
) -> None:
    rig = Rig(latency_us=latency_us, granule=1)
    rig.set_control(pci.PASID_ENABLE | pci.PASID_PRIVILEGED)
    tag = Tag(attached(rig), privileged=True)
    landed = fill_halfway(rig, tag)

    cut(rig, tag.pasid)
    held = rig.is_held
    done = rig.finish()

    # what is in flight lands, and before the answer, where the cut is a request
    assert held == (bool(latency_us) and cut not in AT_ONCE)
    landed += SLICE_NBYTES if held else 0
    told = pasid_wire.FaultPasid(reason, bytes(3), flags_of(tag, write=True), ENDPOINT, tag.pasid, IOVA + landed)
    assert filled(rig) == landed
    assert rig.faults() == [told]
    assert rig.door.refused == {word: 1}
    assert (done.status, done.fault_iova, done.result) == (CompletionStatus.TRANSLATION_FAULT, IOVA + landed, landed)


@pytest.mark.parametrize("latency_us", [0, 5])
def test_p25_p47_a_mirroring_pair_reaches_nothing_from_the_detach_of_its_rid_on(latency_us: int) -> None:
    rig = Rig(latency_us=latency_us, granule=1)
    rig.engine.set_bypass(False)
    tag = Tag(mirror(rig))
    rig.start(by_rid=False)
    rig.attach_rid(DOMAIN)
    rig.map()
    rig.submit(Op.FILL, tag, dst=IOVA, nbytes=LONG, arg=FILLING)
    while filled(rig) < 2 * SLICE_NBYTES:
        rig.slice()
    landed = filled(rig)

    rig.ask(wire.Detach(wire.T_DETACH, bytes(3), DOMAIN, ENDPOINT))
    landed += SLICE_NBYTES if rig.is_held else 0
    rig.finish()

    (told,) = rig.faults()
    assert filled(rig) == landed
    assert (told.reason, told.pasid, told.address) == (NO_PAIR, tag.pasid, IOVA + landed)


@pytest.mark.parametrize("latency_us", [0, 5])
def test_p53_a_reset_of_the_function_cancels_what_is_in_flight_and_disables_its_pasids(latency_us: int) -> None:
    rig = Rig(latency_us=latency_us, granule=1)
    tag = Tag(attached(rig))
    landed = fill_halfway(rig, tag)

    rig.reset_function()
    rig.finish()

    assert filled(rig) == landed
    assert rig.door.nflights == 0
    assert rig.function.pasid_control == 0
    assert tag.pasid in rig.engine.table.endpoints[ENDPOINT].pairs
