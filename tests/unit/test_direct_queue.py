"""The guest library waiting for a device that answers, and breaks, at the wrong moment."""

from __future__ import annotations

from typing import Any

import pytest

from guest_tests.payload.direct.errors import DeviceBroken
from guest_tests.payload.direct.queue import Queue
from guest_tests.payload.direct.virtio import DeviceStatus


class LastAnswer:
    """A ring and its device: nothing comes until the status is read, and the device is broken from then on."""

    function: Any = None

    def __init__(self, answers: list[Any]) -> None:
        self._answers = answers
        self._was_looked_at = False

    @property
    def status(self) -> DeviceStatus:
        self._was_looked_at = True
        return DeviceStatus.NEEDS_RESET

    @property
    def has_used(self) -> bool:
        return self._was_looked_at and bool(self._answers)

    def reap(self) -> list[Any]:
        found, self._answers = self._answers, []
        return found


class Scripted(Queue):
    """A queue on both."""

    def __init__(self, both: Any) -> None:
        self.ring = self.transport = both

    def describe(self, status: DeviceStatus) -> str:
        return "a scripted queue"


def test_an_answer_that_came_before_the_device_broke_is_an_answer() -> None:
    the_answer: Any = object()

    assert Scripted(LastAnswer([the_answer])).wait_used(1, 0.1) == [the_answer]


def test_a_device_that_broke_without_an_answer_is_broken() -> None:
    with pytest.raises(DeviceBroken):
        Scripted(LastAnswer([])).wait_used(1, 0.1)
