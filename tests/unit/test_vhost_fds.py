"""Eventfds of a vhost-user peer that makes them block again behind our back."""

from __future__ import annotations

import fcntl
import os

import pytest

from vdev.transports.vhost_fds import RingFds

pytestmark = pytest.mark.timeout(10)

FULL = (1 << 64) - 2


@pytest.mark.parametrize("what", ["call", "error"])
async def test_a_full_eventfd_that_was_made_blocking_does_not_stop_us(what: str) -> None:
    rings = RingFds(1, lambda index: None)
    fd = os.eventfd(0)
    os.eventfd_write(fd, FULL)
    getattr(rings, f"set_{what}")(0, fd)
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)

    getattr(rings, what)(0)

    assert os.eventfd_read(fd) == FULL
    rings.close()


@pytest.mark.parametrize("before", ["an eventfd nobody reads", "none"])
async def test_a_call_is_not_lost_when_its_eventfd_is_replaced(before: str) -> None:
    rings = RingFds(2, lambda index: None)
    rings.set_call(0, os.eventfd(0) if before != "none" else None)
    new, other = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))

    rings.call(0)
    rings.set_call(0, os.dup(new))
    rings.set_call(1, os.dup(other))

    assert os.eventfd_read(new) == 1
    with pytest.raises(BlockingIOError):
        os.eventfd_read(other)
    rings.close()
    os.close(new)
    os.close(other)


async def test_a_doorbell_its_peer_emptied_and_made_blocking_does_not_stop_us() -> None:
    kicks: list[int] = []
    rings = RingFds(1, kicks.append)
    fd = os.eventfd(1)
    rings.set_kick(0, fd)
    os.eventfd_read(fd)
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)

    rings._kicked(0, fd)

    assert kicks == [0]
    rings.close()
