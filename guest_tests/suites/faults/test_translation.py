"""An IOMMU that answers wrongly, as an endpoint and its driver see it; and that the same seed does it again."""

from __future__ import annotations

from typing import Any

import pytest
from moving import COPY, PAGE, READING, SOURCE, TARGET, WRITING, Mover
from repeat import OCCURRENCES, assert_repeats

from guest_tests.payload import accel as engine
from guest_tests.payload.direct import READ, WRITE, DmaArena, Reason, TranslationFault
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.fixtures import OpenAccel

OTHER_DOMAIN = 2
HALF: dict[str, Any] = {"end": TARGET + PAGE // 2 - 1}
REFUSALS: list[tuple[str, dict[str, Any], dict[str, Any], int, int]] = [
    # action, its parameters, what it meets, the refused address and access
    ("unmapped", {}, WRITING, TARGET, WRITE),
    ("unmapped", {}, READING, SOURCE, READ),
    ("no-permission", {}, WRITING, TARGET, WRITE),
    ("no-permission", {}, READING, SOURCE, READ),
    ("aperture", HALF, WRITING, TARGET + PAGE // 2, WRITE),
    ("aperture", {"start": TARGET + 1, "end": TARGET + PAGE}, WRITING, TARGET, WRITE),
]
WORDS = {"unmapped": {"not-mapped"}, "no-permission": {"no-read", "no-write"}, "aperture": {"outside-input-range"}}


@pytest.mark.parametrize(("do", "parameters", "match", "iova", "access"), REFUSALS)
def test_an_access_is_refused_and_reported_as_a_real_one(
    mover: Mover, faults: Faults, do: str, parameters: dict[str, Any], match: dict[str, Any], iova: int, access: int
) -> None:
    rule = faults.add("translation", do, match=match, with_=parameters, times=1)
    mover.target.fill(0)

    with mover.accel.refused(iova, access):
        mover.accel.do(COPY)

    fault = mover.viommu.wait_fault()
    (described,) = mover.host.control("query-endpoints", endpoint="accel0")
    assert (fault.reason, fault.address, fault.access) == (Reason.MAPPING, iova, access)
    assert not any(mover.target.read())
    assert WORDS[do] & {refused["name"] for refused in described["dma-refused"]}
    assert rule.fired == 1
    faults.clear()
    assert mover.works()


def test_an_access_inside_the_aperture_passes(mover: Mover, faults: Faults) -> None:
    rule = faults.add("translation", "aperture", match=WRITING, start=TARGET, end=TARGET + PAGE - 1)

    assert mover.works()
    assert rule.fired == 1


def test_a_write_lands_where_the_wrong_domain_has_it(
    mover: Mover, open_accel: OpenAccel, dma: DmaArena, faults: Faults
) -> None:
    stranger = dma.alloc(PAGE)
    mover.viommu.attach(domain=OTHER_DOMAIN, endpoint=open_accel(1).endpoint)
    mover.viommu.map_buffer(OTHER_DOMAIN, TARGET, stranger)
    faults.add("translation", "wrong-domain", match=WRITING, domain=OTHER_DOMAIN)

    done = mover.copy()

    assert done.status == engine.OK
    assert not any(mover.target.read())
    assert stranger.read() == mover.source.read()
    assert mover.viommu.faults() == []
    faults.clear()
    assert mover.works()


def test_a_wrong_domain_that_does_not_exist_is_a_domain_fault(mover: Mover, faults: Faults) -> None:
    faults.add("translation", "wrong-domain", match=READING, domain=OTHER_DOMAIN)

    with mover.accel.refused(SOURCE, READ):
        mover.accel.do(COPY)

    assert mover.viommu.wait_fault().reason == Reason.DOMAIN


def test_a_rule_for_a_pasid_meets_its_accesses_and_no_others(
    mover: Mover, dma: DmaArena, faults: Faults, managed: Any
) -> None:
    accel, viommu = mover.accel, managed  # started anew: the domain is gone
    accel.function.enable_pasids(1)
    pasid, mine = viommu.pasids.alloc().pasid, dma.alloc(PAGE)
    accel.start_in(viommu, domain=1)
    viommu.map_buffer(1, TARGET, mover.target)
    viommu.pasids.attach(domain=3, endpoint=accel.endpoint, pasid=pasid)
    viommu.map_buffer(3, TARGET, mine)
    faults.add("translation", "unmapped", match={"pasid": pasid, "domain": 3})

    accel.fill(TARGET, PAGE, 0x11)
    with pytest.raises(TranslationFault) as caught:
        accel.fill(TARGET, PAGE, 0x22, pasid=pasid)

    assert caught.value.pasid == pasid
    assert viommu.wait_fault().pasid == pasid
    assert not any(mine.read())
    faults.clear()
    accel.fill(TARGET, PAGE, 0x22, pasid=pasid)
    assert set(mine.read()[::8]) == {0x22}


def test_a_ring_that_the_iommu_refuses_halts_the_engine_and_a_new_start_heals_it(mover: Mover, faults: Faults) -> None:
    faults.add("translation", "unmapped", match={"endpoint": "accel0"}, times=1)

    mover.accel.engine.submit(COPY)

    assert mover.settled(0) == engine.PENDING
    assert mover.accel.error == engine.ERROR_RING_FETCH
    mover.viommu.wait_fault()
    mover.accel.start(0x0100_0000)
    assert mover.works()


@pytest.mark.parametrize(
    ("do", "parameters"), [("unmapped", {}), ("no-permission", {}), ("aperture", HALF), ("wrong-domain", {"domain": 9})]
)
def test_the_same_seed_refuses_the_same_accesses(
    mover: Mover, faults: Faults, do: str, parameters: dict[str, Any]
) -> None:
    assert_repeats(faults, lambda: mover.outcomes(OCCURRENCES), "translation", do, match=WRITING, with_=parameters)
