"""The guest's user-space driver against our own device, in one process: no QEMU, no kernel, every access looked at."""

from __future__ import annotations

import pytest

from guest_tests.payload.direct import (
    ATTACH_BYPASS,
    READ,
    Attach,
    DeviceBroken,
    Feature,
    FeaturesRefused,
    Layout,
    Map,
    NoAnswer,
    NotNegotiated,
    QueueRefused,
    RequestRefused,
    ResvMem,
    Segment,
    Status,
    Subtype,
    Viommu,
)
from tests.support.direct import Access, DirectRig
from vdev.config import UnitConfig
from vdev.functions.virtio_pci import COMMON_NBYTES, DEVICE_OFFSET, NOTIFY_OFFSET, STRUCTURES_BAR

ENDPOINT = 0x100
SOON_S = 0.01
ATTACH = Attach(domain=1, endpoint=ENDPOINT)
# Widths of the common configuration's fields, by offset (virtio 1.4, "Common configuration structure layout").
WIDTHS = {0x10: 2, 0x12: 2, 0x14: 1, 0x15: 1, 0x16: 2, 0x18: 2, 0x1A: 2, 0x1C: 2, 0x1E: 2}
CONFIG_WIDTHS = {36: 1, 37: 1, 38: 1, 39: 1}  # of the device configuration; all else is 32 bits, or two of them


def test_a_unit_opens_with_what_it_offers_and_shows_its_configuration() -> None:
    viommu = DirectRig().viommu

    config = viommu.config
    assert viommu.features & Feature.MAP_UNMAP
    assert viommu.features == viommu.transport.offered()
    assert (config.granule, config.probe_size, config.bypass) == (4096, 512, True)
    assert config.input_range == (0, 1 << 39)
    assert config.domain_range == (0, 1 << 32)


def test_every_register_access_is_of_the_fields_own_width() -> None:
    rig = DirectRig(msix=True)
    rig.viommu.bypass = False
    rig.viommu.attach(domain=1, endpoint=ENDPOINT)
    rig.viommu.read_config()
    rig.viommu.reset()

    structures = [access for access in rig.function.accesses if access.bar == STRUCTURES_BAR]
    common = [access for access in structures if access.offset < COMMON_NBYTES]
    device = [access for access in structures if DEVICE_OFFSET <= access.offset < NOTIFY_OFFSET]
    doorbells = [access for access in structures if access.offset >= NOTIFY_OFFSET]
    assert {access.offset for access in common} >= {0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x15, 0x16, 0x18, 0x1C, 0x24}
    assert [access for access in common if access.nbytes != WIDTHS.get(access.offset, 4)] == []
    assert [access for access in device if access.nbytes != CONFIG_WIDTHS.get(access.offset - DEVICE_OFFSET, 4)] == []
    assert {(access.nbytes, access.value) for access in doorbells} == {(2, 0), (2, 1)}
    assert {access.nbytes for access in rig.function.accesses if access.bar != STRUCTURES_BAR} == {4}


def test_bypass_is_written_as_one_byte_and_nothing_else() -> None:
    rig = DirectRig()
    rig.function.accesses.clear()

    rig.viommu.bypass = False

    assert rig.function.accesses == [Access(STRUCTURES_BAR, DEVICE_OFFSET + 36, 1, 0)]
    assert rig.viommu.bypass is False


def test_the_status_goes_up_step_by_step() -> None:
    rig = DirectRig()

    statuses = [access.value for access in rig.function.accesses if access.offset == 0x14 and access.is_write]
    assert statuses == [0, 1, 3, 11, 15]


@pytest.mark.parametrize("without", [0, Feature.EVENT_IDX, Feature.INDIRECT_DESC, Feature.PROBE | Feature.MMIO])
@pytest.mark.parametrize("queue_size", [None, 2, 64])
def test_any_subset_of_features_and_any_size_works(without: int, queue_size: int | None) -> None:
    viommu = DirectRig(without=without, queue_size=queue_size).viommu

    viommu.attach(domain=1, endpoint=ENDPOINT)
    for page in range(10):
        viommu.map(domain=1, iova=page << 12, gpa=page << 12, nbytes=4096, access=READ)
    viommu.unmap(domain=1, iova=0, nbytes=10 << 12)
    viommu.detach(domain=1, endpoint=ENDPOINT)

    assert not viommu.features & without


def test_features_that_are_not_offered_are_refused_with_both_sets() -> None:
    with pytest.raises(FeaturesRefused, match=r"FEATURES_OK refused for .*ACCESS_PLATFORM") as caught:
        DirectRig(features=int(Feature.VERSION_1 | Feature.ACCESS_PLATFORM))

    assert caught.value.offered & Feature.MAP_UNMAP


def test_a_queue_larger_than_the_devices_is_refused() -> None:
    with pytest.raises(QueueRefused, match=r"queue 0 of 0000:00:10\.0 has 256 entries, not 512"):
        DirectRig(queue_size=512)


def test_a_refusal_carries_status_and_request() -> None:
    viommu = DirectRig().viommu

    with pytest.raises(RequestRefused, match=r"Attach\(domain=1, endpoint=30583.*answered NOENT \(6\)") as caught:
        viommu.attach(domain=1, endpoint=0x7777)

    assert caught.value.status == Status.NOENT
    assert isinstance(caught.value.request, Attach)


def test_send_never_raises_for_a_refusal() -> None:
    viommu = DirectRig().viommu

    assert viommu.send(Attach(domain=1, endpoint=ENDPOINT, reserved=b"\1\0\0\0")).status == Status.INVAL
    assert viommu.send(Map(domain=9, virt_start=0, virt_end=4095, phys_start=0, flags=1)).status == Status.NOENT
    assert viommu.send(b"\xff" * 64).status == Status.UNSUPP


def test_a_strict_device_may_leave_the_tail_unwritten() -> None:
    answer = DirectRig(UnitConfig(name="iommu0", mode="strict")).viommu.send(b"\xff" * 64)

    assert (answer.used_nbytes, answer.status, answer.written) == (0, None, b"\xee" * 4)


def test_flags_arrive_as_given() -> None:
    viommu = DirectRig().viommu
    viommu.attach(domain=1, endpoint=ENDPOINT, flags=ATTACH_BYPASS)

    with pytest.raises(RequestRefused) as caught:
        viommu.map(domain=1, iova=0, gpa=0, nbytes=4096, flags=1 << 31)

    assert caught.value.answer.status == Status.INVAL


@pytest.mark.parametrize(
    "layout", [Layout(piece_nbytes=1), Layout(readable=(4, 0, 16), writable=(1, 3)), Layout(indirect=True)], ids=str
)
def test_a_request_is_understood_in_any_layout(layout: Layout) -> None:
    assert DirectRig().viommu.send(ATTACH, layout=layout).ok


def test_probe_reads_the_reserved_regions() -> None:
    viommu = DirectRig().viommu

    assert viommu.probe(ENDPOINT) == [ResvMem(Subtype.MSI, 0xFEE0_0000, 0xFEF0_0000)]
    assert viommu.serves(ENDPOINT)
    assert not viommu.serves(0x7777)


def test_serves_needs_probe() -> None:
    with pytest.raises(NotNegotiated, match="PROBE was not negotiated"):
        DirectRig(without=Feature.PROBE).viommu.serves(ENDPOINT)


@pytest.mark.parametrize("layout", [Layout(), Layout(indirect=True)], ids=str)
def test_many_requests_are_answered_in_order_with_a_kick_for_each_ring_full(layout: Layout) -> None:
    rig = DirectRig(queue_size=16)
    rig.viommu.attach(domain=1, endpoint=ENDPOINT)
    kicks = rig.viommu.requests.nkicks
    starts = range(0, 40 << 12, 1 << 12)
    # every second one for a domain there is not
    requests = [
        Map(domain=1 + number % 2, virt_start=start, virt_end=start + 0xFFF, phys_start=0, flags=1)
        for number, start in enumerate(starts)
    ]

    answers = rig.viommu.submit(requests, layout=layout)

    assert [answer.status for answer in answers] == [Status.OK, Status.NOENT] * 20
    assert rig.viommu.requests.nkicks - kicks == (3 if layout.indirect else 5)
    assert rig.mappings == 20


def test_a_broken_chain_is_an_error_with_everything_known_and_a_new_start_heals() -> None:
    viommu = DirectRig().viommu
    chain = viommu.chain(ATTACH)
    chain.parts[0].next = 999

    with pytest.raises(DeviceBroken) as caught:
        viommu.send_chain(chain, timeout_s=SOON_S)

    text = str(caught.value)
    for words in ("needs a reset", "NEEDS_RESET", "ring of 256: available idx 1, used idx 0", "1 kicks", "probe_size"):
        assert words in text
    assert viommu.is_broken
    viommu.start()
    assert viommu.send(ATTACH).ok


def test_a_chain_that_is_never_answered_times_out_with_the_rings_state() -> None:
    rig = DirectRig()
    rig.function.bus_master(False)

    with pytest.raises(NoAnswer, match=r"1 of 1 answers did not come within 0.01 s.*heads out \[0\]") as caught:
        rig.viommu.send(ATTACH, timeout_s=SOON_S)

    assert not isinstance(caught.value, DeviceBroken)


def test_a_unit_left_half_started_opens_again() -> None:
    rig = DirectRig()
    rig.viommu.transport.reset()
    rig.viommu.transport.status = 3
    rig.viommu.transport.setup_queue(0, 8, 0xDEAD_0000, 0xDEAD_1000, 0xDEAD_2000)

    viommu = Viommu.open(rig.function, rig.machine.pool)

    assert viommu.send(ATTACH).ok


def test_closing_gives_every_byte_back() -> None:
    rig = DirectRig(msix=True)
    rig.viommu.start(msix=True, queue_size=8)

    rig.viommu.close()
    rig.viommu.close()

    assert rig.machine.pool.nbytes_free == rig.machine.pool.npages << 21


def test_a_reset_unit_says_that_it_must_be_started() -> None:
    viommu = DirectRig().viommu
    viommu.reset()

    with pytest.raises(NotNegotiated, match="the device is reset: start it first"):
        viommu.send(ATTACH)


def test_resetting_a_queue_needs_its_feature() -> None:
    with pytest.raises(NotNegotiated, match="RING_RESET was not negotiated"):
        DirectRig().viommu.reset_queue(0)


def test_a_queue_is_reset_by_its_register_and_waited_for() -> None:
    rig = DirectRig()
    rig.viommu.transport.reset()
    rig.function.accesses.clear()

    rig.viommu.transport.reset_queue(1)

    writes = [(access.offset, access.nbytes, access.value) for access in rig.function.accesses if access.is_write]
    assert writes == [(0x16, 2, 1), (0x3A, 2, 1)]


def test_a_queue_that_stays_enabled_was_not_reset() -> None:
    viommu = DirectRig().viommu

    with pytest.raises(NoAnswer, match=r"queue 0 of 0000:00:10\.0 does not come out of reset"):
        viommu.transport.reset_queue(0, SOON_S)


def test_the_class_code_tells_who_carries_the_unit() -> None:
    rig = DirectRig()
    assert not rig.viommu.is_vhost_user

    rig.function.device.config.set(0x08, 4, 0x07800000)

    assert rig.viommu.is_vhost_user


def test_a_request_may_read_from_anywhere() -> None:
    rig = DirectRig()
    chain = rig.viommu.requests.ring.chain([Segment(20, gpa=1 << 50), Segment(4, is_writable=True)])

    with pytest.raises(DeviceBroken):
        rig.viommu.send_chain(chain, timeout_s=SOON_S)


def test_wanting_more_than_was_answered_is_no_answer() -> None:
    viommu = DirectRig().viommu

    with pytest.raises(NoAnswer, match="2 of 2 answers did not come"):
        viommu.requests.wait_used(2, SOON_S)
