"""Starts over vhost-user that cannot be: nothing of the driver before may stand in for what was refused."""

from __future__ import annotations

import pytest

from tests.support.vhost import ATTACH, OK, RAM_NBYTES, CarrierRig
from vdev.errors import MessageError
from vdev.memory import Region


def stopped() -> tuple[CarrierRig, tuple[int, int]]:
    """A driver that was served and stopped, and the indexes to go on from."""
    rig = CarrierRig()
    rig.start()
    assert rig.ask(ATTACH) == [OK]
    return rig, rig.stop()


def test_a_ring_to_go_on_with_whose_memory_is_gone_breaks_the_device_until_another_start() -> None:
    rig, bases = stopped()
    rig.carrier.memory.remove(0, RAM_NBYTES)
    rig.carrier.memory_changed()

    rig.start(*bases)
    broken = rig.carrier.broken
    rig.carrier.memory.add(Region(0, RAM_NBYTES, memoryview(rig.ram)))
    rig.carrier.memory_changed()
    rig.stop()
    rig.new_rings()
    rig.start()

    assert broken
    assert rig.ask(ATTACH) == [OK]


@pytest.mark.parametrize("refused", ["address", "size"])
def test_a_ring_whose_setting_was_refused_does_not_start_with_the_last_drivers(refused: str) -> None:
    rig, bases = stopped()
    before = bytes(rig.ram)
    rig.configure(*bases)

    if refused == "address":
        rig.carrier.forget_addresses(0)
    else:
        with pytest.raises(MessageError):
            rig.carrier.set_size(0, 1024)
    rig.carrier.enable(0, True)
    rig.carrier.enable(1, True)
    rig.run()

    assert rig.carrier.broken
    assert rig.ram == before


def test_a_ring_without_addresses_is_not_taken_to_be_at_0() -> None:
    rig = CarrierRig()
    for index in range(2):
        rig.carrier.set_kick(index)

    for index in range(2):
        rig.carrier.enable(index, True)
    rig.run()

    assert rig.carrier.broken
    assert not any(rig.ram)


def break_before_anything_is_taken(rig: CarrierRig) -> None:
    """Claim more entries than the ring has."""
    for head in range(rig.requests.size + 1):
        rig.requests.offer(head % rig.requests.size)
    rig.requests.publish()
    rig.run()


def test_a_new_driver_with_the_rings_of_one_that_broke_them_at_once_is_served() -> None:
    rig = CarrierRig()
    rig.start()
    break_before_anything_is_taken(rig)
    broken = rig.carrier.broken
    bases = rig.stop()
    rig.new_rings()

    rig.start(*bases)

    assert broken
    assert bases == (0, 0)
    assert rig.ask(ATTACH) == [OK]


def test_the_driver_that_broke_its_rings_at_once_finds_them_broken_after_a_stop_as_well() -> None:
    rig = CarrierRig()
    rig.start()
    break_before_anything_is_taken(rig)

    rig.start(*rig.stop())
    rig.run()

    assert rig.carrier.broken
