"""Nothing a guest or a vfio-user peer does may raise out of the device side: it would end the VM's whole process.

Seeded, a few seconds; VDEV_TIER=soak plays many more machines.
"""

from __future__ import annotations

import gc
import logging
import os
from random import Random

import pytest

from tests.support.hostile import HostileGuest, HostilePeer
from tests.support.vfio_scene import open_fds

SOAK = os.environ.get("VDEV_TIER") == "soak"
MACHINES = 2000 if SOAK else 40
MOVES = 250
MESSAGES = 300


@pytest.mark.soak(count=MACHINES * MOVES, seed=f"0..{MACHINES - 1}")
@pytest.mark.timeout(600)
def test_no_guest_makes_the_device_side_raise() -> None:
    answered = 0
    for seed in range(MACHINES):
        guest = HostileGuest(Random(seed))
        for _ in range(MOVES):
            guest.move()
        answered += guest.answered

    assert answered > MACHINES  # the moves do get as far as the engine


@pytest.mark.soak(count=MACHINES * MESSAGES, seed=f"0..{MACHINES - 1}")
@pytest.mark.timeout(600)
def test_no_peer_makes_a_session_raise_and_no_fd_is_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # kept log records keep errors, whose frames keep mappings
    gc.collect()
    before = open_fds()
    handled = refused = 0
    for seed in range(MACHINES):
        peer = HostilePeer(HostileGuest(Random(seed)))
        for _ in range(MESSAGES):
            peer.message()
        peer.leave()
        handled += peer.session.handled
        refused += peer.session.refused
    del peer
    gc.collect()

    assert open_fds() == before
    assert 0 < refused < handled * 0.75  # some messages get through
