"""Rings whose rules the driver breaks: the unit serves nothing until it is reset, and everything after that.

virtio 1.4, "Split Virtqueues"; what the device does is in docs/attachments.md: DEVICE_NEEDS_RESET over vfio-user; over
vhost-user QEMU cannot be told, so that the guest only sees silence, and the host sees `broken`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from asking import DOMAIN, EP, EVENT_S, NO_RAM, OTHER_DOMAIN, RAM_STOP, domains, is_broken, of, serves, unit_state

from guest_tests.payload.direct import (
    INDIRECT,
    NEXT,
    WRITE_ONLY,
    Attach,
    Chain,
    Descriptor,
    DmaArena,
    Feature,
    Layout,
    Segment,
    Viommu,
    wait,
)
from guest_tests.payload.fixtures import OpenViommu
from guest_tests.payload.host import Host

MAX_TABLE = 1024
REQUEST = Attach(domain=OTHER_DOMAIN, endpoint=EP)


class Broken:
    """A unit whose ring is about to be broken, and what is expected of it then."""

    def __init__(self, viommu: Viommu, host: Host, machine: dict[str, Any]) -> None:
        self.viommu = viommu
        self._host = host
        self._machine = machine
        self._errors = unit_state(host)["ring-errors"]
        viommu.attach(domain=DOMAIN, endpoint=EP)

    def publish(self, ahead: int = 0) -> None:
        """Show the device what was posted, and wait until it is broken."""
        self.viommu.requests.ring.publish(ahead)
        self.viommu.requests.kick()
        assert wait.until(lambda: is_broken(self.viommu, self._host, self._machine), EVENT_S)

    def expect_silence(self) -> None:
        """Nothing came back, nothing was performed, and a good request is not served either."""
        ring = self.viommu.requests.ring
        assert not ring.has_used
        assert domains(self._host) == {DOMAIN: ([EP], 0)}
        assert unit_state(self._host)["ring-errors"] == self._errors + 1
        ring.post(self.viommu.chain(REQUEST))
        self.viommu.requests.publish()
        self.viommu.requests.kick()
        assert domains(self._host) == {DOMAIN: ([EP], 0)}
        assert not ring.has_used
        # By vhost-user the bit cannot be shown: a guest that waits for it waits for ever.
        assert self.viommu.is_broken == (self._machine["attach"] == "vfio-user")

    def expect_service_after_a_reset(self) -> None:
        """As if nothing had been."""
        self.viommu.start()
        assert not is_broken(self.viommu, self._host, self._machine)
        assert not self.viommu.is_broken
        assert serves(self.viommu)


@pytest.fixture
def broken(dma: DmaArena, viommu: Viommu, host: Host, machine: dict[str, Any]) -> Broken:
    """The first unit, with EP in DOMAIN; `dma` outlives it."""
    return Broken(viommu, host, machine)


def good(viommu: Viommu, readable: tuple[int, ...] = (20,), indirect: bool = False) -> Chain:
    """The chain of a good request."""
    return viommu.chain(REQUEST, layout=Layout(readable=readable, indirect=indirect))


def part(number: int, **changes: int) -> Callable[[Viommu], Chain]:
    """A good chain of three descriptors (two readable, one writable) with fields of one changed."""
    return lambda viommu: changed(good(viommu, (10, 10)), number, **changes)


def entry(number: int, **changes: int) -> Callable[[Viommu], Chain]:
    """The same in an indirect table."""
    return lambda viommu: changed(good(viommu, (10, 10), indirect=True), number, **changes)


def table(**changes: int) -> Callable[[Viommu], Chain]:
    """A good indirect chain, with fields of the descriptor that refers to the table changed."""

    def build(viommu: Viommu) -> Chain:
        chain = good(viommu, indirect=True)
        for name, value in changes.items():
            setattr(chain.descriptors[0], name, value)
        return chain

    return build


def changed(chain: Chain, number: int, **changes: int) -> Chain:
    """`chain`, with fields of its descriptor `number` changed."""
    for name, value in changes.items():
        setattr(chain.parts[number], name, value)
    return chain


def back_to_the_head(viommu: Viommu) -> Chain:
    """A loop over the whole chain."""
    chain = good(viommu, (10, 10))
    return changed(chain, 2, flags=NEXT | WRITE_ONLY, next=chain.head)


def to_itself(viommu: Viommu) -> Chain:
    """A loop of one descriptor, which is readable and empty."""
    chain = good(viommu, (20, 0))
    return changed(chain, 1, next=chain.indexes[1])


def wrong_order(indirect: bool) -> Callable[[Viommu], Chain]:
    """A readable descriptor after the writable one."""
    segments = [Segment(10), Segment(4, is_writable=True), Segment(10)]
    return lambda viommu: viommu.requests.ring.chain(segments, indirect=indirect)


def nested(viommu: Viommu) -> Chain:
    """A table in a table."""
    chain = good(viommu, (10, 10), indirect=True)
    return changed(chain, 1, flags=INDIRECT, nbytes=16)


def long_table(viommu: Viommu) -> Chain:
    """One entry more than is taken."""
    return good(viommu, (20, *[0] * (MAX_TABLE - 1)), indirect=True)


def seventeen_mebibytes(viommu: Viommu) -> Chain:
    """The same mebibyte of RAM, seventeen times."""
    segments = [Segment(1 << 20, gpa=1 << 20) for _ in range(17)]
    return viommu.requests.ring.chain([*segments, Segment(4, is_writable=True)], indirect=True)


CHAINS: dict[str, Callable[[Viommu], Chain]] = {
    "next-is-the-ring-s-size": part(0, next=256),
    "next-is-65535": part(0, next=0xFFFF),
    "loop-to-the-head": back_to_the_head,
    "loop-of-one": to_itself,
    "readable-after-writable": wrong_order(False),
    "readable-after-writable-indirect": wrong_order(True),
    "readable-outside-ram": part(1, gpa=NO_RAM),
    "readable-over-the-end-of-ram": part(1, gpa=RAM_STOP - 9),
    "readable-at-the-end-of-64-bits": part(1, gpa=2**64 - 10),
    "readable-round-the-end-of-64-bits": part(1, gpa=2**64 - 1),
    "writable-outside-ram": part(2, gpa=NO_RAM),
    "writable-over-the-end-of-ram": part(2, gpa=RAM_STOP - 3),
    "writable-far-away": part(2, gpa=1 << 52),
    "longer-than-any-ram": part(1, nbytes=0xFFFFFFFF),
    "seventeen-mebibytes": seventeen_mebibytes,
    "table-is-empty": table(nbytes=0),
    "table-of-half-an-entry": table(nbytes=8),
    "table-of-an-entry-and-a-half": table(nbytes=24),
    "table-of-4-gibibytes": table(nbytes=0xFFFFFFF0),
    "table-of-1025-entries": long_table,
    "table-outside-ram": table(gpa=NO_RAM),
    "table-over-the-end-of-ram": table(gpa=RAM_STOP - 16),
    "table-that-has-a-next": table(flags=INDIRECT | NEXT),
    "table-in-a-table": nested,
    "next-behind-the-table": entry(0, next=3),
    "loop-in-a-table": entry(2, flags=NEXT | WRITE_ONLY, next=2),
    "buffer-of-a-table-outside-ram": entry(1, gpa=NO_RAM),
}


@pytest.mark.parametrize("build", of(CHAINS))
def test_a_chain_that_breaks_the_rules_breaks_the_unit_until_it_is_reset(
    broken: Broken, build: Callable[[Viommu], Chain]
) -> None:
    """Descriptors: each is checked as it is met, and nothing of such a chain is performed."""
    broken.viommu.requests.ring.post(build(broken.viommu))

    broken.publish()

    broken.expect_silence()
    broken.expect_service_after_a_reset()


@pytest.mark.parametrize("head", [256, 257, 0x8000, 0xFFFF])
def test_an_available_entry_that_names_no_descriptor_breaks_the_unit_until_it_is_reset(
    broken: Broken, head: int
) -> None:
    """The ring has 256."""
    broken.viommu.requests.ring.post_head(head)

    broken.publish()

    broken.expect_silence()
    broken.expect_service_after_a_reset()


@pytest.mark.parametrize("ahead", [257, 0x8000, 0xFFFF])
def test_an_available_index_too_far_ahead_breaks_the_unit_until_it_is_reset(broken: Broken, ahead: int) -> None:
    """There cannot be more chains than the ring has entries; 65535 is one entry back."""
    broken.publish(ahead)

    broken.expect_silence()
    broken.expect_service_after_a_reset()


def test_an_indirect_table_breaks_a_unit_that_did_not_negotiate_it(
    dma: DmaArena, open_viommu: OpenViommu, host: Host, machine: dict[str, Any]
) -> None:
    """The driver MUST NOT set the flag without INDIRECT_DESC."""
    broken = Broken(open_viommu(without=Feature.INDIRECT_DESC), host, machine)
    broken.viommu.requests.ring.post(good(broken.viommu, indirect=True))

    broken.publish()

    broken.expect_silence()


def test_a_chain_longer_than_the_ring_breaks_the_unit(
    dma: DmaArena, open_viommu: OpenViommu, host: Host, machine: dict[str, Any]
) -> None:
    """In a ring of 8 the ninth descriptor has been there before: here the chain goes back to its second."""
    broken = Broken(open_viommu(queue_size=8), host, machine)
    chain = good(broken.viommu, (10, 5, 5))
    changed(chain, 2, next=chain.indexes[1])
    broken.viommu.requests.ring.post(chain)

    broken.publish()

    broken.expect_silence()


def test_requests_before_the_bad_one_of_a_batch_are_answered(broken: Broken, host: Host) -> None:
    """And none after it."""
    viommu, ring = broken.viommu, broken.viommu.requests.ring
    before = [viommu.chain(Attach(domain=number, endpoint=EP)) for number in (5, 6)]
    after = viommu.chain(Attach(domain=7, endpoint=EP))
    for chain in (*before, changed(good(viommu), 0, next=0xFFFF), after):
        ring.post(chain)

    broken.publish()

    assert [used.chain for used in ring.reap()] == before
    assert not ring.has_used
    assert domains(host) == {6: ([EP], 0)}


def test_one_unit_s_broken_ring_is_not_the_other_s(broken: Broken, open_viommu: OpenViommu, host: Host) -> None:
    """Each has rings of its own."""
    other = open_viommu(1)
    broken.viommu.requests.ring.post_head(0xFFFF)

    broken.publish()

    assert other.send(Attach(domain=1, endpoint=0x300)).ok
    assert unit_state(host, "iommu1")["ring-errors"] == 0


def test_a_configuration_generation_goes_with_needs_reset(broken: Broken, machine: dict[str, Any]) -> None:
    """D63: a configuration change notification MUST follow the bit."""
    if machine["attach"] == "vhost-user":
        pytest.skip("a unit attached by vhost-user cannot set DEVICE_NEEDS_RESET")
    before = broken.viommu.transport.generation
    broken.viommu.requests.ring.post_head(0xFFFF)

    broken.publish()

    assert broken.viommu.transport.generation == (before + 1) & 0xFF


def test_a_hundred_broken_rings_in_a_row(broken: Broken, host: Host, machine: dict[str, Any]) -> None:
    """Each reset starts from nothing."""
    viommu = broken.viommu
    for _ in range(100):
        viommu.start()
        viommu.requests.ring.put(3, Descriptor(NO_RAM, 4))
        viommu.requests.ring.post_head(3)
        broken.publish()

    broken.expect_service_after_a_reset()
