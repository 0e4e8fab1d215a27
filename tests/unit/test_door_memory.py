"""What a device behind the IOMMU reaches, as memory a ring can lie in."""

from __future__ import annotations

import pytest

from tests.support.virtio_endpoint import IOVA, LONE_AT, LONE_IOVA, PAGE, RngRig
from tests.support.virtio_pci import RAM_GPA, RAM_NBYTES
from vdev.endpoints.virtio import ENDPOINT_FEATURES
from vdev.errors import MemoryAccessError
from vdev.functions.door_memory import MAX_CHAIN_PIECES, MIN_CHAIN_NBYTES, DoorMemory
from vdev.memory import Memory
from vdev.wire import viommu as wire


@pytest.fixture
def rig() -> RngRig:
    return RngRig()


@pytest.fixture
def memory(rig: RngRig) -> DoorMemory:
    return DoorMemory(rig.door)


def lost(memory: Memory, iova: int) -> bool:
    """Whether the refusal of a write at `iova` is one to wait for."""
    with pytest.raises(MemoryAccessError) as caught:
        memory.slices(iova, 4, write=True)
    assert caught.value.gpa == iova
    return caught.value.lost


def test_addresses_are_iovas_and_views_are_guest_memory(rig: RngRig, memory: DoorMemory) -> None:
    rig.map(LONE_IOVA, LONE_AT, PAGE)

    memory.slices(LONE_IOVA + 16, 4, write=True)[0][:] = b"abcd"

    assert bytes(rig.driver.ram[LONE_AT + 16 : LONE_AT + 20]) == b"abcd"


def test_a_range_over_two_mappings_comes_in_pieces(rig: RngRig, memory: DoorMemory) -> None:
    rig.map(LONE_IOVA, LONE_AT, PAGE)
    rig.map(LONE_IOVA + PAGE, 0, PAGE)

    views = memory.slices(LONE_IOVA + PAGE - 8, 16, write=False)

    assert [len(view) for view in views] == [8, 8]


def test_no_region_is_promised_so_that_every_buffer_is_translated(memory: DoorMemory) -> None:
    assert memory.find(IOVA) is None


def test_the_generation_moves_with_each_slice(rig: RngRig) -> None:
    rig.start()
    reach = rig.rng._reach
    before = reach.generation

    rig.run()

    assert reach.generation == before + 1


def test_what_the_iommu_refuses_is_final(rig: RngRig, memory: DoorMemory) -> None:
    rig.map(LONE_IOVA, LONE_AT, PAGE, wire.MAP_F_READ)

    assert not lost(memory, LONE_IOVA)
    assert not lost(memory, LONE_IOVA + PAGE)
    assert len(rig.engine.pending_faults) == 2


def test_bus_master_off_and_frozen_pass(rig: RngRig, memory: DoorMemory) -> None:
    rig.driver.bus_master(False)
    off = lost(memory, IOVA)
    rig.driver.bus_master(True)
    rig.door.frozen = True

    assert (off, lost(memory, IOVA)) == (True, True)
    assert not rig.engine.pending_faults


def test_what_is_no_ram_is_final_and_ram_that_went_away_passes(rig: RngRig, memory: DoorMemory) -> None:
    rig.ask(wire.Map(wire.T_MAP, bytes(3), 1, LONE_IOVA, LONE_IOVA + PAGE - 1, 0xE000_0000, wire.MAP_F_WRITE))
    never = lost(memory, LONE_IOVA)
    rig.rng.memory.remove(RAM_GPA, RAM_NBYTES)

    assert (never, lost(memory, IOVA)) == (False, True)


@pytest.mark.parametrize(("granule", "nbytes"), [(1, MIN_CHAIN_NBYTES), (PAGE, MAX_CHAIN_PIECES * PAGE)])
def test_chains_and_slices_are_bounded_by_what_translation_costs(granule: int, nbytes: int) -> None:
    rig = RngRig(granule=granule).start(ENDPOINT_FEATURES)
    ring = rig.rng._queue_device.queue(0)

    assert ring is not None
    assert ring.max_chain_nbytes == nbytes
    assert rig.rng._queue_device.batch_nbytes == min(nbytes, 1 << 20)
