"""The virtio-iommu device when memory comes and goes under its rings, and what one slice of it may cost."""

from __future__ import annotations

from random import Random
from weakref import ref

import pytest

from tests.support import hostile
from tests.support import virtio_pci as regs
from tests.support.viommu import ATTACH, LATER, MAP, OK, ViommuRig
from vdev.functions.base import Progress
from vdev.functions.virtio_device import BATCH_SEGMENTS
from vdev.iommu.domains import SWEEP_BLOCKS
from vdev.iommu.engine import Engine
from vdev.iommu.intervals import BLOCK_MAX
from vdev.memory import Region
from vdev.virtio.queue import Queue
from vdev.wire import accelerator as acc
from vdev.wire import viommu as wire
from vdev.wire import vring
from vdev.wire.virtio_pci import Status


@pytest.fixture
def rig() -> ViommuRig:
    return ViommuRig()


def test_rings_whose_memory_is_gone_for_the_moment_are_waited_for_and_no_kick_is_lost(rig: ViommuRig) -> None:
    (region,) = rig.function.memory.remove(regs.RAM_GPA, regs.RAM_NBYTES)
    rig.function.memory_changed()
    rig.driver.submit(0, [ATTACH], [4])

    progress = [rig.run(), rig.run()]  # a slice between QEMU's DMA_UNMAP and its DMA_MAP
    before = rig.woken
    rig.function.memory.add(region)
    rig.function.memory_changed()

    assert progress == [Progress.IDLE, Progress.IDLE]
    assert not rig.driver.status() & Status.DEVICE_NEEDS_RESET
    assert rig.woken == before + 1
    rig.run()
    assert [done.data for done in rig.requests.reap()] == [OK]


def test_memory_lost_while_notifications_are_being_enabled_again_loses_no_kick(rig: ViommuRig) -> None:
    rig.ask(ATTACH)
    (region,) = rig.function.memory.remove(regs.RAM_GPA, regs.RAM_NBYTES)
    rig.function.memory_changed()
    rig.now += LATER
    assert rig.run() is Progress.IDLE

    rig.function.memory.add(region)
    rig.function.memory_changed()
    rig.idle()

    assert rig.driver.submit(0, [MAP], [4])  # it is asked to kick


def test_a_buffer_in_memory_that_is_gone_for_the_moment_is_waited_for(rig: ViommuRig) -> None:
    other = Region(0x4000_0000, 4096, memoryview(bytearray(4096)))
    other_view = other.view
    assert other_view is not None
    other_view[: len(ATTACH)] = ATTACH
    rig.function.memory.add(other)
    rig.function.memory.remove(other.gpa, other.nbytes)
    rig.function.memory_changed()
    rig.requests.write_descriptor(0, other.gpa, len(ATTACH), vring.DESC_F_NEXT, 1)
    rig.requests.write_descriptor(1, other.gpa + 64, 4, vring.DESC_F_WRITE)
    rig.requests.offer(0)
    rig.requests.publish()

    rig.run()
    rig.function.memory.add(other)
    rig.function.memory_changed()
    rig.run()

    assert not rig.driver.status() & Status.DEVICE_NEEDS_RESET
    assert rig.attached
    assert rig.requests.has_used()


def test_a_buffer_where_there_never_was_memory_needs_a_reset(rig: ViommuRig) -> None:
    rig.requests.write_descriptor(0, 0x4000_0000, 20, 0)
    rig.requests.offer(0)
    rig.requests.publish()

    rig.run()

    assert rig.driver.status() & Status.DEVICE_NEEDS_RESET


def test_an_event_buffer_out_of_reach_does_not_keep_requests_waiting(rig: ViommuRig) -> None:
    rig.function.memory.add(Region(0x4000_0000, 4096, memoryview(bytearray(4096))))
    rig.function.memory.remove(0x4000_0000, 4096)
    rig.events.write_descriptor(0, 0x4000_0000, 24, vring.DESC_F_WRITE)
    rig.events.offer(0)
    rig.events.publish()
    rig.fault()

    assert rig.ask(ATTACH) == [OK]
    rig.idle()

    assert rig.driver.submit(0, [MAP], [4])  # it is asked to kick
    assert len(rig.engine.pending_faults) == 1


def test_chains_of_many_empty_buffers_share_a_slice_by_their_number(rig: ViommuRig) -> None:
    table = regs.RAM_NBYTES // 2
    for index in range(1024):
        flags = vring.DESC_F_NEXT if index < 1023 else 0
        vring.DESCRIPTOR.pack_into(rig.driver.ram, table + 16 * index, regs.RAM_GPA, 0, flags, index + 1)
    for head in range(16):
        rig.requests.write_descriptor(head, regs.RAM_GPA + table, 16 * 1024, vring.DESC_F_INDIRECT)
        rig.requests.offer(head)
    rig.requests.publish()

    rig.run()

    used = rig.requests.used_words[vring.IDX_WORD]
    assert used == BATCH_SEGMENTS // 1024
    rig.run()
    assert rig.requests.used_words[vring.IDX_WORD] == 16


def test_event_buffers_of_many_pieces_share_slices_and_faults_that_are_left_are_delivered_next(rig: ViommuRig) -> None:
    table, report = regs.RAM_NBYTES // 2, regs.RAM_GPA + regs.RAM_NBYTES // 4
    for index in range(1024):
        flags = vring.DESC_F_WRITE | (vring.DESC_F_NEXT if index < 1023 else 0)
        vring.DESCRIPTOR.pack_into(rig.driver.ram, table + 16 * index, report, 0 if index else 24, flags, index + 1)
    for head in range(16):
        rig.events.write_descriptor(head, regs.RAM_GPA + table, 16 * 1024, vring.DESC_F_INDIRECT)
        rig.events.offer(head)
        rig.fault()
    rig.events.publish()

    progress = rig.run()

    assert progress is Progress.BUSY
    assert rig.events.used_words[vring.IDX_WORD] == BATCH_SEGMENTS // 1024
    rig.run()
    assert rig.events.used_words[vring.IDX_WORD] == 16


def test_a_reset_lets_go_of_the_rings_at_once(rig: ViommuRig) -> None:
    rig.ask(ATTACH)
    rings = [ref(ring) for index in (0, 1) if (ring := rig.device.queue(index)) is not None]
    del ring

    rig.driver.status(0)

    assert [one() for one in rings] == [None, None]


def test_what_an_unmap_removed_is_swept_up_in_parts_before_the_device_rests(rig: ViommuRig) -> None:
    rig.ask(ATTACH)
    map_many(rig.engine, SWEEP_BLOCKS * BLOCK_MAX)

    rig.ask(wire.Unmap(wire.T_UNMAP, bytes(3), 1, 0, (1 << 39) - 1).pack())
    rig.now += LATER
    slices = 0
    while rig.run() is not Progress.IDLE:
        slices += 1

    assert rig.engine.describe()["mappings"] == 0
    assert slices > 1
    assert not rig.engine.sweep()


@pytest.mark.parametrize("reset", ["reset", "system_reset", "host_reset"])
def test_what_a_reset_removed_is_swept_up_without_a_kick(rig: ViommuRig, reset: str) -> None:
    rig.ask(ATTACH)
    map_many(rig.engine, 1)
    before = rig.woken

    getattr(rig.device, reset)()

    assert rig.woken == before + 1


def test_event_buffers_that_come_and_go_end_a_slice(rig: ViommuRig, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Queue] = []

    def pop(ring: Queue) -> None:
        looks.append(ring)
        assert len(looks) < 1000

    monkeypatch.setattr(Queue, "pop", pop)
    monkeypatch.setattr(Queue, "rearm", lambda ring: True)
    rig.fault()

    rig.run()

    assert len(looks) > rig.events.size


@pytest.mark.parametrize("how", ["status 0", "DEVICE_RESET"])
def test_after_a_reset_of_the_unit_nothing_of_an_endpoint_lands_although_bypass_is_on(how: str) -> None:
    machines = (hostile.HostileGuest(Random(seed)) for seed in range(100))
    guest = next(guest for guest in machines if guest.engine.bypass and guest.engine.granule == hostile.PAGE)
    guest.start()
    guest.program_accelerator()
    for index in range(hostile.RING_SIZE):
        descriptor = acc.Descriptor(acc.Op.FILL, 0, index, 0, 0, 0x30000, 0x8000, 0xA5, bytes(24))
        at = hostile.RING + index * acc.DESCRIPTOR_NBYTES
        guest.ram[at : at + acc.DESCRIPTOR_NBYTES] = descriptor.pack()
    guest.accelerator.bar_write(0, acc.Register.RING_TAIL, (hostile.RING_SIZE - 1).to_bytes(4, "little"))
    guest.accelerator.run_slice(0)
    before = guest.accelerator.describe()["completed"]

    if how == "status 0":
        guest.driver.status(0)
    else:
        guest.function.reset()
    ram = bytes(guest.ram)
    progress = guest.accelerator.run_slice(1)

    assert guest.engine.bypass
    assert 0 < before < hostile.RING_SIZE - 1
    assert progress is Progress.IDLE
    assert bytes(guest.ram) == ram
    assert guest.accelerator.describe()["completed"] == before


def map_many(engine: Engine, count: int) -> None:
    """`count` mappings of a page in domain 1, a page apart."""
    for number in range(count):
        iova = number * 0x2000
        engine.handle(wire.Map(wire.T_MAP, bytes(3), 1, iova, iova + 0xFFF, 0x10_0000, wire.MAP_F_READ).pack(), 4)
