"""DETACH: what it checks, and the end of domains. virtio 1.4, "DETACH request"."""

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

from guest_tests.payload.direct import ATTACH_BYPASS, Detach, Status, Viommu
from guest_tests.payload.host import Host


def test_d10_d29_detach_of_the_last_endpoint_ends_the_domain(viommu: Viommu, host: Host) -> None:
    """D29: a domain ceases to exist with its last endpoint. D10: success is OK."""
    viommu.attach(domain=DOMAIN, endpoint=EP)

    assert status(viommu, Detach(domain=DOMAIN, endpoint=EP)) == Status.OK

    assert not exists(viommu, DOMAIN)
    assert domains(host) == {}


def test_d25_detach_ignores_each_of_its_reserved_bytes(viommu: Viommu) -> None:
    """D25: the device MUST ignore reserved."""
    for reserved in one_byte_set(8):
        viommu.attach(domain=DOMAIN, endpoint=EP)

        assert status(viommu, Detach(domain=DOMAIN, endpoint=EP, reserved=reserved)) == Status.OK
        assert not exists(viommu, DOMAIN)


def test_d26_detach_of_an_endpoint_the_unit_does_not_know_is_refused(viommu: Viommu) -> None:
    """D26: the device MUST reject an endpoint that does not exist, with NOENT."""
    viommu.attach(domain=DOMAIN, endpoint=EP)
    requests = {name: Detach(domain=DOMAIN, endpoint=endpoint) for name, endpoint in UNKNOWN_ENDPOINTS.items()}

    assert statuses(viommu, requests) == dict.fromkeys(UNKNOWN_ENDPOINTS, Status.NOENT)


def test_d27_detach_of_an_unattached_endpoint_is_refused(viommu: Viommu) -> None:
    """D27: the device MAY answer INVAL where the endpoint is not in the domain; this one does."""
    assert status(viommu, Detach(domain=DOMAIN, endpoint=EP)) == Status.INVAL


@pytest.mark.parametrize("domain", of({"unknown": 77, "zero": 0, "of-the-other-endpoint": OTHER_DOMAIN}))
def test_d27_detach_from_a_domain_it_is_not_in_is_refused(viommu: Viommu, host: Host, domain: int) -> None:
    """D27: INVAL, and nobody is detached."""
    viommu.attach(domain=DOMAIN, endpoint=EP)
    viommu.attach(domain=OTHER_DOMAIN, endpoint=OTHER_EP)

    assert status(viommu, Detach(domain=domain, endpoint=EP)) == Status.INVAL

    assert domains(host) == {DOMAIN: ([EP], 0), OTHER_DOMAIN: ([OTHER_EP], 0)}


def test_d27_a_second_detach_is_refused(viommu: Viommu) -> None:
    """D27, D29: the domain is gone after the first."""
    viommu.attach(domain=DOMAIN, endpoint=EP)
    viommu.detach(domain=DOMAIN, endpoint=EP)

    assert status(viommu, Detach(domain=DOMAIN, endpoint=EP)) == Status.INVAL


def test_d29_detach_of_one_of_two_endpoints_keeps_the_domain_and_its_mappings(viommu: Viommu, host: Host) -> None:
    """D29: only the last endpoint takes the domain along."""
    viommu.attach(domain=DOMAIN, endpoint=EP)
    viommu.attach(domain=DOMAIN, endpoint=OTHER_EP)
    viommu.ask(map_pages(16))

    viommu.detach(domain=DOMAIN, endpoint=EP)

    assert domains(host) == {DOMAIN: ([OTHER_EP], 1)}


def test_d28_d29_mappings_do_not_come_back_with_a_domain_of_the_same_id(viommu: Viommu) -> None:
    """D28, D29: the id may be used again, for a domain without mappings."""
    viommu.attach(domain=DOMAIN, endpoint=EP)
    viommu.ask(map_pages(16))
    viommu.detach(domain=DOMAIN, endpoint=EP)

    viommu.attach(domain=DOMAIN, endpoint=EP)

    assert not is_mapped(viommu, 16)


def test_d29_an_id_may_be_used_again_for_a_domain_of_the_other_kind(viommu: Viommu) -> None:
    """D29: nothing of the old domain is left, its kind included."""
    viommu.attach(domain=DOMAIN, endpoint=EP)
    viommu.detach(domain=DOMAIN, endpoint=EP)

    viommu.attach(domain=DOMAIN, endpoint=EP, flags=ATTACH_BYPASS)

    assert status(viommu, map_pages(16)) == Status.INVAL  # D34: a bypass domain


def test_g19_detach_from_a_bypass_domain_may_name_domain_0(viommu: Viommu, host: Host) -> None:
    """D27 is a MAY: Linux 7 detaches from its shared bypass domain like that, whatever the domain's id."""
    viommu.attach(domain=DOMAIN, endpoint=EP, flags=ATTACH_BYPASS)

    assert status(viommu, Detach(domain=0, endpoint=EP)) == Status.OK
    assert domains(host) == {}


def test_d27_g19_detach_from_a_bypass_domain_by_another_wrong_id_is_refused(viommu: Viommu) -> None:
    """D27: only 0 is forgiven."""
    viommu.attach(domain=DOMAIN, endpoint=EP, flags=ATTACH_BYPASS)

    assert status(viommu, Detach(domain=OTHER_DOMAIN, endpoint=EP)) == Status.INVAL
    assert exists(viommu, DOMAIN)
