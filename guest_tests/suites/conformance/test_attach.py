"""ATTACH: what it checks, in which order, and how endpoints and domains come together. virtio 1.4, "ATTACH request"."""

from __future__ import annotations

import pytest
from asking import (
    DOMAIN,
    EP,
    OTHER_DOMAIN,
    OTHER_EP,
    UNKNOWN_ENDPOINTS,
    domains,
    exists,
    is_mapped,
    map_pages,
    of,
    one_byte_set,
    status,
    statuses,
)

from guest_tests.payload.direct import ATTACH_BYPASS, Attach, Feature, Status, Viommu
from guest_tests.payload.fixtures import OpenViommu
from guest_tests.payload.host import Host


def test_d10_d24_attach_to_a_domain_that_is_not_there_creates_it(viommu: Viommu, host: Host) -> None:
    """D24: ATTACH creates the domain. D10: success is OK."""
    assert not exists(viommu, DOMAIN)

    answer = viommu.send(Attach(domain=DOMAIN, endpoint=EP))

    assert answer.status == Status.OK
    assert domains(host) == {DOMAIN: ([EP], 0)}


def test_d16_attach_with_any_of_its_reserved_bytes_set_is_refused(viommu: Viommu, host: Host) -> None:
    """D16: the device MUST reject a request whose reserved field is not zero, with INVAL."""
    requests = [Attach(domain=DOMAIN, endpoint=EP, reserved=reserved) for reserved in one_byte_set(4)]

    answers = viommu.submit(requests)

    assert [answer.status for answer in answers] == [Status.INVAL] * 4
    assert domains(host) == {}


def test_d17_attach_with_any_unknown_flag_is_refused(viommu: Viommu) -> None:
    """D17: the device MUST reject a flag it does not know, with INVAL."""
    requests = {f"bit {bit}": Attach(domain=DOMAIN, endpoint=EP, flags=1 << bit) for bit in range(1, 32)}

    assert statuses(viommu, requests) == dict.fromkeys(requests, Status.INVAL)
    assert not exists(viommu, DOMAIN)


def test_d17_attach_with_a_known_and_an_unknown_flag_is_refused(viommu: Viommu) -> None:
    """D17, where one of the bits is known."""
    assert status(viommu, Attach(domain=DOMAIN, endpoint=EP, flags=ATTACH_BYPASS | 2)) == Status.INVAL
    assert not exists(viommu, DOMAIN)


def test_d18_attach_of_an_endpoint_the_unit_does_not_know_is_refused(viommu: Viommu) -> None:
    """D18: the device MUST reject an endpoint that does not exist, with NOENT."""
    requests = {name: Attach(domain=DOMAIN, endpoint=endpoint) for name, endpoint in UNKNOWN_ENDPOINTS.items()}

    assert statuses(viommu, requests) == dict.fromkeys(UNKNOWN_ENDPOINTS, Status.NOENT)
    assert not exists(viommu, DOMAIN)


@pytest.mark.parametrize("domain", [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_d23_any_id_of_the_domain_range_can_be_attached_to(viommu: Viommu, host: Host, domain: int) -> None:
    """D23: what is not rejected MUST be attached. The domain range is all of 32 bits here."""
    assert status(viommu, Attach(domain=domain, endpoint=EP)) == Status.OK
    assert domains(host) == {domain: ([EP], 0)}


def test_d19_two_endpoints_may_share_a_domain(viommu: Viommu, host: Host) -> None:
    """D19: a second endpoint MAY be attached; this device does."""
    viommu.attach(domain=DOMAIN, endpoint=EP)

    assert status(viommu, Attach(domain=DOMAIN, endpoint=OTHER_EP)) == Status.OK
    assert domains(host) == {DOMAIN: ([EP, OTHER_EP], 0)}


@pytest.mark.parametrize("first", of({"paging-then-bypass": 0, "bypass-then-paging": ATTACH_BYPASS}))
def test_d20_attach_with_another_bypass_flag_than_the_domain_has_is_refused(
    viommu: Viommu, host: Host, first: int
) -> None:
    """D20: an inconsistent BYPASS flag SHOULD be rejected with INVAL."""
    viommu.attach(domain=DOMAIN, endpoint=EP, flags=first)

    answer = viommu.send(Attach(domain=DOMAIN, endpoint=OTHER_EP, flags=first ^ ATTACH_BYPASS))

    assert answer.status == Status.INVAL
    assert domains(host) == {DOMAIN: ([EP], 0)}


def test_d21_d29_attach_moves_the_only_endpoint_of_a_domain_which_ends(viommu: Viommu, host: Host) -> None:
    """D21: SHOULD behave as DETACH and then ATTACH. D29: the domain ceases with its last endpoint."""
    viommu.attach(domain=DOMAIN, endpoint=EP)
    viommu.ask(map_pages(16))

    assert status(viommu, Attach(domain=OTHER_DOMAIN, endpoint=EP)) == Status.OK

    assert domains(host) == {OTHER_DOMAIN: ([EP], 0)}
    assert not exists(viommu, DOMAIN)


def test_d21_attach_moves_one_of_two_endpoints_and_leaves_the_other(viommu: Viommu, host: Host) -> None:
    """D21: as DETACH and then ATTACH: the old domain lives on with its mappings."""
    viommu.attach(domain=DOMAIN, endpoint=EP)
    viommu.attach(domain=DOMAIN, endpoint=OTHER_EP)
    viommu.ask(map_pages(16))

    viommu.attach(domain=OTHER_DOMAIN, endpoint=EP)

    assert domains(host) == {DOMAIN: ([OTHER_EP], 1), OTHER_DOMAIN: ([EP], 0)}


def test_d21_attach_moves_an_endpoint_into_a_living_domain(viommu: Viommu, host: Host) -> None:
    """D21, to a domain that exists and has mappings."""
    viommu.attach(domain=DOMAIN, endpoint=EP)
    viommu.ask(map_pages(16))
    viommu.attach(domain=OTHER_DOMAIN, endpoint=OTHER_EP)

    viommu.attach(domain=DOMAIN, endpoint=OTHER_EP)

    assert domains(host) == {DOMAIN: ([EP, OTHER_EP], 1)}


def test_g9_attach_to_the_domain_it_is_in_changes_nothing(viommu: Viommu) -> None:
    """The specification is silent; this device answers OK, and mappings stay (engine.py)."""
    viommu.attach(domain=DOMAIN, endpoint=EP)
    viommu.ask(map_pages(16))

    assert status(viommu, Attach(domain=DOMAIN, endpoint=EP)) == Status.OK
    assert is_mapped(viommu, 16)


def test_d20_g9_attach_to_its_own_domain_with_another_bypass_flag_is_refused(viommu: Viommu, host: Host) -> None:
    """D20 holds for the only endpoint of a domain as well: a domain does not change its kind."""
    viommu.attach(domain=DOMAIN, endpoint=EP)

    assert status(viommu, Attach(domain=DOMAIN, endpoint=EP, flags=ATTACH_BYPASS)) == Status.INVAL
    assert domains(host) == {DOMAIN: ([EP], 0)}


REFUSED = {
    "reserved": Attach(domain=OTHER_DOMAIN, endpoint=EP, reserved=b"\1\0\0\0"),
    "flags": Attach(domain=OTHER_DOMAIN, endpoint=EP, flags=2),
    "another-bypass-flag": Attach(domain=1000, endpoint=EP),
}


@pytest.mark.parametrize("request_", of(REFUSED))
def test_d16_d17_d20_a_refused_attach_leaves_the_endpoint_where_it_was(
    viommu: Viommu, host: Host, request_: Attach
) -> None:
    """D16, D17, D20: rejected means not attached, and not detached either."""
    viommu.attach(domain=DOMAIN, endpoint=EP)
    viommu.ask(map_pages(16))
    viommu.attach(domain=1000, endpoint=OTHER_EP, flags=ATTACH_BYPASS)

    assert status(viommu, request_) == Status.INVAL

    assert domains(host) == {DOMAIN: ([EP], 1), 1000: ([OTHER_EP], 0)}


def test_g7_bypass_flag_is_unknown_unless_bypass_config_was_negotiated(open_viommu: OpenViommu) -> None:
    """D17: the flag belongs to BYPASS_CONFIG; without it, it is a flag like any unknown one."""
    viommu = open_viommu(without=Feature.BYPASS_CONFIG)

    assert status(viommu, Attach(domain=DOMAIN, endpoint=EP, flags=ATTACH_BYPASS)) == Status.INVAL
    assert status(viommu, Attach(domain=DOMAIN, endpoint=EP)) == Status.OK


ORDER = {
    "reserved-before-endpoint": (Attach(domain=DOMAIN, endpoint=0, reserved=b"\0\0\0\1"), Status.INVAL),
    "flags-before-endpoint": (Attach(domain=DOMAIN, endpoint=0, flags=8), Status.INVAL),
    "endpoint-before-bypass-flag": (Attach(domain=DOMAIN, endpoint=0, flags=ATTACH_BYPASS), Status.NOENT),
}


@pytest.mark.parametrize(("request_", "expected"), of(ORDER))
def test_g14_attach_reports_the_first_of_two_problems(viommu: Viommu, request_: Attach, expected: Status) -> None:
    """The order is this device's own (engine.py): reserved, flags, endpoint, domain."""
    viommu.attach(domain=DOMAIN, endpoint=EP)

    assert status(viommu, request_) == expected


def test_d21_d29_a_thousand_domains_one_after_the_other(viommu: Viommu, host: Host) -> None:
    """D21, D29: each move ends the domain before it, so nothing piles up."""
    answers = viommu.submit([Attach(domain=number, endpoint=EP) for number in range(1000)])

    assert {answer.status for answer in answers} == {Status.OK}
    assert domains(host) == {999: ([EP], 0)}
