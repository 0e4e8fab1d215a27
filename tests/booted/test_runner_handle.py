"""`guest_on`: tests on the host that call functions in a guest, and do things to it in between."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest_tests.boot import ControlError
from guest_tests.runner.agent import CallFailed
from guest_tests.runner.guest import GuestGone
from guest_tests.runner.handle import FaultsOf, GuestHandle, GuestOn
from tests.booted.conftest import CONFIG
from vdev.config.schema import ATTACHMENTS, Attach

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

INSIDE = Path(__file__).parent / "inside"
WAIT_S = 20.0
RING = 1  # the mapping of the accelerator's own ring


@pytest.fixture(params=ATTACHMENTS)
def guest(request: pytest.FixtureRequest, guest_on: GuestOn) -> GuestHandle:
    attach: Attach = request.param
    return guest_on(CONFIG, files=INSIDE, attach=attach)


def test_what_one_call_leaves_is_there_for_the_next_also_over_a_stop(guest: GuestHandle) -> None:
    guest.call("mappings:make", count=3)
    guest.qmp("stop")
    mapped = guest.control("query-iommu")[0]["mappings"]
    guest.qmp("cont")
    filled = guest.call("mappings:fill", byte=0x41)

    assert mapped == 3 + RING
    assert filled == [0x41] * 3


def test_what_a_call_raises_comes_with_the_guests_traceback(guest: GuestHandle) -> None:
    with pytest.raises(CallFailed, match="mappings:fill: IndexError") as caught:
        guest.call("mappings:fill", byte=0)

    assert "in fill" in caught.value.traceback
    assert len(guest.call("mappings:make", count=2)) == 2


def test_a_call_that_takes_too_long_is_the_end_of_its_guest(guest_on: GuestOn) -> None:
    guest = guest_on(CONFIG, files=INSIDE)

    with pytest.raises(GuestGone, match="did not finish within 1 s: mappings:hang") as caught:
        guest.call("mappings:hang", limit=1)

    assert "QMP, last messages" in dict(caught.value.sections)


@pytest.fixture
def watched(guest_on: GuestOn) -> Iterator[GuestHandle]:
    """A guest in which nothing of a fault plan is left once the fixture `faults` is torn down."""
    guest = guest_on(CONFIG, files=INSIDE)
    yield guest
    assert guest.control("query-fault-plan")["rules"] == []


def test_faults_are_injected_from_the_host_for_the_length_of_a_block_or_of_the_test(
    watched: GuestHandle, faults: FaultsOf
) -> None:
    plan = faults(watched)
    with plan.injected("timer", "config-change", id="now") as rule:
        deadline = time.monotonic() + WAIT_S
        while not rule.fired:
            assert time.monotonic() < deadline
    plan.add("timer", "die", when={"delay": 86400})

    with pytest.raises(ControlError, match="no action at the point timer"):
        plan.add("timer", "status")

    assert (rule.fired, [firing["do"] for firing in rule.log()]) == (1, ["config-change"])
    assert len(watched.control("query-fault-plan")["rules"]) == 1


def test_a_guest_that_was_killed_has_no_plan_to_clear(guest_on: GuestOn, faults: FaultsOf) -> None:
    guest = guest_on(CONFIG, files=INSIDE)
    faults(guest).add("request", "drop")

    guest.kill()

    with pytest.raises(GuestGone):
        guest.control("query-status")
