"""The guest's user-space driver against our own device: the accelerator's DMA, faults and interrupts."""

from __future__ import annotations

import zlib

import pytest

from guest_tests.payload.direct import (
    READ,
    WRITE,
    Accel,
    Attach,
    DeviceBroken,
    EngineStopped,
    Fault,
    Mismatch,
    NoAnswer,
    NotNegotiated,
    Probe,
    Reason,
    TranslationFault,
    UnsupportedRequest,
)
from tests.support.direct import DirectRig

ENDPOINT = 0x100
SOON_S = 0.01
ATTACH = Attach(domain=1, endpoint=ENDPOINT)


def test_a_copy_goes_through_the_mappings() -> None:
    rig = DirectRig()
    accel, pool = rig.accel(), rig.machine.pool
    src, dst = pool.alloc(), pool.alloc()
    content = src.randomise()
    rig.viommu.map_buffer(1, 0x10000, src, READ)
    rig.viommu.map_buffer(1, 0x20000, dst, WRITE)

    accel.copy(0x10000, 0x20000, 4096)

    assert dst.read() == content


def test_every_operation_does_its_work() -> None:
    rig = DirectRig()
    accel = rig.accel()
    buffer = rig.machine.pool.alloc()
    rig.viommu.map_buffer(1, 0x10000, buffer)

    accel.fill(0x10000, 4096, 0x1111)
    accel.compare(0x10000, 0x10008, 64)
    accel.nop()

    assert buffer.read() == bytes.fromhex("1111000000000000") * 512
    assert accel.checksum(0x10000, 4096) == zlib.crc32(buffer.read())


def test_a_refused_access_is_an_exception_and_a_fault() -> None:
    rig = DirectRig()
    accel = rig.accel()

    with pytest.raises(TranslationFault, match="translation fault: read at IOVA 0x50000, after 0 bytes") as caught:
        accel.checksum(0x50000, 64)

    assert (caught.value.fault_iova, caught.value.access) == (0x50000, READ)
    assert rig.viommu.wait_fault(SOON_S) == Fault(Reason.MAPPING, READ, ENDPOINT, 0x50000)
    assert rig.viommu.faults() == []


def test_refused_accepts_the_expected_fault_only() -> None:
    accel = DirectRig().accel()

    with accel.refused(0x50000, READ):
        accel.checksum(0x50000, 64)
    wrong_access = r"refused at 0x50000 for .*READ.*, expected 0x50000 for .*WRITE"
    with pytest.raises(AssertionError, match=wrong_access), accel.refused(0x50000, WRITE):
        accel.checksum(0x50000, 64)
    with pytest.raises(AssertionError, match="the IOMMU let it pass"), accel.refused(0x50000, READ):
        accel.nop()


def test_outcomes_of_the_engine_have_exceptions_of_their_own() -> None:
    rig = DirectRig()
    accel = rig.accel()
    buffer = rig.machine.pool.alloc()
    buffer.write(b"x", 100)
    rig.viommu.map_buffer(1, 0x10000, buffer)
    rig.viommu.map(domain=1, iova=0x20000, gpa=1 << 38, nbytes=4096)

    with pytest.raises(Mismatch) as caught:
        accel.compare(0x10000, 0x10080, 128)
    with pytest.raises(UnsupportedRequest):
        accel.fill(0x20000, 64, 0)

    assert caught.value.offset == 100


def test_an_engine_that_cannot_reach_its_ring_stops_with_the_reason() -> None:
    rig = DirectRig()
    accel = rig.accel()

    with pytest.raises(EngineStopped, match="the engine stopped: ERROR RING_FETCH at 0x5000") as caught:
        accel.start(0x5000).nop()

    assert caught.value.error_iova == 0x5000


def test_an_endpoint_nobody_attached_bypasses_by_its_ring_at_its_own_address() -> None:
    rig = DirectRig()
    accel = Accel.open(rig.machine.functions["accel0"], rig.machine.pool)
    buffer = rig.machine.pool.alloc()

    accel.start().fill(buffer.gpa, 4096, 0)

    assert buffer.read(4) == bytes(4)


def test_a_starved_event_queue_delivers_once_it_is_fed() -> None:
    rig = DirectRig(nevents=0)
    accel = rig.accel()
    with accel.refused(0x50000, READ):
        accel.checksum(0x50000, 64)

    before = rig.viommu.faults()
    rig.viommu.events.post()

    assert before == []
    assert rig.viommu.wait_fault(SOON_S).address == 0x50000


def test_an_event_buffer_too_small_for_a_fault_is_counted() -> None:
    rig = DirectRig(nevents=0)
    accel = rig.accel()
    rig.viommu.events.reposts = False
    rig.viommu.events.post(1, nbytes=8)
    with accel.refused(0x50000, READ):
        accel.checksum(0x50000, 64)

    with pytest.raises(NoAnswer, match=r"no fault within 0.01 s, 1 too short"):
        rig.viommu.wait_fault(SOON_S)


def test_event_buffers_are_posted_again_after_each_fault() -> None:
    rig = DirectRig(nevents=1)
    accel = rig.accel()
    seen = []
    for iova in (0x50000, 0x60000, 0x70000):
        with accel.refused(iova, READ):
            accel.checksum(iova, 64)
        seen.append(rig.viommu.wait_fault(SOON_S).address)

    assert seen == [0x50000, 0x60000, 0x70000]


def test_each_queue_interrupts_by_its_own_vector() -> None:
    rig = DirectRig(msix=True)
    accel = rig.accel()
    config, requests, events = rig.viommu.vectors
    requests.clear()

    with accel.refused(0x50000, READ):
        accel.checksum(0x50000, 64)
    after_fault = (config.has_fired, requests.has_fired, events.wait(SOON_S))
    rig.viommu.send(Probe(endpoint=ENDPOINT), nwritable=516)

    assert after_fault == (False, False, True)
    assert requests.wait(SOON_S)
    assert not requests.wait(0)


def test_a_masked_vector_stays_silent() -> None:
    rig = DirectRig(msix=True)
    _, requests, _ = rig.viommu.vectors
    requests.mask()

    rig.viommu.send(ATTACH)

    assert not requests.has_fired


def test_a_broken_device_interrupts_by_the_configuration_vector() -> None:
    rig = DirectRig(msix=True)
    chain = rig.viommu.chain(ATTACH)
    chain.head = 5000
    with pytest.raises(DeviceBroken):
        rig.viommu.send_chain(chain, timeout_s=SOON_S)

    assert rig.viommu.vectors[0].wait(SOON_S)


def test_without_msix_there_are_no_vectors_and_no_interrupts() -> None:
    rig = DirectRig()
    raised: list[int] = []
    rig.function.device.raise_vector = raised.append

    rig.viommu.send(ATTACH)

    assert raised == []
    with pytest.raises(NotNegotiated, match="not started with msix=True"):
        _ = rig.viommu.vectors


def test_a_masked_vector_delivers_when_it_is_unmasked() -> None:
    rig = DirectRig(msix=True)
    _, requests, _ = rig.viommu.vectors
    requests.mask()
    rig.viommu.send(ATTACH)

    requests.unmask()

    assert requests.has_fired


def test_the_function_mask_holds_every_vector_and_shows_it_pending() -> None:
    rig = DirectRig(msix=True)
    table, (_, requests, _) = rig.viommu.msix, rig.viommu.vectors
    assert table is not None
    table.mask_all(True)
    rig.viommu.send(ATTACH)

    masked = (requests.has_fired, requests.wait_pending(SOON_S))
    table.mask_all(False)

    assert masked == (False, True)
    assert requests.wait(SOON_S)
    assert not requests.is_pending


def test_what_an_earlier_driver_left_pending_is_not_taken_for_ours() -> None:
    rig = DirectRig(msix=True)
    assert rig.viommu.msix is not None
    rig.viommu.msix.mask_all(True)
    rig.viommu.send(ATTACH)

    rig.viommu.start(msix=True)

    assert not rig.viommu.vectors[1].has_fired


def test_a_vector_settles_when_nothing_comes_any_more() -> None:
    rig = DirectRig(msix=True)
    _, requests, _ = rig.viommu.vectors
    rig.viommu.send(ATTACH)

    requests.settle(quiet_s=0)

    assert not requests.has_fired


def test_a_vector_that_never_rests_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _, requests, _ = DirectRig(msix=True).viommu.vectors
    monkeypatch.setattr(requests, "clear", lambda: None)
    requests._word[0] = requests.data

    with pytest.raises(NoAnswer, match="vector 1 keeps firing"):
        requests.settle(quiet_s=0, timeout_s=SOON_S)
