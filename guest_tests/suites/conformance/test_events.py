"""The event queue: its buffers, what happens when there are none, and when they are of the wrong size."""

from __future__ import annotations

from typing import Any

import pytest

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import Accel, DmaArena, NoAnswer, Segment, Viommu
from guest_tests.payload.direct.wire import FAULT_NBYTES, Fault
from guest_tests.payload.fixtures import OpenAccel, OpenViommu
from guest_tests.payload.host import Host

NOTHING, PAGE = 0x3_0000, 4096
NO_RAM = 0x8000_0000  # these machines have less than 2 GiB


def provoke(accel: Accel, count: int) -> list[int]:
    """`count` refused reads; their addresses."""
    addresses = [NOTHING + 64 * number for number in range(count)]
    completions = accel.run_all([Operation(engine.CHECKSUM, address, nbytes=8) for address in addresses])
    assert {completion.status for completion in completions} == {engine.TRANSLATION_FAULT}
    return addresses


def settle(host: Host) -> None:
    """Whatever the device still had to do is done when it has answered the host."""
    host.control("query-status")


def starved(open_viommu: OpenViommu, open_accel: OpenAccel) -> tuple[Viommu, Accel]:
    """A unit that has no event buffers yet, and an accelerator behind it."""
    viommu = open_viommu(nevents=0)
    viommu.events.reposts = False
    return viommu, open_accel().start_in(viommu)


def test_d62_faults_wait_until_there_are_buffers(open_viommu: OpenViommu, open_accel: OpenAccel) -> None:
    # D62: without a buffer the device waits or drops; this one waits
    viommu, accel = starved(open_viommu, open_accel)
    wanted = provoke(accel, 3)

    viommu.events.post(3)

    assert [viommu.wait_fault().address for _ in wanted] == wanted


def test_d62_waiting_faults_come_as_buffers_come(open_viommu: OpenViommu, open_accel: OpenAccel, host: Host) -> None:
    viommu, accel = starved(open_viommu, open_accel)
    wanted = provoke(accel, 5)

    viommu.events.post(2)
    found = [viommu.wait_fault().address for _ in range(2)]
    settle(host)
    early = viommu.faults()
    viommu.events.post(3)
    found += [viommu.wait_fault().address for _ in range(3)]

    assert early == []
    assert found == wanted


def test_d62_requests_are_served_while_faults_wait(
    open_viommu: OpenViommu, open_accel: OpenAccel, dma: DmaArena
) -> None:
    viommu, accel = starved(open_viommu, open_accel)
    provoke(accel, 20)

    viommu.map_buffer(accel.domain, NOTHING, dma.alloc(PAGE))

    accel.checksum(NOTHING, PAGE)


def test_d9_faults_that_wait_are_forgotten_by_a_reset(
    open_viommu: OpenViommu, open_accel: OpenAccel, host: Host
) -> None:
    viommu, accel = starved(open_viommu, open_accel)
    provoke(accel, 3)

    viommu.start()
    settle(host)

    assert viommu.faults() == []


def test_d61_a_buffer_that_is_too_small_comes_back_empty_and_costs_its_fault(
    open_viommu: OpenViommu, open_accel: OpenAccel
) -> None:
    # D61: SHOULD NOT spread a fault over several buffers
    viommu, accel = starved(open_viommu, open_accel)
    viommu.events.post(1, nbytes=FAULT_NBYTES - 1)
    viommu.events.post(1)

    _, second = provoke(accel, 2)

    assert viommu.wait_fault().address == second
    assert viommu.events.nshort == 1


def test_d61_nothing_is_written_to_a_buffer_that_is_too_small(open_viommu: OpenViommu, open_accel: OpenAccel) -> None:
    viommu, accel = starved(open_viommu, open_accel)
    ring = viommu.events.ring
    chain = ring.chain([Segment(FAULT_NBYTES - 1, is_writable=True)])
    ring.post(chain)
    viommu.events.publish()

    provoke(accel, 1)
    (used,) = viommu.events.wait_used(1)

    assert (used.nbytes, used.chain.written()) == (0, b"\xee" * (FAULT_NBYTES - 1))


def test_d61_of_a_larger_buffer_only_the_record_is_written(open_viommu: OpenViommu, open_accel: OpenAccel) -> None:
    viommu, accel = starved(open_viommu, open_accel)
    ring = viommu.events.ring
    chain = ring.chain([Segment(2 * FAULT_NBYTES, is_writable=True)])
    ring.post(chain)
    viommu.events.publish()

    provoke(accel, 1)
    (used,) = viommu.events.wait_used(1)

    assert used.nbytes == FAULT_NBYTES
    assert used.chain.written()[FAULT_NBYTES:] == b"\xee" * FAULT_NBYTES


def test_d61_g10_a_buffer_of_several_descriptors_takes_one_record(
    open_viommu: OpenViommu, open_accel: OpenAccel
) -> None:
    viommu, accel = starved(open_viommu, open_accel)
    ring = viommu.events.ring
    chain = ring.chain([Segment(nbytes, is_writable=True) for nbytes in (1, 7, 16)])
    ring.post(chain)
    viommu.events.publish()

    (address,) = provoke(accel, 1)
    (used,) = viommu.events.wait_used(1)

    assert used.nbytes == FAULT_NBYTES
    assert Fault.parse(used.chain.written()).address == address


def test_d61_a_buffer_that_may_only_be_read_comes_back_and_costs_its_fault(
    open_viommu: OpenViommu, open_accel: OpenAccel
) -> None:
    viommu, accel = starved(open_viommu, open_accel)
    ring = viommu.events.ring
    ring.post(ring.chain([Segment(FAULT_NBYTES)]))
    viommu.events.publish()

    provoke(accel, 1)
    (used,) = viommu.events.wait_used(1)

    assert used.nbytes == 0


def test_d63_a_buffer_outside_memory_breaks_the_unit_until_it_is_reset(
    open_viommu: OpenViommu, open_accel: OpenAccel, machine: dict[str, Any]
) -> None:
    viommu, accel = starved(open_viommu, open_accel)
    ring = viommu.events.ring
    ring.post(ring.chain([Segment(FAULT_NBYTES, is_writable=True, gpa=NO_RAM)]))
    viommu.events.publish()
    provoke(accel, 1)

    with pytest.raises(NoAnswer):
        viommu.wait_fault(0.5)
    seen_broken = viommu.is_broken
    viommu.start()
    accel.start_in(viommu)

    (address,) = provoke(accel, 1)
    assert seen_broken == (machine["attach"] != "vhost-user")  # QEMU owns the status register there
    assert viommu.wait_fault().address == address


def test_d63_an_available_index_that_jumps_breaks_the_unit_until_it_is_reset(
    open_viommu: OpenViommu, open_accel: OpenAccel, machine: dict[str, Any]
) -> None:
    viommu, accel = starved(open_viommu, open_accel)
    viommu.events.ring.publish(ahead=viommu.events.ring.size + 1)
    viommu.events.kick()
    provoke(accel, 1)

    with pytest.raises(NoAnswer):
        viommu.wait_fault(0.5)
    seen_broken = viommu.is_broken
    viommu.start()
    accel.start_in(viommu)

    (address,) = provoke(accel, 1)
    assert seen_broken == (machine["attach"] != "vhost-user")
    assert viommu.wait_fault().address == address


def test_d62_a_small_event_queue_serves_many_faults(open_viommu: OpenViommu, open_accel: OpenAccel) -> None:
    viommu = open_viommu(queue_size=4)
    accel = open_accel().start_in(viommu)

    wanted = provoke(accel, 60)

    assert [viommu.wait_fault().address for _ in wanted] == wanted


def test_d62_faults_that_wait_are_shown_to_the_host(open_viommu: OpenViommu, open_accel: OpenAccel, host: Host) -> None:
    viommu, accel = starved(open_viommu, open_accel)
    provoke(accel, 7)

    before = host.control("query-iommu")[0]["pending_faults"]
    viommu.events.post(7)
    for _ in range(7):
        viommu.wait_fault()

    assert before == 7
    assert host.control("query-iommu")[0]["pending_faults"] == 0
