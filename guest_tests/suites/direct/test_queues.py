"""Setting up queues: sizes, order, places. virtio 1.4, "Virtqueue Configuration"."""

from __future__ import annotations

from typing import Any

import pytest
from asking import EP, EVENT_S, NO_RAM, RAM_STOP, is_broken, of, serves, unit_state

from guest_tests.payload.direct import DEFAULT_FEATURES, Attach, DmaArena, Layout, Status, Viommu, wait
from guest_tests.payload.direct.requests import RequestQueue
from guest_tests.payload.direct.virtio import QUEUE_DESC, QUEUE_ENABLE, QUEUE_SELECT, QUEUE_SIZE, VirtioPci
from guest_tests.payload.direct.vring import SplitRing
from guest_tests.payload.direct.wire import EVENT_QUEUE, REQUEST_QUEUE
from guest_tests.payload.fixtures import OpenViommu
from guest_tests.payload.host import Host

MAX_SIZE = 256


@pytest.fixture
def transport(dma: DmaArena, viommu: Viommu) -> VirtioPci:
    """The registers of a unit with its features negotiated and no queue set up; memory outlives it."""
    viommu.reset()
    viommu.transport.negotiate(DEFAULT_FEATURES)
    return viommu.transport


@pytest.fixture
def ours(machine: dict[str, Any]) -> None:
    """Skip where they are QEMU's, before anything is started for nothing."""
    if machine["attach"] == "vhost-user":
        pytest.skip("QEMU owns the queue registers of a unit attached by vhost-user")


@pytest.fixture
def registers(ours: None, transport: VirtioPci) -> VirtioPci:
    """The same, where they are ours."""
    return transport


def setup(transport: VirtioPci, ring: SplitRing, index: int = REQUEST_QUEUE, **changes: int) -> None:
    """Set queue `index` up with `ring`, but for the `changes`."""
    given = {"size": ring.size, "desc": ring.desc_gpa, "driver": ring.avail_gpa, "device": ring.used_gpa}
    transport.setup_queue(index, **{**given, **changes})


def test_the_unit_has_two_queues(viommu: Viommu) -> None:
    """Requests and events; another number selects a queue of size 0."""
    assert viommu.transport.nqueues == 2
    assert [viommu.transport.queue_size(index) for index in (2, 3, 255)] == [0, 0, 0]


@pytest.mark.parametrize("index", of({"requests": REQUEST_QUEUE, "events": EVENT_QUEUE}))
def test_a_queue_has_at_most_256_entries(transport: VirtioPci, index: int) -> None:
    """That is what it shows before a driver writes."""
    assert transport.queue_size(index) == MAX_SIZE


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32, 64, 128, 256])
def test_every_power_of_two_is_a_size(open_viommu: OpenViommu, size: int) -> None:
    """Requests go round such a ring more than twice."""
    viommu = open_viommu(queue_size=size)
    requests = [Attach(domain=number, endpoint=EP) for number in range(2 * size + 3)]

    answers = viommu.submit(requests, layout=Layout(indirect=True))

    assert viommu.requests.ring.size == size
    assert [answer.status for answer in answers] == [Status.OK] * len(requests)


def resize(transport: VirtioPci, *sizes: int) -> int:
    """Write sizes of the request queue one after the other; what its register has in the end."""
    transport.write(QUEUE_SELECT, 2, REQUEST_QUEUE)
    for size in sizes:
        transport.write(QUEUE_SIZE, 2, size)
    return transport.read(QUEUE_SIZE, 2)


@pytest.mark.parametrize("size", [0, 257, 512, 1024, 0x8000, 0xFFFF])
def test_a_size_above_the_queue_s_own_or_0_is_not_taken(transport: VirtioPci, size: int) -> None:
    """The register keeps what it had."""
    assert resize(transport, 64, size) == 64


@pytest.mark.parametrize("size", [3, 63, 65, 255])
def test_a_size_that_is_no_power_of_two_is_not_taken(registers: VirtioPci, size: int) -> None:
    """Likewise."""
    assert resize(registers, 64, size) == 64


@pytest.mark.parametrize("size", [3, 255])
def test_a_size_that_qemu_takes_and_the_unit_does_not_breaks_a_vhost_user_unit(
    dma: DmaArena, viommu: Viommu, host: Host, machine: dict[str, Any], transport: VirtioPci, size: int
) -> None:
    """QEMU does not ask; the ring does not start (docs/attachments.md). The next driver is served again."""
    if machine["attach"] != "vhost-user":
        pytest.skip("a unit attached by vfio-user does not take the size")
    setup(transport, SplitRing(MAX_SIZE, dma), size=size)
    setup(transport, SplitRing(MAX_SIZE, dma), EVENT_QUEUE)

    transport.driver_ok()

    assert wait.until(lambda: is_broken(viommu, host, machine), EVENT_S)
    viommu.start()
    assert serves(viommu)
    assert not is_broken(viommu, host, machine)


def test_size_and_addresses_stay_once_the_queue_is_enabled(registers: VirtioPci, dma: DmaArena) -> None:
    """A driver MUST NOT change them; it cannot."""
    ring = SplitRing(16, dma)
    setup(registers, ring)

    registers.write(QUEUE_SIZE, 2, 8)
    registers.write(QUEUE_DESC, 8, 0x123000)

    assert registers.read(QUEUE_SIZE, 2) == 16
    assert registers.read(QUEUE_DESC, 8) == ring.desc_gpa


def test_a_queue_cannot_be_disabled_by_writing_0(registers: VirtioPci, dma: DmaArena) -> None:
    """The driver MUST NOT write 0 to queue_enable."""
    setup(registers, SplitRing(16, dma))

    registers.write(QUEUE_ENABLE, 2, 0)

    assert registers.read(QUEUE_ENABLE, 2) == 1


def test_a_queue_cannot_be_enabled_after_driver_ok(registers: VirtioPci, dma: DmaArena) -> None:
    """All queues are set up before DRIVER_OK."""
    registers.driver_ok()

    setup(registers, SplitRing(16, dma))

    assert registers.read(QUEUE_ENABLE, 2) == 0


def test_queues_are_disabled_by_a_reset(registers: VirtioPci, dma: DmaArena) -> None:
    """And have the size they had at first."""
    setup(registers, SplitRing(16, dma))

    registers.reset()

    assert registers.queue_size(REQUEST_QUEUE) == MAX_SIZE
    assert registers.read(QUEUE_ENABLE, 2) == 0
    assert registers.read(QUEUE_DESC, 8) == 0


@pytest.mark.parametrize("order", of({"requests-first": "re", "events-first": "er", "requests-alone": "r"}))
def test_requests_are_served_whatever_the_order_of_the_queues(dma: DmaArena, transport: VirtioPci, order: str) -> None:
    """The order is the driver's, and so is whether it wants events."""
    for letter in order:
        if letter == "r":
            requests = RequestQueue(transport, REQUEST_QUEUE, dma, DEFAULT_FEATURES)
        else:
            setup(transport, SplitRing(MAX_SIZE, dma), EVENT_QUEUE)

    transport.driver_ok()

    assert requests.send_chain(requests.chain(Attach(domain=1, endpoint=EP))).ok


def test_a_kick_of_a_queue_that_was_not_set_up_does_no_harm(
    dma: DmaArena, transport: VirtioPci, viommu: Viommu, host: Host
) -> None:
    """Nothing is there to be served."""
    setup(transport, SplitRing(MAX_SIZE, dma), EVENT_QUEUE)
    transport.driver_ok()
    before = unit_state(host)["ring-errors"]

    transport.notify(REQUEST_QUEUE)

    assert unit_state(host)["ring-errors"] == before
    viommu.start()
    assert serves(viommu)


def test_the_areas_of_a_ring_may_lie_anywhere_in_any_order(dma: DmaArena, transport: VirtioPci) -> None:
    """Each has an address of its own."""
    ring = SplitRing(16, dma)
    used, avail, desc = dma.alloc(4096), dma.alloc(4096), dma.alloc(4096)
    tail = dma.alloc(16).fill(0xEE)
    head = dma.alloc(32)
    head.write(Attach(domain=1, endpoint=EP).pack())
    for area in (used, avail, desc):
        area.fill(0)
    desc.write(head.gpa.to_bytes(8, "little") + bytes([20, 0, 0, 0, 1, 0, 1, 0]))
    desc.write(tail.gpa.to_bytes(8, "little") + bytes([4, 0, 0, 0, 2, 0, 0, 0]), 16)
    avail.write(bytes([0, 0, 1, 0]))
    setup(transport, ring, desc=desc.gpa, driver=avail.gpa, device=used.gpa)
    setup(transport, SplitRing(16, dma), EVENT_QUEUE)

    transport.driver_ok()
    transport.notify(REQUEST_QUEUE)

    assert wait.until(lambda: used.read(2, 2) == b"\1\0", EVENT_S)
    assert tail.read(4) == bytes(4)


BAD_PLACES = {
    "descriptors-off-16": {"desc": 8}, "available-off-2": {"driver": 1}, "used-off-4": {"device": 2},
}  # fmt: skip


@pytest.mark.parametrize("offsets", of(BAD_PLACES))
def test_a_ring_that_is_not_aligned_breaks_the_unit_at_driver_ok(
    dma: DmaArena, transport: VirtioPci, viommu: Viommu, host: Host, machine: dict[str, Any], offsets: dict[str, int]
) -> None:
    """The areas are aligned to 16, 2 and 4 bytes. The next driver is served again."""
    ring = SplitRing(16, dma)
    at = {"desc": ring.desc_gpa, "driver": ring.avail_gpa, "device": ring.used_gpa}
    setup(transport, ring, **{name: at[name] + offset for name, offset in offsets.items()})
    setup(transport, SplitRing(16, dma), EVENT_QUEUE)

    transport.driver_ok()

    assert wait.until(lambda: is_broken(viommu, host, machine), EVENT_S)
    viommu.start()
    assert serves(viommu)
    assert not is_broken(viommu, host, machine)


NOWHERE = {"in-the-hole": NO_RAM, "over-the-end-of-ram": RAM_STOP - 16, "end-of-64-bits": 2**64 - 4096}


@pytest.mark.parametrize("area", ["desc", "driver", "device"])
@pytest.mark.parametrize("gpa", of(NOWHERE))
def test_a_ring_outside_ram_breaks_the_unit_at_driver_ok(
    registers: VirtioPci, dma: DmaArena, viommu: Viommu, area: str, gpa: int
) -> None:
    """Nothing could be served from there. The next driver is served again."""
    setup(registers, SplitRing(16, dma), **{area: gpa})

    registers.driver_ok()

    assert viommu.is_broken
    viommu.start()
    assert serves(viommu)
