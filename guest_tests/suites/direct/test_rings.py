"""Rings that work: batches, going round, indexes, who tells whom. virtio 1.4, "Split Virtqueues"."""

from __future__ import annotations

from typing import Any

import pytest
from asking import DOMAIN, EP, EVENT_S, domains, map_pages, of, serves, unit_state

from guest_tests.payload.direct import NO_NOTIFY, Attach, Chain, Feature, Layout, Status, Viommu, wait
from guest_tests.payload.direct.vring import SplitRing
from guest_tests.payload.fixtures import OpenViommu
from guest_tests.payload.host import Host

ISR_QUEUE = 1
WAYS = {"event-idx": 0, "flags": int(Feature.EVENT_IDX)}  # what is left out of the features


def post(viommu: Viommu, count: int, indirect: bool = True) -> list[Chain]:
    """Requests that follow each other from domain to domain, posted and not published."""
    layout = Layout(indirect=indirect)
    chains = [viommu.chain(Attach(domain=number, endpoint=EP), layout=layout) for number in range(count)]
    for chain in chains:
        viommu.requests.ring.post(chain)
    return chains


@pytest.mark.parametrize(("count", "indirect"), of({"direct": (128, False), "indirect": (256, True)}))
def test_a_full_ring_is_answered_in_order_after_one_kick(
    viommu: Viommu, host: Host, count: int, indirect: bool
) -> None:
    """The last of them moved the endpoint last."""
    chains = post(viommu, count, indirect)
    viommu.requests.ring.publish()
    viommu.requests.kick()

    used = viommu.requests.wait_used(count)

    assert [one.chain for one in used] == chains
    assert {one.nbytes for one in used} == {4}
    assert domains(host) == {count - 1: ([EP], 0)}


def test_answers_of_a_batch_go_to_the_requests_they_belong_to(viommu: Viommu) -> None:
    """Good and bad ones in turn."""
    viommu.attach(domain=DOMAIN, endpoint=EP)
    requests = [map_pages(number, phys_start=number % 2) for number in range(100)]

    answers = viommu.submit(requests)

    assert [answer.status for answer in answers] == [Status.OK, Status.RANGE] * 50


def test_heads_may_be_posted_in_any_order(viommu: Viommu, host: Host) -> None:
    """The available ring has the order, not the descriptor table."""
    chains = [viommu.chain(Attach(domain=number, endpoint=EP)) for number in range(20)]
    for chain in reversed(chains):
        viommu.requests.ring.post(chain)
    viommu.requests.publish()

    used = viommu.requests.wait_used(20)

    assert [one.chain for one in used] == chains[::-1]
    assert domains(host) == {0: ([EP], 0)}


def test_chains_may_be_scattered_over_the_descriptor_table(viommu: Viommu) -> None:
    """A chain's descriptors need not be neighbours, nor in rising order."""
    requests = viommu.requests
    chain = viommu.chain(Attach(domain=DOMAIN, endpoint=EP), layout=Layout(piece_nbytes=5))
    chain.indexes[:] = [200, 3, 255, 0, 77]
    for descriptor, following in zip(chain.parts, chain.indexes[1:], strict=False):
        descriptor.next = following
    chain.head = 200

    assert requests.send_chain(chain).ok


@pytest.mark.parametrize("leave_out", of(WAYS))
def test_a_small_ring_goes_round_five_hundred_times(open_viommu: OpenViommu, leave_out: int) -> None:
    """Each answer is the right one."""
    viommu = open_viommu(queue_size=4, without=leave_out)
    requests = [Attach(domain=number, endpoint=EP if number % 3 else 0) for number in range(1000)]

    answers = viommu.submit(requests)

    assert [answer.ok for answer in answers] == [bool(number % 3) for number in range(1000)]


@pytest.mark.timeout(60)
def test_indexes_go_past_65535(viommu: Viommu) -> None:
    """All indexes are modulo 2^16: that of the event, too."""
    queue, ring = viommu.requests, viommu.requests.ring
    chains = [viommu.chain(Attach(domain=1, endpoint=EP), layout=Layout(indirect=True)) for _ in range(ring.size)]
    for chain in chains:
        ring.post(chain)
    for number in range(258):
        if number:
            for chain in chains:
                ring.outstanding[chain.head] = chain
                ring.post_head(chain.head)
        queue.publish()
        queue.wait_used(ring.size)

    assert ring.next_avail == 258 * 256 - 65536
    assert {chain.written() for chain in chains} == {bytes([Status.OK, 0, 0, 0])}


def test_every_kick_may_come_twice(viommu: Viommu) -> None:
    """A kick that was not needed does no harm."""
    for number in range(50):
        viommu.requests.kick()
        assert viommu.send(Attach(domain=number, endpoint=EP)).ok
        viommu.requests.kick()


# Who wants to be told: the device, of requests.


def test_an_idle_device_asks_for_a_kick_at_the_next_request(viommu: Viommu) -> None:
    """EVENT_IDX: avail_event is the index it wants to be told of. And its flags stay 0."""
    ring = viommu.requests.ring
    assert serves(viommu)

    assert wait.until(lambda: ring.avail_event == ring.next_avail, EVENT_S)
    assert ring.used_flags == 0


def test_an_idle_device_asks_for_kicks_by_flag_without_event_idx(open_viommu: OpenViommu) -> None:
    """And leaves the event index alone, which does not exist."""
    viommu = open_viommu(without=Feature.EVENT_IDX)
    ring = viommu.requests.ring
    assert serves(viommu)

    assert wait.until(lambda: ring.used_flags == 0, EVENT_S)
    assert ring.avail_event == 0


@pytest.mark.parametrize("leave_out", of(WAYS))
def test_requests_after_pauses_of_any_length_are_served(open_viommu: OpenViommu, host: Host, leave_out: int) -> None:
    """The device stops polling and waits for a kick: none may be lost on the way to that, at no distance in time."""
    viommu = open_viommu(without=leave_out)

    for number in range(40):
        wait.until(lambda: False, number * 0.00002)  # 0 to 0.8 ms, over the time it polls for
        assert viommu.send(Attach(domain=number, endpoint=EP)).ok

    assert domains(host) == {39: ([EP], 0)}


@pytest.mark.parametrize("leave_out", of(WAYS))
def test_a_busy_device_asks_for_no_kicks(open_viommu: OpenViommu, leave_out: int) -> None:
    """By an event index half the index space away, or by NO_NOTIFY. It lasts as long as a full ring keeps it busy.

    That is milliseconds, which a guest on a busy host may sleep through: so it looks at several full rings.
    """
    viommu = open_viommu(without=leave_out)
    queue, ring = viommu.requests, viommu.requests.ring
    was_seen = False
    for _ in range(50):
        post(viommu, ring.size)
        ring.publish()
        queue.kick()
        was_seen = wait.until(lambda: is_asked_for_no_kicks(ring) or ring.has_used, EVENT_S) and not ring.has_used
        for used in queue.wait_used(ring.size):
            ring.recycle(used.chain)
        if was_seen:
            break

    assert was_seen


def is_asked_for_no_kicks(ring: SplitRing) -> bool:
    """Whether the device wants no kick for what is posted now, nor for a long time to come."""
    if not ring.event_idx:
        return bool(ring.used_flags & NO_NOTIFY)
    return 0x4000 < (ring.avail_event - ring.next_avail) & 0xFFFF < 0xC000


# Who wants to be told: the driver, of answers. The ISR byte shows an interrupt without any vector.


def settled_isr(viommu: Viommu, host: Host) -> int:
    """The interrupt status after a round trip through the device's process; reading clears it."""
    unit_state(host)
    return viommu.transport.read_isr() & ISR_QUEUE


@pytest.fixture(params=of(WAYS))
def polled(request: Any, open_viommu: OpenViommu, host: Host) -> Viommu:
    """A unit that has no interrupt pending, and is asked for none."""
    viommu = open_viommu(without=request.param, nevents=0)
    assert serves(viommu)
    settled_isr(viommu, host)
    return viommu


def test_an_answer_interrupts_a_driver_that_wants_it(polled: Viommu) -> None:
    """By flag or by used_event."""
    polled.requests.ring.want_interrupts(True)

    polled.send(Attach(domain=5, endpoint=EP))

    assert wait.until(lambda: bool(polled.transport.read_isr() & ISR_QUEUE), EVENT_S)


def test_an_answer_does_not_interrupt_a_driver_that_does_not_want_it(polled: Viommu, host: Host) -> None:
    """By flag or by used_event."""
    polled.requests.ring.want_interrupts(False)

    for number in range(20):
        polled.send(Attach(domain=number, endpoint=EP))

    assert settled_isr(polled, host) == 0


@pytest.mark.parametrize(
    ("wanted", "came"), of({"one-short": (21, False), "the-last": (20, True), "inside": (7, True)})
)
def test_used_event_says_which_answer_interrupts(open_viommu: OpenViommu, host: Host, wanted: int, came: bool) -> None:
    """EVENT_IDX: the device interrupts when used passes the index, and not before."""
    viommu = open_viommu(nevents=0)
    settled_isr(viommu, host)
    viommu.requests.ring.want_interrupt_after(wanted)

    viommu.submit([Attach(domain=number, endpoint=EP) for number in range(20)])

    if came:
        assert wait.until(lambda: bool(viommu.transport.read_isr() & ISR_QUEUE), EVENT_S)
    else:
        assert settled_isr(viommu, host) == 0


def test_requests_need_no_event_buffers(open_viommu: OpenViommu) -> None:
    """The queues have nothing to do with each other."""
    viommu = open_viommu(nevents=0)

    assert serves(viommu)
