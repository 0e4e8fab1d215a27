"""Fixtures of this suite. pytest imports this file on the host as well."""

from __future__ import annotations

import time

import pytest

from guest_tests.payload.guest import KernelLog
from guest_tests.payload.stock import within

WINDOW_S = 5.5  # virtio_iommu tells of ten faults in five seconds, and keeps the others to itself
ROOM_S = 15.0
ROOM = 5  # lines that a test may expect


@pytest.fixture
def talkative(kernel_log: KernelLog) -> None:
    """The kernel's log will have a line for each of the next few faults."""

    def has_room() -> bool:
        since = time.monotonic() - WINDOW_S
        told = kernel_log.find("virtio_iommu", " fault from EP ")
        return sum(float(line[1:].partition("]")[0]) > since for line in told) <= 10 - ROOM

    assert within(ROOM_S, has_room)
