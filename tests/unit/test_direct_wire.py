"""The user-space driver's requests, properties, faults and configuration, against the device's own layouts."""

from __future__ import annotations

import pytest

from guest_tests.payload.direct import wire as ours
from guest_tests.payload.direct.answers import Answer, Layout, RequestRefused
from guest_tests.payload.direct.vring import Segment
from vdev.wire import viommu as device
from vdev.wire.record import Record

HEAD = b"\x01\x02\x03"
REQUESTS = (
    (
        ours.Attach(domain=1, endpoint=2, flags=3, reserved=b"abcd", head_reserved=HEAD),
        device.Attach(device.T_ATTACH, HEAD, 1, 2, 3, b"abcd"),
    ),
    (
        ours.Detach(domain=1, endpoint=2, reserved=b"abcdefgh", head_reserved=HEAD),
        device.Detach(device.T_DETACH, HEAD, 1, 2, b"abcdefgh"),
    ),
    (
        ours.Map(domain=1, virt_start=2, virt_end=3, phys_start=4, flags=5, head_reserved=HEAD),
        device.Map(device.T_MAP, HEAD, 1, 2, 3, 4, 5),
    ),
    (
        ours.Unmap(domain=1, virt_start=2, virt_end=3, reserved=b"abcd", head_reserved=HEAD),
        device.Unmap(device.T_UNMAP, HEAD, 1, 2, 3, b"abcd"),
    ),
    (
        ours.Probe(endpoint=2, reserved=bytes(range(64)), head_reserved=HEAD),
        device.Probe(device.T_PROBE, HEAD, 2, bytes(range(64))),
    ),
)


@pytest.mark.parametrize(("request_", "expected"), REQUESTS, ids=lambda one: type(one).__name__)
def test_requests_are_what_the_device_reads(request_: ours.Request, expected: Record) -> None:
    assert request_.pack() == expected.pack()


def test_a_request_may_have_any_type() -> None:
    assert ours.Attach(domain=0, endpoint=0, type=0xFF).pack()[0] == 0xFF


@pytest.mark.parametrize("status", device.STATUS_NAMES)
def test_statuses_have_the_devices_names_and_are_found_in_its_tails(status: int) -> None:
    answer = Answer(4, device.TAILS[status])

    assert answer.status == status
    assert ours.Status(status).name == device.STATUS_NAMES[status]


def test_a_status_without_a_name_is_a_number() -> None:
    assert Answer(4, b"\xc8\0\0\0").status == 200


@pytest.mark.parametrize(("used", "nwritable"), [(0, 4), (3, 4), (5, 4)])
def test_an_answer_without_a_whole_tail_has_no_status(used: int, nwritable: int) -> None:
    assert Answer(used, bytes(nwritable)).status is None


def test_the_tail_ends_where_the_device_stopped_writing() -> None:
    assert Answer(4, b"\x06\0\0\0" + b"\xee" * 12).status == ours.Status.NOENT
    assert Answer(516, bytes(512) + b"\x06\0\0\0").status == ours.Status.NOENT


def test_feature_bits_are_the_devices() -> None:
    assert {int(bit): bit.name for bit in ours.Feature if bit < 1 << 7} == device.FEATURE_NAMES


def test_the_configuration_is_read_with_half_open_ranges() -> None:
    raw = device.Config(0xF000, 0x1000, 0x1FFF, 2, 9, 512, 1).pack()

    config = ours.Config.parse(raw[: ours.CONFIG_NBYTES])

    assert (config.input_range, config.domain_range) == ((0x1000, 0x2000), (2, 10))
    assert (config.page_size_mask, config.granule, config.probe_size, config.bypass) == (0xF000, 0x1000, 512, True)
    assert raw[ours.BYPASS_OFFSET] == 1


def test_faults_are_what_the_device_writes() -> None:
    flags = device.FAULT_F_WRITE | device.FAULT_F_ADDRESS
    raw = device.Fault(device.FAULT_R_MAPPING, bytes(3), flags, 0x100, 0, 0x5000).pack()

    assert ours.Fault.parse(raw) == ours.Fault(ours.Reason.MAPPING, ours.WRITE, 0x100, 0x5000)


def test_a_fault_without_an_address_has_none() -> None:
    raw = device.Fault(200, bytes(3), device.FAULT_F_READ, 0x100, 0, 0x5000).pack()

    fault = ours.Fault.parse(raw)

    assert (fault.reason, fault.access, fault.address) == (200, ours.READ, None)


def test_reserved_regions_are_read_and_unknown_properties_kept() -> None:
    msi = device.resv_mem(0xFEE0_0000, 0xFEF0_0000, is_msi=True)
    strange = device.Property(0x123, 3).pack() + b"xyz"

    found = list(ours.properties(strange + msi + bytes(64)))

    assert found == [
        ours.UnknownProperty(0x123, b"xyz"),
        ours.ResvMem(ours.Subtype.MSI, 0xFEE0_0000, 0xFEF0_0000),
    ]


def test_a_property_that_leaves_the_buffer_ends_the_list() -> None:
    assert list(ours.properties(device.Property(1, 20).pack() + bytes(19))) == []


def test_a_refusal_says_what_was_asked_and_what_was_answered() -> None:
    request = ours.Attach(domain=1, endpoint=0x777)

    refused = RequestRefused(request, Answer(4, b"\x06\0\0\0"))
    silent = RequestRefused(request, Answer(0, b"\xee" * 4))

    assert str(refused).startswith("Attach(domain=1, endpoint=1911")
    assert str(refused).endswith("was answered NOENT (6)")
    assert refused.status == ours.Status.NOENT
    assert str(silent).endswith("was answered nothing (used length 0 of 4)")
    assert silent.status is None


def test_a_layout_cuts_parts_where_it_is_told() -> None:
    layout = Layout(readable=(4, 0, 16), writable=(1, 3))

    assert layout.segments(20, 4) == [
        Segment(4),
        Segment(0),
        Segment(16),
        Segment(1, is_writable=True),
        Segment(3, is_writable=True),
    ]


def test_a_layout_in_pieces_has_a_shorter_last_one() -> None:
    assert Layout(piece_nbytes=8).segments(20, 4) == [Segment(8), Segment(8), Segment(4), Segment(4, is_writable=True)]


def test_a_part_of_no_bytes_has_no_descriptor() -> None:
    assert Layout().segments(0, 4) == [Segment(4, is_writable=True)]
    assert Layout().segments(20, 0) == [Segment(20)]


def test_a_layout_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match=r"readable descriptors \[4, 4\] add up to 8, the part has 20 bytes"):
        Layout(readable=(4, 4)).segments(20, 4)
