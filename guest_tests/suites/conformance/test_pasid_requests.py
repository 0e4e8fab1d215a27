"""The requests of the PASID extension: docs/virtio-iommu-pasid.md, sections 4.1 to 4.4."""

from __future__ import annotations

from typing import Any

import pytest
from asking import EP, HOLE, HOLED_EP, OTHER_DOMAIN, OTHER_EP, PLAIN_EP, exists, is_strict, map_span, of, one_byte_set
from pasid_asking import (
    BOTH,
    KEPT,
    MAX_PAIRS,
    NARROW_PASIDS,
    NEVER,
    ONLY_EP,
    QUOTA,
    attach,
    detach,
    every_request,
    status,
)

from guest_tests.payload.direct import (
    ATTACH_BYPASS,
    ATTACH_PASID_BYPASS,
    ATTACH_PASID_MIRROR_RID,
    PASID_LAST,
    AttachPasid,
    Feature,
    PasidAlloc,
    PasidFree,
    Status,
    Viommu,
)
from guest_tests.payload.direct.wire import Request
from guest_tests.payload.fixtures import OpenAccel, OpenViommu
from guest_tests.payload.host import Host

MIRROR = ATTACH_PASID_MIRROR_RID


def state(viommu: Viommu, host: Host) -> tuple[object, ...]:
    """What the driver sees of the set, and the host's view of every PASID and pair."""
    return viommu.pasids.config(), host.control("query-pasids")


@pytest.mark.parametrize("request_", of(every_request(0)))
def test_p8_pasid_0_is_refused(managed: Viommu, request_: Request) -> None:
    assert status(managed, request_) == Status.INVAL


@pytest.mark.parametrize("pasid", [PASID_LAST + 1, 2**32 - 1])
def test_p9_more_than_20_bits_are_out_of_range(managed: Viommu, pasid: int) -> None:
    answers = {name: status(managed, request) for name, request in every_request(pasid).items()}

    assert set(answers.values()) == {Status.RANGE}


def test_p10_a_refused_request_leaves_everything_as_it_was(managed: Viommu, host: Host) -> None:
    mine = managed.pasids.alloc().pasid
    managed.pasids.attach(domain=1, endpoint=EP, pasid=mine)
    before = state(managed, host)
    requests: list[Request] = [
        attach(mine, domain=OTHER_DOMAIN, flags=4),
        attach(mine, domain=OTHER_DOMAIN, flags=ATTACH_PASID_BYPASS),
        attach(NEVER),
        attach(mine, endpoint=0x7777),
        detach(mine, domain=OTHER_DOMAIN),
        detach(mine, endpoint=OTHER_EP),
        PasidAlloc(first=9, last=8),
        PasidFree(first=PASID_LAST, last=1),
    ]

    answers = [status(managed, request) for request in requests]

    assert Status.OK not in answers
    assert state(managed, host) == before


def test_p11_a_freed_a_foreign_and_a_never_allocated_pasid_answer_alike(managed: Viommu, open_accel: OpenAccel) -> None:
    freed = managed.pasids.alloc(first=50).pasid
    managed.pasids.free(freed)
    hosts = open_accel(5).kernel_pasid

    answers = [
        (status(managed, attach(pasid)), status(managed, detach(pasid)), managed.pasids.free(pasid))
        for pasid in (freed, hosts, NEVER)
    ]

    assert answers == [(Status.NOENT, Status.INVAL, 0)] * 3


@pytest.mark.parametrize("request_", of({"alloc": PasidAlloc(), "free": PasidFree(first=1, last=1)}))
def test_p12_unmanaged_there_is_no_alloc_and_no_free(
    unmanaged: Viommu, machine: dict[str, Any], request_: Request
) -> None:
    assert unmanaged.pasids.send(request_).status == (None if is_strict(machine) else Status.UNSUPP)


@pytest.mark.parametrize("request_", of(every_request(9)))
def test_p13_a_readable_part_that_is_too_short(managed: Viommu, machine: dict[str, Any], request_: Request) -> None:
    assert status(managed, request_.pack()[:-1]) == (None if is_strict(machine) else Status.INVAL)


@pytest.mark.parametrize("nwritable", [0, 3, 4, 11])
def test_p13_without_room_for_the_answer_nothing_is_allocated(managed: Viommu, nwritable: int) -> None:
    before = managed.pasids.config().used

    answer = managed.send(PasidAlloc(), nwritable=nwritable)

    assert not answer.ok
    assert managed.pasids.config().used == before


def test_p14_each_reserved_byte_of_attach_is_looked_at(managed: Viommu) -> None:
    mine = managed.pasids.alloc().pasid

    answers = {status(managed, attach(mine, reserved=reserved)) for reserved in one_byte_set(8)}

    assert answers == {Status.INVAL}


@pytest.mark.parametrize("flags", [1 << bit for bit in range(2, 32)] + [ATTACH_PASID_BYPASS | MIRROR])
def test_p14_undefined_flags_and_bypass_with_mirror_are_refused(managed: Viommu, flags: int) -> None:
    mine = managed.pasids.alloc().pasid

    assert status(managed, attach(mine, domain=0, flags=flags)) == Status.INVAL


def test_p14_a_mirroring_pair_names_no_domain(managed: Viommu) -> None:
    mine = managed.pasids.alloc().pasid

    assert status(managed, attach(mine, domain=1, flags=MIRROR)) == Status.INVAL
    assert status(managed, attach(mine, domain=0, flags=MIRROR)) == Status.OK


def test_p14_bypass_is_undefined_without_bypass_config(open_viommu: OpenViommu) -> None:
    viommu = open_viommu(also=BOTH, without=Feature.BYPASS_CONFIG)
    mine = viommu.pasids.alloc().pasid

    assert status(viommu, attach(mine, flags=ATTACH_PASID_BYPASS)) == Status.INVAL


def test_p15_an_endpoint_that_is_unknown_or_has_no_pasids(managed: Viommu, managed_narrow: Viommu) -> None:
    mine = managed.pasids.alloc().pasid

    assert status(managed, attach(mine, endpoint=0x7777)) == Status.NOENT
    assert status(managed_narrow, attach(mine, endpoint=PLAIN_EP, domain=3)) == Status.UNSUPP


@pytest.mark.parametrize("pasid", [*KEPT, 16, 17, PASID_LAST])
def test_p16_a_pasid_too_wide_for_the_endpoint_or_its_own(managed_narrow: Viommu, pasid: int) -> None:
    assert status(managed_narrow, attach(pasid, endpoint=HOLED_EP, domain=3)) == Status.RANGE


def test_p17_managed_only_what_was_allocated_and_is_not_freed_is_attached(managed: Viommu) -> None:
    mine = managed.pasids.alloc().pasid
    before = status(managed, attach(NEVER))
    managed.pasids.attach(domain=1, endpoint=EP, pasid=mine)
    managed.pasids.free(mine)

    assert before == Status.NOENT
    assert status(managed, attach(mine, endpoint=OTHER_EP)) == Status.NOENT


def test_p18_unmanaged_the_first_attach_allocates(unmanaged: Viommu) -> None:
    before = unmanaged.pasids.config().used

    unmanaged.pasids.attach(domain=1, endpoint=EP, pasid=0x4321)
    unmanaged.pasids.attach(domain=1, endpoint=OTHER_EP, pasid=0x4321)

    assert unmanaged.pasids.config().used == before + 1


def test_p18_unmanaged_the_quota_bounds_it(unmanaged: Viommu) -> None:
    room = QUOTA - unmanaged.pasids.config().used

    answers = [status(unmanaged, attach(0x200 + number)) for number in range(room + 1)]

    assert answers == [Status.OK] * room + [Status.NOMEM]


def test_p18_p10_what_was_allocated_for_an_attach_that_is_refused_goes_back(unmanaged: Viommu) -> None:
    before = unmanaged.pasids.config().used

    answer = status(unmanaged, attach(0x200, flags=ATTACH_PASID_BYPASS))

    assert (answer, unmanaged.pasids.config().used) == (Status.UNSUPP, before)


def test_p19_the_domain_is_judged_as_by_attach(managed_narrow: Viommu) -> None:
    mine = managed_narrow.pasids.alloc(NARROW_PASIDS[0], NARROW_PASIDS[-1]).pasid
    out_of_range = status(managed_narrow, attach(mine, endpoint=HOLED_EP, domain=7))
    managed_narrow.attach(domain=3, endpoint=PLAIN_EP)
    managed_narrow.ask(map_span(HOLE.start, HOLE.stop, domain=3))

    assert out_of_range == Status.RANGE
    assert status(managed_narrow, attach(mine, endpoint=HOLED_EP, domain=4)) == Status.NOMEM
    assert status(managed_narrow, attach(mine, endpoint=HOLED_EP, domain=3)) == Status.UNSUPP


def test_p20_no_pair_bypasses(managed: Viommu) -> None:
    mine = managed.pasids.alloc().pasid
    managed.attach(domain=OTHER_DOMAIN, endpoint=OTHER_EP, flags=ATTACH_BYPASS)

    assert status(managed, attach(mine, flags=ATTACH_PASID_BYPASS)) == Status.UNSUPP
    assert status(managed, attach(mine, domain=OTHER_DOMAIN)) == Status.UNSUPP


@pytest.mark.parametrize(("domain", "flags"), [(1, 0), (0, MIRROR)])
def test_p21_attaching_again_the_same_way_changes_nothing(managed: Viommu, host: Host, domain: int, flags: int) -> None:
    mine = managed.pasids.alloc().pasid
    managed.pasids.attach(domain=domain, endpoint=EP, pasid=mine, flags=flags)
    before = state(managed, host)

    managed.pasids.attach(domain=domain, endpoint=EP, pasid=mine, flags=flags)

    assert state(managed, host) == before


def test_p22_the_number_of_pairs_is_bounded(managed_narrow: Viommu) -> None:
    mine = [managed_narrow.pasids.alloc(NARROW_PASIDS[0], NARROW_PASIDS[-1]).pasid for _ in range(MAX_PAIRS + 1)]

    answers = [status(managed_narrow, attach(pasid, endpoint=HOLED_EP, domain=3)) for pasid in mine]

    assert answers == [Status.OK] * MAX_PAIRS + [Status.NOMEM]


def test_p24_a_domain_lives_as_long_as_a_pair_is_in_it(managed: Viommu) -> None:
    mine = managed.pasids.alloc().pasid
    managed.attach(domain=1, endpoint=OTHER_EP)
    managed.pasids.attach(domain=1, endpoint=EP, pasid=mine)

    managed.detach(domain=1, endpoint=OTHER_EP)
    with_pair = exists(managed, 1)
    managed.pasids.detach(domain=1, endpoint=EP, pasid=mine)

    assert (with_pair, exists(managed, 1)) == (True, False)


def test_p27_detach_ignores_each_of_its_reserved_bytes(managed: Viommu) -> None:
    mine = managed.pasids.alloc().pasid

    for reserved in one_byte_set(12):
        managed.pasids.attach(domain=1, endpoint=EP, pasid=mine)
        managed.pasids.detach(domain=1, endpoint=EP, pasid=mine, reserved=reserved)


def test_p28_only_a_pair_that_is_there_is_detached(managed: Viommu) -> None:
    mine = managed.pasids.alloc().pasid
    managed.pasids.attach(domain=1, endpoint=EP, pasid=mine)

    assert status(managed, detach(mine, endpoint=0x7777)) == Status.NOENT
    assert status(managed, detach(mine, endpoint=OTHER_EP)) == Status.INVAL
    assert status(managed, detach(mine, domain=OTHER_DOMAIN)) == Status.INVAL
    assert status(managed, detach(NEVER)) == Status.INVAL
    assert status(managed, detach(mine)) == Status.OK


def test_p30_p37_a_freed_pasid_counts_until_its_last_pair_goes(managed: Viommu) -> None:
    before = managed.pasids.config().used
    mine = managed.pasids.alloc().pasid
    managed.pasids.attach(domain=1, endpoint=EP, pasid=mine)
    managed.pasids.attach(domain=1, endpoint=OTHER_EP, pasid=mine)

    managed.pasids.free(mine)
    used = [managed.pasids.config().used]
    for endpoint in (EP, OTHER_EP):
        managed.pasids.detach(domain=1, endpoint=endpoint, pasid=mine)
        used.append(managed.pasids.config().used)

    assert used == [before + 1, before + 1, before]


def test_p30_unmanaged_the_last_pair_ends_it(unmanaged: Viommu) -> None:
    before = unmanaged.pasids.config().used
    unmanaged.pasids.attach(domain=1, endpoint=EP, pasid=0x55)

    unmanaged.pasids.detach(domain=1, endpoint=EP, pasid=0x55)

    assert unmanaged.pasids.config().used == before


def test_p31_reserved_bytes_and_ranges_that_do_not_rise(managed: Viommu) -> None:
    reserved = one_byte_set(8)

    assert {status(managed, PasidAlloc(reserved=one)) for one in reserved} == {Status.INVAL}
    assert {status(managed, PasidFree(first=1, last=9, reserved=one)) for one in reserved} == {Status.INVAL}
    assert status(managed, PasidAlloc(first=9, last=8)) == Status.RANGE
    assert status(managed, PasidFree(first=9, last=8)) == Status.RANGE


def test_p32_a_granted_pasid_lies_in_the_range_and_is_nobodys(managed: Viommu) -> None:
    config = managed.pasids.config()

    granted = [managed.pasids.alloc(0x300, 0x303).pasid for _ in range(4)]

    assert sorted(granted) == [0x300, 0x301, 0x302, 0x303]
    assert config.start <= 0x300 < config.stop


def test_p32_a_free_pending_pasid_is_granted_to_nobody(managed: Viommu) -> None:
    managed.pasids.alloc(0x300, 0x300)
    managed.pasids.attach(domain=1, endpoint=EP, pasid=0x300)
    managed.pasids.free(0x300)
    while_pending = status(managed, PasidAlloc(first=0x300, last=0x300))

    managed.pasids.detach(domain=1, endpoint=EP, pasid=0x300)

    assert while_pending == Status.NOMEM
    assert managed.pasids.alloc(0x300, 0x300).pasid == 0x300


def test_p33_quota_and_range_used_up_are_told_apart_by_nothing(managed: Viommu) -> None:
    managed.pasids.alloc(0x300, 0x300)
    in_range = managed.pasids.send(PasidAlloc(first=0x300, last=0x300))
    for _ in range(QUOTA - managed.pasids.config().used):
        managed.pasids.alloc()

    by_quota = managed.pasids.send(PasidAlloc())

    assert (by_quota.status, by_quota) == (Status.NOMEM, in_range)


def test_p34_remaining_is_what_the_quota_leaves(managed: Viommu) -> None:
    room = QUOTA - managed.pasids.config().used

    remaining = [managed.pasids.alloc().remaining for _ in range(room)]
    refusal = managed.pasids.send(PasidAlloc())

    assert remaining == list(range(room - 1, -1, -1))
    assert (refusal.used_nbytes, refusal.written[:8]) == (12, bytes(8))


def test_p36_freeing_succeeds_whatever_is_in_the_range(managed: Viommu) -> None:
    for pasid in (0x300, 0x310, 0x400):
        managed.pasids.alloc(pasid, pasid)

    freed = [managed.pasids.free(first, last) for first, last in ((0x301, 0x30F), (0x300, 0x3FF), (1, PASID_LAST))]

    assert freed == [0, 2, 1]


def test_p55_the_hosts_pasid_answers_as_one_that_is_not_there(managed: Viommu, open_accel: OpenAccel) -> None:
    hosts = open_accel(5).kernel_pasid
    before = managed.pasids.config().used

    answers = [status(managed, attach(hosts, endpoint=endpoint)) for endpoint in (EP, ONLY_EP)]
    answers += [status(managed, detach(hosts, endpoint=ONLY_EP, domain=0))]

    assert hosts
    assert answers == [Status.NOENT, Status.NOENT, Status.INVAL]
    assert managed.pasids.free(1, PASID_LAST) == 0
    assert managed.pasids.config().used == before


def test_p55_unmanaged_it_is_not_there_either(unmanaged: Viommu, open_accel: OpenAccel) -> None:
    hosts = open_accel(5).kernel_pasid

    assert status(unmanaged, AttachPasid(domain=1, endpoint=EP, pasid=hosts)) == Status.NOENT
