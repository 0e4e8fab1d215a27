"""What accesses with a PASID reach, and the faults of those that may not: docs/virtio-iommu-pasid.md, sections 6, 7."""

from __future__ import annotations

import pytest
from asking import EP, HOLED, HOLED_EP, MSI_START, OTHER_DOMAIN, OTHER_EP, PAGE
from pasid_asking import BOTH, ONLY, ONLY_EP, REFUSED_ADDRESS, read_at, refused, with_ring_apart

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import FLAG_EXECUTE, FLAG_PRIVILEGED, Operation
from guest_tests.payload.direct import READ, WRITE, Accel, DmaArena, Reason, TranslationFault, Viommu
from guest_tests.payload.direct.function import PASID_ENABLE
from guest_tests.payload.direct.wire import Access
from guest_tests.payload.fixtures import OpenAccel, OpenViommu

FIRST, SECOND = 11, 12  # domains of pairs
IOVA = 0x4_0000
NOTHING = 0x9_0000


@pytest.fixture
def accel(managed: Viommu, open_accel: OpenAccel) -> Accel:
    """The first accelerator, running, with its ring in a domain and a PASID of its own."""
    return with_ring_apart(managed, open_accel())


@pytest.fixture
def only(managed: Viommu, open_accel: OpenAccel) -> Accel:
    """The one that makes no accesses without a PASID, likewise."""
    return with_ring_apart(managed, open_accel(ONLY))


def page(viommu: Viommu, dma: DmaArena, domain: int, access: int = READ | WRITE, iova: int = IOVA) -> None:
    """Map a page of memory."""
    viommu.map_buffer(domain, iova, dma.random(PAGE), access)


def pair(viommu: Viommu, domain: int = FIRST, endpoint: int = EP) -> int:
    """A PASID attached to `domain`."""
    pasid = viommu.pasids.alloc().pasid
    viommu.pasids.attach(domain=domain, endpoint=endpoint, pasid=pasid)
    return pasid


def mirror(viommu: Viommu, endpoint: int = EP) -> int:
    """A PASID that follows the RID."""
    pasid = viommu.pasids.alloc().pasid
    viommu.pasids.mirror(endpoint=endpoint, pasid=pasid)
    return pasid


def bypassing(narrow: Viommu, open_accel: OpenAccel) -> Accel:
    """The first endpoint of the narrow unit, whose ring is where its RID bypasses: it is smaller than a granule."""
    narrow.bypass = True
    accel = open_accel(HOLED).start()
    accel.function.enable_pasids()
    return accel


def test_p23_each_pair_reaches_its_own_domain(managed: Viommu, accel: Accel, dma: DmaArena) -> None:
    one, other = pair(managed, FIRST), pair(managed, SECOND)
    source, target = dma.random(PAGE), dma.alloc(PAGE)
    managed.map_buffer(FIRST, IOVA, source)
    managed.map_buffer(SECOND, IOVA, target)
    managed.attach(domain=OTHER_DOMAIN, endpoint=EP)

    first, second = accel.checksum(IOVA, PAGE, pasid=one), accel.checksum(IOVA, PAGE, pasid=other)

    assert first != second
    assert refused(managed, accel, IOVA).reason == Reason.MAPPING  # the RID has a domain of its own


def test_p23_the_same_pasid_on_another_endpoint_is_another_pair(
    managed: Viommu, accel: Accel, open_accel: OpenAccel, dma: DmaArena
) -> None:
    shared = pair(managed, FIRST)
    page(managed, dma, FIRST)
    other = with_ring_apart(managed, open_accel(1))

    assert read_at(accel, IOVA, shared) == engine.OK
    assert refused(managed, other, IOVA, shared).endpoint == OTHER_EP


def test_p24_map_and_unmap_act_on_endpoints_and_pairs_alike(managed: Viommu, accel: Accel, dma: DmaArena) -> None:
    mine = pair(managed)
    managed.attach(domain=FIRST, endpoint=EP)
    page(managed, dma, FIRST)

    mapped = [read_at(accel, IOVA, pasid) for pasid in (0, mine)]
    managed.unmap(domain=FIRST, iova=IOVA, nbytes=PAGE)

    assert mapped == [engine.OK] * 2
    assert [refused(managed, accel, IOVA, pasid).reason for pasid in (0, mine)] == [Reason.MAPPING] * 2


def test_p25_a_mirroring_pair_follows_every_step_of_its_rid(managed: Viommu, accel: Accel, dma: DmaArena) -> None:
    mine = mirror(managed)
    reasons: list[object] = []

    def look() -> None:
        if read_at(accel, IOVA, mine) == engine.OK:
            reasons.append("reaches")
        else:
            reasons.append(managed.wait_fault().reason)

    managed.bypass = False
    look()
    managed.attach(domain=FIRST, endpoint=EP)
    look()
    page(managed, dma, FIRST)
    look()
    managed.attach(domain=SECOND, endpoint=EP)
    look()
    page(managed, dma, SECOND)
    look()
    managed.unmap(domain=SECOND, iova=IOVA, nbytes=PAGE)
    look()
    managed.detach(domain=SECOND, endpoint=EP)
    look()
    managed.bypass = True

    nothing, unmapped = Reason.PASID, Reason.MAPPING
    assert reasons == [nothing, unmapped, "reaches", unmapped, "reaches", unmapped, nothing]


def test_p25_it_has_the_rights_of_the_mapping(managed: Viommu, accel: Accel, dma: DmaArena) -> None:
    mine = mirror(managed)
    managed.attach(domain=FIRST, endpoint=EP)
    page(managed, dma, FIRST, READ)

    assert read_at(accel, IOVA, mine) == engine.OK
    with accel.refused(IOVA, WRITE):
        accel.fill(IOVA, 8, 0, pasid=mine)


@pytest.mark.parametrize("attaches", [False, True], ids=["unattached", "attached"])
def test_p25_p42_of_a_rid_that_bypasses_there_is_nothing_to_reach(
    managed: Viommu, accel: Accel, dma: DmaArena, attaches: bool
) -> None:
    mine, buffer = mirror(managed), dma.random(PAGE)
    managed.bypass = True
    if attaches:
        managed.attach(domain=OTHER_DOMAIN, endpoint=EP, flags=1)

    assert read_at(accel, buffer.gpa) == engine.OK  # without a PASID
    assert refused(managed, accel, buffer.gpa, mine).reason == Reason.PASID
    assert refused(managed, accel, buffer.gpa, 0x777).reason == Reason.PASID


def test_p26_no_access_with_a_pasid_reaches_a_reserved_region(managed: Viommu, accel: Accel) -> None:
    mine = pair(managed)

    with accel.refused(MSI_START, WRITE):
        accel.fill(MSI_START, 4, 0, pasid=mine)

    assert managed.wait_fault().reason == Reason.MAPPING


def test_p29_after_detach_nothing_is_reached(managed: Viommu, accel: Accel, dma: DmaArena) -> None:
    mine = pair(managed)
    page(managed, dma, FIRST)
    before = read_at(accel, IOVA, mine)

    managed.pasids.detach(domain=FIRST, endpoint=EP, pasid=mine)

    assert before == engine.OK
    assert refused(managed, accel, IOVA, mine).reason == Reason.PASID


def test_p29_after_a_move_the_old_domain_is_not_reached(managed: Viommu, accel: Accel, dma: DmaArena) -> None:
    mine = pair(managed)
    page(managed, dma, FIRST)

    managed.pasids.attach(domain=SECOND, endpoint=EP, pasid=mine)

    assert refused(managed, accel, IOVA, mine).reason == Reason.MAPPING


def test_p38_a_freed_pasid_is_refused_although_it_is_attached(managed: Viommu, accel: Accel, dma: DmaArena) -> None:
    mine = pair(managed)
    page(managed, dma, FIRST)

    managed.pasids.free(mine)

    assert refused(managed, accel, IOVA, mine).reason == Reason.PASID


def test_p42_p48_a_capability_that_is_not_enabled_lets_nothing_pass(
    managed: Viommu, open_accel: OpenAccel, dma: DmaArena
) -> None:
    accel = open_accel().start_in(managed, OTHER_DOMAIN)
    mine = pair(managed)
    page(managed, dma, FIRST)
    accel.function.enable_pasids(0)

    off = refused(managed, accel, IOVA, mine)
    accel.function.enable_pasids()

    assert (off.reason, off.pasid) == (Reason.PASID_DISABLED, mine)
    assert read_at(accel, IOVA, mine) == engine.OK


def test_p42_a_pasid_too_wide_for_the_capability_is_refused(managed_narrow: Viommu, open_accel: OpenAccel) -> None:
    accel = bypassing(managed_narrow, open_accel)

    assert refused(managed_narrow, accel, 0x500000, 16).reason == Reason.PASID_DISABLED
    assert refused(managed_narrow, accel, 0x500000, 15).reason == Reason.PASID


@pytest.mark.parametrize("flag", [FLAG_EXECUTE, FLAG_PRIVILEGED], ids=["execute", "privileged"])
def test_p43_what_is_not_enabled_is_refused(managed: Viommu, accel: Accel, dma: DmaArena, flag: int) -> None:
    mine = pair(managed)
    page(managed, dma, FIRST)
    accel.function.enable_pasids(PASID_ENABLE)

    fault = refused(managed, accel, IOVA, mine, flag)

    assert (fault.reason, fault.executes, fault.is_privileged) == (
        Reason.PASID_DISABLED, flag == FLAG_EXECUTE, flag == FLAG_PRIVILEGED,
    )  # fmt: skip


def test_p44_p49_a_mapping_lets_no_execution_pass(managed: Viommu, accel: Accel, dma: DmaArena) -> None:
    mine = pair(managed)
    page(managed, dma, FIRST)

    fault = refused(managed, accel, IOVA, mine, FLAG_EXECUTE)

    assert (fault.reason, fault.executes, fault.access) == (Reason.MAPPING, True, Access.READ)


def test_p45_privilege_opens_nothing_and_closes_nothing(managed: Viommu, accel: Accel, dma: DmaArena) -> None:
    mine = pair(managed)
    page(managed, dma, FIRST)

    assert read_at(accel, IOVA, mine, FLAG_PRIVILEGED) == engine.OK
    assert refused(managed, accel, NOTHING, mine, FLAG_PRIVILEGED).reason == Reason.MAPPING


def test_p46_an_endpoint_with_only_reaches_nothing_without_a_pasid(managed: Viommu, only: Accel, dma: DmaArena) -> None:
    managed.attach(domain=FIRST, endpoint=ONLY_EP)
    page(managed, dma, FIRST)

    fault = refused(managed, only, IOVA)

    assert (fault.reason, fault.pasid, fault.endpoint) == (Reason.PASID_REQUIRED, None, ONLY_EP)


def test_p47_a_refused_copy_changes_nothing_and_all_is_told(managed: Viommu, accel: Accel, dma: DmaArena) -> None:
    mine = pair(managed)
    page(managed, dma, FIRST)
    target = dma.random(PAGE)
    before = target.read()
    managed.map_buffer(FIRST, NOTHING, target, READ)

    with pytest.raises(TranslationFault) as caught:
        accel.copy(IOVA, NOTHING, PAGE, pasid=mine)

    fault = managed.wait_fault()
    assert target.read() == before
    assert (caught.value.pasid, caught.value.fault_iova, caught.value.access) == (mine, NOTHING, Access.WRITE)
    assert (fault.endpoint, fault.pasid, fault.address, fault.access) == (EP, mine, NOTHING, Access.WRITE)


def test_p48_the_flag_tells_whether_there_was_a_pasid(managed: Viommu, accel: Accel) -> None:
    managed.attach(domain=FIRST, endpoint=EP)

    plain, tagged = refused(managed, accel, NOTHING), refused(managed, accel, NOTHING, 0x777)

    assert (plain.reason, plain.pasid, plain.raw[12:16]) == (Reason.MAPPING, None, bytes(4))
    assert (tagged.reason, tagged.pasid) == (Reason.PASID, 0x777)


@pytest.mark.parametrize(("room", "told"), [(24, 24), (47, 24), (48, 48), (64, 48)])
def test_p49_p50_a_fault_is_48_bytes_or_the_first_24(
    open_viommu: OpenViommu, open_accel: OpenAccel, room: int, told: int
) -> None:
    viommu = open_viommu(also=BOTH, nevents=0)
    viommu.events.post(1, room)
    accel = with_ring_apart(viommu, open_accel())

    fault = refused(viommu, accel, REFUSED_ADDRESS, 0x777)

    flags = 1 | 1 << 8 | 1 << 9
    record = b"\x40\0\0\0" + flags.to_bytes(4, "little") + EP.to_bytes(4, "little") + (0x777).to_bytes(4, "little")
    record += REFUSED_ADDRESS.to_bytes(8, "little") + bytes(24)
    assert fault.raw == record[:told]


def test_p1_a_driver_without_the_feature_is_told_the_old_record(viommu: Viommu, mapped_accel: Accel) -> None:
    mapped_accel.function.enable_pasids()

    fault = refused(viommu, mapped_accel, NOTHING, 0x777)

    assert (fault.reason, fault.pasid, len(fault.raw), fault.raw[12:16]) == (Reason.DOMAIN, None, 24, bytes(4))


def test_p53_a_reset_of_the_endpoint_keeps_its_pairs_and_disables_its_capability(
    managed: Viommu, open_accel: OpenAccel, dma: DmaArena
) -> None:
    accel = open_accel().start_in(managed, OTHER_DOMAIN)
    mine = pair(managed)
    page(managed, dma, FIRST)
    accel.function.enable_pasids()
    before = read_at(accel, IOVA, mine)

    accel.function.flr()
    accel.start(0x0100_0000)
    disabled = refused(managed, accel, IOVA, mine).reason
    accel.function.enable_pasids()

    assert (before, disabled) == (engine.OK, Reason.PASID_DISABLED)
    assert read_at(accel, IOVA, mine) == engine.OK


def test_p56_a_pair_of_the_hosts_follows_the_rid(managed: Viommu, only: Accel, dma: DmaArena) -> None:
    hosts = only.kernel_pasid
    managed.bypass = True
    bypassing = refused(managed, only, IOVA, hosts).reason
    managed.attach(domain=FIRST, endpoint=ONLY_EP)
    page(managed, dma, FIRST)
    mapped = read_at(only, IOVA, hosts)
    managed.unmap(domain=FIRST, iova=IOVA, nbytes=PAGE)

    assert (bypassing, mapped) == (Reason.PASID, engine.OK)
    assert refused(managed, only, IOVA, hosts).reason == Reason.MAPPING


def test_p56_it_survives_a_reset_of_the_unit(managed: Viommu, only: Accel, dma: DmaArena) -> None:
    hosts = only.kernel_pasid

    managed.start(also=BOTH)
    again = with_ring_apart(managed, only)
    managed.attach(domain=FIRST, endpoint=ONLY_EP)
    page(managed, dma, FIRST)

    assert again.kernel_pasid == hosts
    assert read_at(again, IOVA, hosts) == engine.OK


def test_p42_an_access_of_another_pasid_of_the_guests_is_refused_at_another_endpoint(
    managed_narrow: Viommu, open_accel: OpenAccel
) -> None:
    accel = bypassing(managed_narrow, open_accel)
    mine = managed_narrow.pasids.alloc(6, 13).pasid

    fault = refused(managed_narrow, accel, 0x500000, mine)

    assert (fault.reason, fault.endpoint, fault.pasid) == (Reason.PASID, HOLED_EP, mine)


def test_p47_the_completion_tells_the_refused_pasid(managed: Viommu, accel: Accel) -> None:
    completion = accel.run(Operation(engine.CHECKSUM, NOTHING, nbytes=8, pasid=0x777))

    assert (completion.status, completion.pasid) == (engine.TRANSLATION_FAULT, 0x777)
    managed.wait_fault()
