"""Requests too short, too long, unknown, and spread over descriptors in every way. virtio 1.4, "Device operations".

Mode `compat` answers every request with room for a tail; `strict` none that is too short or of an unknown type.
"""

from __future__ import annotations

from typing import Any

import pytest
from asking import DOMAIN, EP, OTHER_DOMAIN, domains, is_strict, map_pages, of, unmap_pages

from guest_tests.payload.direct import (
    INDIRECT,
    UNWRITTEN,
    WRITE_ONLY,
    Attach,
    Detach,
    Layout,
    Probe,
    Segment,
    Status,
    Viommu,
)
from guest_tests.payload.host import Host

PROBE_SIZE = 512
Request = Attach | Detach | Probe
TAIL = 4

# A good request of each type, for a unit with EP in DOMAIN and page 16 mapped, and the bytes written before its tail.
REQUESTS = {
    "attach": (Attach(domain=OTHER_DOMAIN, endpoint=EP).pack(), 0),
    "detach": (Detach(domain=DOMAIN, endpoint=EP).pack(), 0),
    "map": (map_pages(17).pack(), 0),
    "unmap": (unmap_pages(16).pack(), 0),
    "probe": (Probe(endpoint=EP).pack(), PROBE_SIZE),
}
MAX_REQUEST = 65536


@pytest.fixture
def attached(viommu: Viommu) -> Viommu:
    """The unit, with EP in DOMAIN and page 16 mapped."""
    viommu.attach(domain=DOMAIN, endpoint=EP)
    viommu.ask(map_pages(16))
    return viommu


def untouched(nbytes: int) -> bytes:
    """A buffer the device did not write."""
    return bytes([UNWRITTEN]) * nbytes


@pytest.mark.parametrize(("data", "nproperties"), of(REQUESTS))
def test_d15_a_request_cut_short_anywhere_is_refused_and_not_performed(
    attached: Viommu, host: Host, machine: dict[str, Any], data: bytes, nproperties: int
) -> None:
    """`compat`: INVAL, in the tail of the type if that much of the head came, else at once. `strict`: unwritten."""
    for nbytes in range(len(data)):
        place = nproperties if nbytes >= 4 else 0
        written = b"" if is_strict(machine) else bytes(place) + bytes([Status.INVAL, 0, 0, 0])

        answer = attached.send(data[:nbytes], nwritable=nproperties + TAIL)

        assert answer.used_nbytes == len(written), f"{nbytes} bytes"
        assert answer.written == written + untouched(nproperties + TAIL - len(written))
    assert domains(host) == {DOMAIN: ([EP], 1)}


@pytest.mark.parametrize(("data", "nproperties"), of(REQUESTS))
def test_g13_a_request_without_room_for_its_tail_comes_back_unwritten_and_is_not_performed(
    attached: Viommu, host: Host, data: bytes, nproperties: int
) -> None:
    """D15: used length 0, R7: which a driver SHOULD treat as a failure."""
    for nwritable in range(TAIL):
        answer = attached.send(data, nwritable=nwritable)

        assert answer.used_nbytes == 0
        assert answer.written == untouched(nwritable)
    assert domains(host) == {DOMAIN: ([EP], 1)}


@pytest.mark.parametrize(("data", "nproperties"), of(REQUESTS))
def test_g12_bytes_after_a_request_are_ignored(attached: Viommu, data: bytes, nproperties: int) -> None:
    """The specification is silent; a longer one is accepted (engine.py)."""
    answer = attached.send(data + b"\xff" * 1001, nwritable=nproperties + TAIL)

    assert (answer.used_nbytes, answer.status) == (nproperties + TAIL, Status.OK)


@pytest.mark.parametrize(("data", "nproperties"), of(REQUESTS))
def test_g12_room_after_the_tail_is_left_alone(attached: Viommu, data: bytes, nproperties: int) -> None:
    """The answer starts where the writable part starts."""
    more = 1001

    answer = attached.send(data, nwritable=nproperties + TAIL + more)

    assert (answer.used_nbytes, answer.status) == (nproperties + TAIL, Status.OK)
    assert answer.written[nproperties + TAIL :] == untouched(more)


@pytest.mark.parametrize(("data", "nproperties"), of(REQUESTS))
def test_d12_the_reserved_bytes_of_the_head_are_ignored(attached: Viommu, data: bytes, nproperties: int) -> None:
    """D12: the device MUST ignore them."""
    answer = attached.send(data[:1] + b"\xff\xff\xff" + data[4:], nwritable=nproperties + TAIL)

    assert answer.status == Status.OK


ANSWERS = {
    "OK": (Attach(domain=DOMAIN, endpoint=EP), Status.OK),
    "INVAL": (Attach(domain=DOMAIN, endpoint=EP, flags=2), Status.INVAL),
    "NOENT": (Attach(domain=DOMAIN, endpoint=0), Status.NOENT),
    "RANGE": (map_pages(17, phys_start=1), Status.RANGE),
}


@pytest.mark.parametrize(("request_", "expected"), of(ANSWERS))
def test_d13_the_reserved_bytes_of_the_tail_are_zero(attached: Viommu, request_: Request, expected: Status) -> None:
    """D13: SHOULD be zero."""
    assert attached.send(request_).tail == bytes([expected, 0, 0, 0])


def test_d11_a_request_of_any_unknown_type_is_unsupported(viommu: Viommu, machine: dict[str, Any]) -> None:
    """SHOULD NOT write, used length 0, which stock Linux reads as success: `compat` answers UNSUPP."""
    unknown = [0, *range(6, 256)]

    answers = viommu.submit([bytes([number]) + bytes(35) for number in unknown])

    written = b"" if is_strict(machine) else bytes([Status.UNSUPP, 0, 0, 0])
    expected = (len(written), written.ljust(TAIL, bytes([UNWRITTEN])))
    assert {(answer.used_nbytes, bytes(answer.written)) for answer in answers} == {expected}


def test_d11_g13_a_request_of_unknown_type_without_room_for_a_tail_comes_back_unwritten(viommu: Viommu) -> None:
    """D11, and there is no other way."""
    for nwritable in range(TAIL):
        answer = viommu.send(bytes([0x40]) + bytes(35), nwritable=nwritable)

        assert answer.used_nbytes == 0
        assert answer.written == untouched(nwritable)


def test_d11_the_next_request_is_served_after_one_of_unknown_type(viommu: Viommu) -> None:
    """Whether it was answered or came back unwritten."""
    viommu.send(bytes([99]) + bytes(35))

    viommu.attach(domain=DOMAIN, endpoint=EP)


def test_d15_a_request_without_any_readable_byte_is_refused(viommu: Viommu, machine: dict[str, Any]) -> None:
    """D15: there is no type to go by."""
    answer = viommu.send_chain(viommu.requests.ring.chain([Segment(TAIL, is_writable=True)]))

    if is_strict(machine):
        assert (answer.used_nbytes, answer.written) == (0, untouched(TAIL))
    else:
        assert (answer.used_nbytes, answer.status) == (TAIL, Status.INVAL)


def test_g13_a_chain_of_one_empty_descriptor_comes_back(viommu: Viommu) -> None:
    """Nothing to read, nothing to write."""
    answer = viommu.send_chain(viommu.requests.ring.chain([Segment(0)]))

    assert answer.used_nbytes == 0
    assert viommu.send(Attach(domain=DOMAIN, endpoint=EP)).ok


@pytest.mark.parametrize(("data", "nproperties"), of(REQUESTS))
def test_g24_a_request_of_the_largest_size_is_served(attached: Viommu, data: bytes, nproperties: int) -> None:
    """limits.max_request_nbytes, 65536 by default."""
    answer = attached.send(data.ljust(MAX_REQUEST, b"\xff"), nwritable=nproperties + TAIL)

    assert answer.status == Status.OK


@pytest.mark.parametrize(("data", "nproperties"), of(REQUESTS))
def test_g24_a_request_above_the_largest_size_is_refused(
    attached: Viommu, host: Host, data: bytes, nproperties: int
) -> None:
    """INVAL, where the tail of its type is, and it is not performed."""
    answer = attached.send(data.ljust(MAX_REQUEST + 1, b"\xff"), nwritable=nproperties + TAIL)

    assert (answer.used_nbytes, answer.status) == (nproperties + TAIL, Status.INVAL)
    assert domains(host) == {DOMAIN: ([EP], 1)}


# Layouts: where descriptors begin and end means nothing ("the device MUST NOT make assumptions about message framing").


@pytest.mark.parametrize("indirect", of({"direct": False, "indirect": True}))
@pytest.mark.parametrize(("data", "nproperties"), of(REQUESTS))
def test_g10_a_request_split_in_two_at_any_byte_is_served(
    viommu: Viommu, data: bytes, nproperties: int, indirect: bool
) -> None:
    """Each offset, the ends included, where one of the two is empty."""
    for at in range(len(data) + 1):
        viommu.attach(domain=DOMAIN, endpoint=EP)
        viommu.unmap(domain=DOMAIN, iova=0, nbytes=1 << 39)

        answer = viommu.send(data, nproperties + TAIL, Layout(readable=(at, len(data) - at), indirect=indirect))

        assert answer.status == Status.OK, f"split at {at}"


@pytest.mark.parametrize("indirect", of({"direct": False, "indirect": True}))
@pytest.mark.parametrize("name", ["attach", "detach", "map", "unmap"])
def test_g10_a_request_in_single_bytes_is_served(attached: Viommu, name: str, indirect: bool) -> None:
    """A byte in each descriptor, those of the tail too."""
    data, _ = REQUESTS[name]

    answer = attached.send(data, TAIL, Layout(piece_nbytes=1, indirect=indirect))

    assert (answer.used_nbytes, answer.status) == (TAIL, Status.OK)


@pytest.mark.parametrize("piece_nbytes", [3, 7, 24, 100])
def test_d50_g10_properties_are_written_across_descriptors(viommu: Viommu, piece_nbytes: int) -> None:
    """D50: consecutive properties are exactly length + 4 apart, wherever descriptors end."""
    whole = viommu.send(Probe(endpoint=EP), PROBE_SIZE + TAIL)

    answer = viommu.send(Probe(endpoint=EP), PROBE_SIZE + TAIL, Layout(piece_nbytes=piece_nbytes, indirect=True))

    assert answer == whole


TAILS = {"1-3": (1, 3), "2-2": (2, 2), "3-1": (3, 1), "1-1-1-1": (1, 1, 1, 1), "0-4": (0, 4), "4-0": (4, 0)}


@pytest.mark.parametrize("name", TAILS)
def test_g10_a_tail_in_several_descriptors_is_written(viommu: Viommu, name: str) -> None:
    """A tail is four bytes, not a descriptor."""
    answer = viommu.send(Attach(domain=DOMAIN, endpoint=0), layout=Layout(writable=TAILS[name]))

    assert answer.written == bytes([Status.NOENT, 0, 0, 0])


EMPTY = {
    "before-the-request": ((0, 0, 20), (4,)),
    "inside-the-request": ((10, 0, 10), (4,)),
    "between-the-parts": ((20, 0), (0, 4)),
    "after-the-tail": ((20,), (4, 0, 0)),
    "everywhere": ((0, 7, 0, 13, 0), (0, 1, 0, 3, 0)),
}


@pytest.mark.parametrize("name", EMPTY)
def test_g10_empty_descriptors_are_skipped(viommu: Viommu, name: str) -> None:
    """A descriptor of no bytes is one of no bytes."""
    readable, writable = EMPTY[name]

    answer = viommu.send(Attach(domain=DOMAIN, endpoint=EP), layout=Layout(readable=readable, writable=writable))

    assert (answer.used_nbytes, answer.status) == (TAIL, Status.OK)


def test_g10_an_empty_descriptor_may_point_nowhere(viommu: Viommu) -> None:
    """Its address is not looked at: there is nothing there to be reached."""
    chain = viommu.chain(Attach(domain=DOMAIN, endpoint=EP), layout=Layout(readable=(20, 0)))
    chain.parts[1].gpa = 0xFFFFFFFFFFFFFFFF

    assert viommu.send_chain(chain).ok


def test_g10_the_write_flag_of_an_indirect_descriptor_is_ignored(viommu: Viommu) -> None:
    """The device MUST ignore VIRTQ_DESC_F_WRITE in a descriptor that refers to an indirect table."""
    chain = viommu.chain(Attach(domain=DOMAIN, endpoint=EP), layout=Layout(indirect=True))
    chain.descriptors[0].flags = INDIRECT | WRITE_ONLY

    assert viommu.send_chain(chain).ok


@pytest.mark.parametrize("nentries", [257, 1024])
def test_g10_an_indirect_table_may_be_longer_than_the_ring(viommu: Viommu, nentries: int) -> None:
    """A driver MUST NOT; Linux may. Up to 1024 entries are taken (virtio/queue.py)."""
    readable = (20, *[0] * (nentries - 2))

    answer = viommu.send(Attach(domain=DOMAIN, endpoint=EP), layout=Layout(readable=readable, indirect=True))

    assert answer.ok
