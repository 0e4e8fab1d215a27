"""Answers by the letter of the specification. `compat`, where all is answered whole, is what ../direct tests."""

from __future__ import annotations

import pytest

from guest_tests.payload.direct import (
    ATTACH_BYPASS,
    MMIO,
    READ,
    Accel,
    Answer,
    DmaArena,
    EngineStopped,
    Feature,
    Reason,
    ResvMem,
    Status,
    Subtype,
    Viommu,
)
from guest_tests.payload.direct.wire import Attach, Detach, Map, Probe, Request, Unmap
from guest_tests.payload.fixtures import OpenAccel, OpenViommu

PAGE = 4096
UNWRITTEN = b"\xee"
REQUESTS: dict[str, Request] = {
    "ATTACH": Attach(domain=1, endpoint=0x100),
    "DETACH": Detach(domain=1, endpoint=0x100),
    "MAP": Map(domain=1, virt_start=0x2000, virt_end=0x2FFF, phys_start=0, flags=READ),
    "UNMAP": Unmap(domain=1, virt_start=0x2000, virt_end=0x2FFF),
    "PROBE": Probe(endpoint=0x100),
}


@pytest.fixture
def bare(open_viommu: OpenViommu) -> Viommu:
    """The second unit: no PROBE, no bypass, no MMIO."""
    return open_viommu(1)


def is_unwritten(answer: Answer) -> bool:
    """Used length 0, and no byte touched."""
    return answer.used_nbytes == 0 and answer.written == UNWRITTEN * len(answer.written)


@pytest.mark.parametrize("number", [0, 6, 0x7F, 0xFF])
def test_a_request_of_unknown_type_comes_back_unwritten(viommu: Viommu, number: int) -> None:
    # D11: SHOULD NOT write, SHOULD return used length 0
    answer = viommu.send(bytes([number]) + bytes(35), nwritable=16)

    assert is_unwritten(answer)


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_request_one_byte_too_short_for_its_type_comes_back_unwritten(viommu: Viommu, kind: str) -> None:
    # D15
    answer = viommu.send(REQUESTS[kind].pack()[:-1], nwritable=viommu.config.probe_size + 4)

    assert is_unwritten(answer)


def test_a_request_without_a_whole_head_comes_back_unwritten(viommu: Viommu) -> None:
    assert is_unwritten(viommu.send(b"\x01\0\0", nwritable=4))


def test_a_short_map_maps_nothing(viommu: Viommu, mapped_accel: Accel) -> None:
    request = Map(domain=mapped_accel.domain, virt_start=0x2000, virt_end=0x2FFF, phys_start=0, flags=READ)

    viommu.send(request.pack()[:-1])

    with mapped_accel.refused(0x2000, READ):
        mapped_accel.checksum(0x2000, 1)


def test_the_next_request_is_served_after_one_that_came_back_unwritten(viommu: Viommu, accel: Accel) -> None:
    viommu.send(bytes([99]) + bytes(35))

    viommu.attach(domain=1, endpoint=accel.endpoint)


def test_a_refused_request_is_answered_whole(viommu: Viommu) -> None:
    # D18; D13: tail.reserved SHOULD be zero
    answer = viommu.send(Attach(domain=1, endpoint=0xFFFF))

    assert (answer.used_nbytes, answer.written) == (4, bytes([Status.NOENT, 0, 0, 0]))


def test_a_probe_with_too_little_room_is_refused_and_not_left_unwritten(viommu: Viommu, accel: Accel) -> None:
    # D51: SHOULD NOT write properties, SHOULD reject INVAL
    nbytes = viommu.config.probe_size + 3

    answer = viommu.send(Probe(endpoint=accel.endpoint), nwritable=nbytes)

    assert answer.status == Status.INVAL
    assert answer.written == bytes(nbytes - 4) + bytes([Status.INVAL, 0, 0, 0])


def test_probe_tells_of_a_region_smaller_than_a_page(viommu: Viommu, accel: Accel) -> None:
    regions = [found for found in viommu.probe(accel.endpoint) if isinstance(found, ResvMem)]

    assert ResvMem(Subtype.RESERVED, 0x1000, 0x1800) in regions
    assert ResvMem(Subtype.MSI, 0xFEE0_0000, 0xFEF0_0000) in regions


@pytest.mark.parametrize("nwritable", [4, 516])
def test_a_probe_that_is_not_offered_comes_back_unwritten(bare: Viommu, open_accel: OpenAccel, nwritable: int) -> None:
    # D47: SHOULD NOT write, used length 0
    answer = bare.send(Probe(endpoint=open_accel(2).endpoint), nwritable=nwritable)

    assert is_unwritten(answer)


def test_the_unit_with_little_offers_no_probe_bypass_or_mmio(bare: Viommu) -> None:
    hidden = Feature.PROBE | Feature.BYPASS_CONFIG | Feature.MMIO | Feature.BYPASS

    assert bare.transport.offered() & hidden == 0


def test_the_mmio_flag_is_unknown_where_it_is_not_offered(bare: Viommu, open_accel: OpenAccel) -> None:
    # D32: unknown flag bit MUST be rejected INVAL
    bare.attach(domain=1, endpoint=open_accel(2).endpoint)

    answer = bare.send(Map(domain=1, virt_start=0, virt_end=0, phys_start=0, flags=READ | MMIO))

    assert answer.status == Status.INVAL


def test_the_bypass_flag_is_unknown_where_it_is_not_offered(bare: Viommu, open_accel: OpenAccel) -> None:
    # D17: unknown flag bit MUST be rejected INVAL
    answer = bare.send(Attach(domain=1, endpoint=open_accel(2).endpoint, flags=ATTACH_BYPASS))

    assert answer.status == Status.INVAL


def test_the_bypass_byte_stays_zero_where_it_is_not_offered(bare: Viommu) -> None:
    bare.bypass = True

    assert not bare.bypass


def test_an_unattached_endpoint_reaches_nothing_where_bypass_is_not_offered(
    bare: Viommu, open_accel: OpenAccel, dma: DmaArena
) -> None:
    # D14
    accel, target = open_accel(2), dma.alloc(PAGE)
    accel.start()

    with pytest.raises(EngineStopped):
        accel.fill(target.gpa, PAGE, 0xFF)

    assert bare.wait_fault().reason == Reason.DOMAIN
    assert target.read() == bytes(PAGE)


@pytest.mark.parametrize(("domain", "status"), [(0, Status.RANGE), (1, Status.OK), (20, Status.OK), (21, Status.RANGE)])
def test_a_domain_number_outside_its_range_is_refused(
    viommu: Viommu, accel: Accel, domain: int, status: Status
) -> None:
    assert viommu.send(Attach(domain=domain, endpoint=accel.endpoint)).status == status


def test_one_domain_more_than_the_limit_is_refused_and_the_first_goes_on(viommu: Viommu, open_accel: OpenAccel) -> None:
    first, second = open_accel(0).start_in(viommu, domain=1), open_accel(1)

    answer = viommu.send(Attach(domain=2, endpoint=second.endpoint))

    assert answer.status == Status.NOMEM
    first.nop()


def test_at_the_limit_of_domains_an_endpoint_may_still_move_to_a_new_one(viommu: Viommu, accel: Accel) -> None:
    viommu.attach(domain=1, endpoint=accel.endpoint)

    accel.start_in(viommu, domain=2)

    accel.nop()


def test_one_mapping_more_than_the_limit_is_refused_until_one_goes(viommu: Viommu, mapped_accel: Accel) -> None:
    for number in range(63):  # the engine's ring is one as well
        viommu.map(domain=mapped_accel.domain, iova=0x2000 + number, gpa=0, nbytes=1)
    request = Map(domain=mapped_accel.domain, virt_start=0x3000, virt_end=0x3000, phys_start=0, flags=READ)

    before = viommu.send(request).status
    viommu.unmap(domain=mapped_accel.domain, iova=0x2000, nbytes=1)

    assert (before, viommu.send(request).status) == (Status.NOMEM, Status.OK)
