"""Registers and rings of a virtio-pci function at the ends of what they allow."""

from __future__ import annotations

import pytest

from tests.support import virtio_pci as regs
from tests.support.virtio_pci import OFFERED, READY, RUNNING, NotingRig
from vdev.functions.virtio_pci import DEVICE_OFFSET, ISR_OFFSET
from vdev.virtio.queue import Queue
from vdev.wire.virtio_pci import Status


@pytest.fixture
def rig() -> NotingRig:
    return NotingRig()


def test_the_configuration_generation_is_a_byte_that_wraps(rig: NotingRig) -> None:
    for _ in range(257):
        rig.function.config_changed()

    assert rig.driver.common().config_generation == 1


def test_a_reset_clears_the_isr(rig: NotingRig) -> None:
    rig.driver.start(OFFERED)
    rig.function.interrupt_queue(0)

    rig.driver.status(0)

    assert rig.driver.read(ISR_OFFSET, 1) == 0


def test_driver_ok_written_again_starts_nothing_again(rig: NotingRig) -> None:
    rig.driver.start(OFFERED)
    rig.device.calls.clear()

    rig.driver.status(RUNNING)

    assert rig.device.calls == []


def test_what_a_driver_chose_counts_from_features_ok_on(rig: NotingRig) -> None:
    rig.driver.status(Status.ACKNOWLEDGE)
    rig.driver.status(READY)
    rig.driver.features(OFFERED)

    rig.driver.write(DEVICE_OFFSET + 36, 1, 1)

    assert rig.device.calls[-1] == "config 36=01 features=0x0"


def test_a_queue_that_is_enabled_stays_so_until_a_reset(rig: NotingRig) -> None:
    rig.driver.negotiate(OFFERED)
    rig.driver.write(regs.QUEUE_ENABLE, 2, 1)

    rig.driver.write(regs.QUEUE_ENABLE, 2, 0)
    enabled = rig.driver.read(regs.QUEUE_ENABLE, 2)
    rig.driver.status(0)

    assert (enabled, rig.driver.read(regs.QUEUE_ENABLE, 2)) == (1, 0)


def test_all_16_bits_of_queue_select_count(rig: NotingRig) -> None:
    rig.driver.write(regs.QUEUE_SELECT, 2, 0x100)

    assert rig.driver.read(regs.QUEUE_SIZE, 2) == 0


def test_every_ring_is_told_at_once_that_memory_changed(rig: NotingRig, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Queue] = []
    rig.driver.start(OFFERED)
    monkeypatch.setattr(Queue, "memory_changed", lambda ring: told.append(ring))

    rig.function.memory_changed()

    assert len(told) == 2
    assert tuple(told) == rig.device.queues
