"""PROBE: the property list byte by byte, and buffers of every size. virtio 1.4, "PROBE request"."""

from __future__ import annotations

import pytest
from asking import DOMAIN, EP, MSI_START, MSI_STOP, OTHER_EP, UNKNOWN_ENDPOINTS, of, one_byte_set

from guest_tests.payload.direct import Feature, Probe, ResvMem, Status, Subtype, Viommu
from guest_tests.payload.fixtures import OpenViommu

PROBE_SIZE = 512
WHOLE = PROBE_SIZE + 4
UNTOUCHED = 0xEE


def test_d54_probe_answers_with_the_msi_region(viommu: Viommu) -> None:
    """D54: not more than one MSI region; here exactly one, and nothing else."""
    assert viommu.probe(EP) == [ResvMem(Subtype.MSI, MSI_START, MSI_STOP)]


def test_d10_probe_uses_the_whole_buffer(viommu: Viommu) -> None:
    """The used length covers properties and tail."""
    answer = viommu.send(Probe(endpoint=EP), nwritable=WHOLE)

    assert (answer.used_nbytes, answer.status) == (WHOLE, Status.OK)


def test_d48_d49_d53_the_resv_mem_property_is_laid_out_as_specified(viommu: Viommu) -> None:
    """D48, D53: reserved bits and bytes SHOULD be 0. D49: length MUST exclude the header."""
    written = viommu.send(Probe(endpoint=EP), nwritable=WHOLE).written

    assert written[0:2] == b"\x01\x00"  # type RESV_MEM, the high four bits reserved
    assert written[2:4] == b"\x14\x00"  # 20 bytes follow
    assert written[4:8] == b"\x01\x00\x00\x00"  # subtype MSI, reserved
    assert written[8:16] == MSI_START.to_bytes(8, "little")
    assert written[16:24] == (MSI_STOP - 1).to_bytes(8, "little")  # inclusive


def test_d52_what_properties_leave_of_the_buffer_is_zero(viommu: Viommu) -> None:
    """D52: the device SHOULD fill the remaining bytes with zeros."""
    written = viommu.send(Probe(endpoint=EP), nwritable=WHOLE).written

    assert written[24:PROBE_SIZE] == bytes(PROBE_SIZE - 24)


def test_d45_probe_ignores_each_of_its_reserved_bytes(viommu: Viommu) -> None:
    """D45: the device MUST ignore reserved."""
    expected = viommu.send(Probe(endpoint=EP), nwritable=WHOLE)

    answers = viommu.submit([Probe(endpoint=EP, reserved=reserved) for reserved in one_byte_set(64)], nwritable=WHOLE)

    assert expected.status == Status.OK
    assert answers == [expected] * 64


@pytest.mark.parametrize("endpoint", of(UNKNOWN_ENDPOINTS))
def test_d46_probe_of_an_endpoint_the_unit_does_not_know_is_refused(viommu: Viommu, endpoint: int) -> None:
    """D46: SHOULD be rejected with NOENT. The tail is where it always is, and no property before it."""
    answer = viommu.send(Probe(endpoint=endpoint), nwritable=WHOLE)

    assert (answer.used_nbytes, answer.status) == (WHOLE, Status.NOENT)
    assert answer.written[:PROBE_SIZE] == bytes(PROBE_SIZE)


@pytest.mark.parametrize("nwritable", [4, 5, 23, 24, 28, 256, WHOLE - 4, WHOLE - 1])
def test_d51_probe_with_a_buffer_below_probe_size_is_refused(viommu: Viommu, nwritable: int) -> None:
    """D51: the device SHOULD NOT write properties, and SHOULD reject it with INVAL; the tail is the last four bytes."""
    answer = viommu.send(Probe(endpoint=EP), nwritable=nwritable)

    assert (answer.used_nbytes, answer.status) == (nwritable, Status.INVAL)
    assert answer.written[:-4] == bytes(nwritable - 4)


@pytest.mark.parametrize("more", [1, 4, 100, 4096])
def test_g12_probe_with_a_larger_buffer_answers_at_its_start(viommu: Viommu, more: int) -> None:
    """R24 forbids it; the device answers as if the buffer had the right size."""
    answer = viommu.send(Probe(endpoint=EP), nwritable=WHOLE + more)

    assert (answer.used_nbytes, answer.status) == (WHOLE, Status.OK)
    assert answer.written[WHOLE:] == bytes([UNTOUCHED]) * more


def test_d46_probe_says_the_same_of_an_attached_endpoint(viommu: Viommu) -> None:
    """R5: a driver SHOULD probe before ATTACH, but it may do so later."""
    before = viommu.probe(OTHER_EP)
    viommu.attach(domain=DOMAIN, endpoint=OTHER_EP)

    assert viommu.probe(OTHER_EP) == before


def test_g17_probe_is_served_to_a_driver_that_did_not_accept_it(open_viommu: OpenViommu) -> None:
    """D47 is about a device that does not offer PROBE; this one offers it and has nothing to hide."""
    viommu = open_viommu(without=Feature.PROBE)

    answer = viommu.send(Probe(endpoint=EP), nwritable=WHOLE)

    assert answer.status == Status.OK
