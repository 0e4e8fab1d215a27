"""DMA that goes wrong past the IOMMU, as an endpoint and its driver see it; and that the same seed does it again."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from moving import COME_S, COMPLETIONS, COPY, PAGE, READING, SOURCE, TARGET, WRITING, Mover
from repeat import OCCURRENCES, assert_repeats

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import (
    READ,
    WRITE,
    AccelError,
    CompleterAbort,
    Reason,
    TranslationFault,
    UnsupportedRequest,
    Viommu,
)
from guest_tests.payload.direct.wait import until
from guest_tests.payload.direct.wire import Unmap
from guest_tests.payload.fault_fixtures import Faults

RECORD = {"endpoint": "accel0", "access": "write", "iova": f"{COMPLETIONS:#x}-{COMPLETIONS + 31:#x}"}
DESCRIPTORS = {"endpoint": "accel0", "iova": "0x1000000-0x1000fff"}
LONG_S = 600.0


@pytest.mark.parametrize(
    ("do", "error"), [("unsupported-request", UnsupportedRequest), ("completer-abort", CompleterAbort)]
)
@pytest.mark.parametrize(("match", "iova"), [(READING, SOURCE), (WRITING, TARGET)])
def test_an_operand_is_refused_by_whoever_has_the_memory(
    mover: Mover, faults: Faults, do: str, error: type[AccelError], match: dict[str, Any], iova: int
) -> None:
    faults.add("dma", do, match=match)
    mover.target.fill(0)

    with pytest.raises(error) as caught:
        mover.accel.do(COPY)

    assert (caught.value.completion.fault_iova, caught.value.nbytes_done) == (iova, 0)
    assert not any(mover.target.read())
    assert mover.viommu.faults() == []  # it is nothing of the IOMMU's
    faults.clear()
    assert mover.works()


def test_an_operation_is_done_when_its_delay_is_over(mover: Mover, faults: Faults) -> None:
    rule = faults.add("dma", "delay", match=WRITING, seconds=0.3, times=1)
    started = time.monotonic()

    index = mover.submit()
    waiting = mover.settled(index), rule.held, any(mover.target.read())
    done = mover.comes(index)

    assert waiting == (engine.PENDING, 1, False)
    assert time.monotonic() - started >= 0.3
    assert (done.status, mover.target.read()) == (engine.OK, mover.source.read())
    assert mover.works()


@pytest.mark.parametrize("how", ["release", "remove", "clear"])
def test_a_delayed_operation_goes_on_when_it_is_let_go(mover: Mover, faults: Faults, how: str) -> None:
    rule = faults.add("dma", "delay", match=READING, seconds=LONG_S)
    index = mover.submit()
    waiting = mover.settled(index)

    let_go: dict[str, Callable[[], object]] = {
        "release": rule.release,
        "remove": rule.remove,
        "clear": faults.clear,
    }
    let_go[how]()

    assert waiting == engine.PENDING
    assert mover.comes(index).status == engine.OK
    faults.clear()
    assert mover.works()


def test_an_unmap_is_answered_when_the_delayed_access_has_landed(mover: Mover, faults: Faults) -> None:
    rule = faults.add("dma", "delay", match=WRITING, seconds=LONG_S)
    viommu, domain = mover.viommu, mover.accel.domain
    index = mover.submit()
    mover.settled(index)

    request = Unmap(domain=domain, virt_start=TARGET, virt_end=TARGET + PAGE - 1)
    viommu.requests.ring.post(viommu.chain(request))
    viommu.requests.publish()
    viommu_answered = mover.settled(index), viommu.requests.ring.has_used
    rule.release()
    (used,) = viommu.requests.wait_used(1)
    landed = mover.target.read()  # before it is ours to use for something else

    assert viommu_answered == (engine.PENDING, False)
    assert landed == mover.source.read()
    assert mover.comes(index).status == engine.OK
    viommu.requests.ring.recycle(used.chain)
    with mover.accel.refused(TARGET, WRITE):
        mover.accel.do(COPY)


def test_an_unmapped_page_is_not_written_after_a_reset_though_an_access_to_it_was_delayed(
    mover: Mover, faults: Faults
) -> None:
    faults.add("dma", "delay", match=WRITING, seconds=0.2)
    index = mover.submit()
    mover.settled(index)

    mover.accel.reset()
    mover.viommu.unmap(domain=mover.accel.domain, iova=TARGET, nbytes=PAGE)
    time.sleep(0.3)
    mover.host.control("query-status")

    assert not any(mover.target.read())


@pytest.mark.parametrize("match", [DESCRIPTORS, RECORD], ids=["descriptor", "completion"])
def test_accesses_of_the_ring_are_late_as_well(mover: Mover, faults: Faults, match: dict[str, Any]) -> None:
    rule = faults.add("dma", "delay", match=match, seconds=LONG_S, times=1)

    index = mover.submit()
    waiting = mover.settled(index), rule.held
    rule.release()

    assert waiting == (engine.PENDING, 1)
    assert mover.comes(index).status == engine.OK
    assert mover.target.read() == mover.source.read()
    assert mover.works()


def test_a_delayed_access_waits_through_a_stop_of_the_machine(mover: Mover, faults: Faults) -> None:
    faults.add("dma", "delay", match=WRITING, seconds=0.2, times=1)
    index = mover.submit()
    mover.settled(index)

    mover.host.pause(0.5)

    assert mover.comes(index).status == engine.OK
    assert mover.target.read() == mover.source.read()


@pytest.mark.parametrize(("match", "iova", "access"), [(READING, SOURCE, READ), (WRITING, TARGET, WRITE)])
def test_an_access_moves_its_first_bytes_and_faults_at_the_next(
    mover: Mover, faults: Faults, match: dict[str, Any], iova: int, access: int
) -> None:
    faults.add("dma", "partial", match=match, nbytes=1500)
    mover.target.fill(0)

    with pytest.raises(TranslationFault) as caught:
        mover.accel.do(COPY)

    fault = mover.viommu.wait_fault()
    assert (caught.value.nbytes_done, caught.value.fault_iova, caught.value.access) == (1500, iova + 1500, access)
    assert (fault.reason, fault.address, fault.access) == (Reason.MAPPING, iova + 1500, access)
    assert mover.target.read() == mover.source.read()[:1500] + bytes(PAGE - 1500)
    faults.clear()
    assert mover.works()


def test_the_endpoint_reads_wrong_bytes_and_memory_has_the_right_ones(mover: Mover, faults: Faults) -> None:
    content = mover.source.read()
    faults.add("dma", "corrupt", match=READING, pattern=0x5A, offset=100, nbytes=3)

    checksum = mover.accel.checksum(SOURCE, PAGE)

    assert checksum == zlib.crc32(content[:100] + b"\x5a" * 3 + content[103:])
    assert mover.source.read() == content
    faults.clear()
    assert mover.accel.checksum(SOURCE, PAGE) == zlib.crc32(content)


def test_memory_gets_wrong_bytes_before_the_driver_sees_the_completion(mover: Mover, faults: Faults) -> None:
    faults.add("dma", "corrupt", match=WRITING, offset=PAGE - 8)

    index = mover.submit()
    assert until(lambda: mover.accel.engine.status_of(index) != engine.PENDING, COME_S)
    seen = mover.target.read()

    assert seen == mover.source.read()[: PAGE - 8] + b"\xa5" * 8
    faults.clear()
    assert mover.works()


def test_a_corrupted_descriptor_is_what_the_engine_executes(mover: Mover, faults: Faults) -> None:
    faults.add("dma", "corrupt", match=DESCRIPTORS, pattern=0xFF, nbytes=1, times=1)

    assert mover.copy().status == engine.BAD_DESCRIPTOR
    assert mover.works()


def test_accesses_with_a_pasid_are_met_by_it(mover: Mover, faults: Faults, managed: Viommu) -> None:
    accel = mover.accel
    accel.function.enable_pasids(1)
    pasid = managed.pasids.alloc().pasid
    accel.start_in(managed, domain=1)
    managed.map_buffer(1, TARGET, mover.target)
    managed.pasids.attach(domain=1, endpoint=accel.endpoint, pasid=pasid)
    faults.add("dma", "completer-abort", match={"pasid": pasid})

    accel.fill(TARGET, PAGE, 0x11)
    done = accel.run(Operation(engine.FILL, dst=TARGET, nbytes=PAGE, arg=0x22, pasid=pasid))

    assert (done.status, done.pasid) == (engine.COMPLETER_ABORT, pasid)


@pytest.mark.parametrize(
    ("do", "parameters"),
    [
        ("unsupported-request", {}),
        ("completer-abort", {}),
        ("partial", {"nbytes": 1024}),
        ("corrupt", {"offset": 2048}),
    ],
)
def test_the_same_seed_does_the_same_to_the_same_accesses(
    mover: Mover, faults: Faults, do: str, parameters: dict[str, Any]
) -> None:
    assert_repeats(faults, lambda: mover.outcomes(OCCURRENCES), "dma", do, match=WRITING, with_=parameters)


def test_the_same_seed_delays_the_same_accesses(mover: Mover, faults: Faults) -> None:
    def late() -> list[bool]:
        found = []
        for _ in range(OCCURRENCES):
            index = mover.submit()
            found.append(mover.settled(index) == engine.PENDING)
            faults.release()
            assert mover.comes(index).status == engine.OK
        return found

    assert_repeats(faults, late, "dma", "delay", match=WRITING, seconds=LONG_S)
