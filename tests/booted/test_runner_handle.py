"""`guest_on`: tests on the host that call functions in a guest, and do things to it in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest_tests.runner.agent import CallFailed
from guest_tests.runner.guest import GuestGone
from guest_tests.runner.handle import GuestHandle, GuestOn
from tests.booted.conftest import CONFIG
from vdev.config.schema import ATTACHMENTS, Attach

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

INSIDE = Path(__file__).parent / "inside"
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
