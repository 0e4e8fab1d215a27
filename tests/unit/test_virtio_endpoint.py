"""A virtio device behind the IOMMU: what becomes of every access that is refused, and of resets in mid-work."""

from __future__ import annotations

import pytest

from tests.support.virtio_endpoint import IOVA, LONE_AT, LONE_IOVA, PAGE, RngRig
from tests.support.virtio_pci import NEGOTIATED, READY, RUNNING
from vdev.backends.entropy import SeededEntropy
from vdev.endpoints.virtio import ENDPOINT_FEATURES
from vdev.functions.base import Progress
from vdev.wire import pci, vring
from vdev.wire import viommu as wire
from vdev.wire.virtio_pci import F_ACCESS_PLATFORM, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Status


@pytest.fixture
def rig() -> RngRig:
    return RngRig().start()


def stream(nbytes: int) -> bytes:
    """The beginning of what `source: seed:1` gives."""
    return SeededEntropy(1)(nbytes)


@pytest.mark.parametrize("missing", [F_ACCESS_PLATFORM, F_VERSION_1])
def test_a_driver_that_would_bypass_the_iommu_is_refused_features_ok(missing: int) -> None:
    rig = RngRig()

    assert rig.driver.negotiate(ENDPOINT_FEATURES & ~missing) == READY
    assert rig.driver.negotiate(ENDPOINT_FEATURES) == NEGOTIATED


def test_ring_features_are_the_drivers_choice() -> None:
    rig = RngRig()

    assert rig.driver.negotiate(ENDPOINT_FEATURES & ~(F_EVENT_IDX | F_INDIRECT_DESC)) == NEGOTIATED


def broken(rig: RngRig) -> bool:
    """Whether the device says that it needs a reset, once, and does nothing more."""
    status = rig.driver.status() == RUNNING | Status.DEVICE_NEEDS_RESET
    return status and rig.run() is Progress.IDLE and rig.driver.vectors.count(0) == 1


def test_an_unmapped_buffer_breaks_the_device_and_the_guest_gets_the_fault(rig: RngRig) -> None:
    rig.post_lone()

    rig.run()

    assert broken(rig)
    assert rig.fault_records() == [(LONE_IOVA, wire.MAP_F_WRITE)]
    assert rig.faults_told == 1
    assert rig.door.refused == {"not-mapped": 1}
    assert rig.rng.describe()["needs-reset"]


def test_a_read_only_buffer_breaks_the_device_and_stays_as_it_was(rig: RngRig) -> None:
    rig.map(LONE_IOVA, LONE_AT, PAGE, wire.MAP_F_READ)
    rig.post_lone()

    rig.run()

    assert broken(rig)
    assert rig.fault_records() == [(LONE_IOVA, wire.MAP_F_WRITE)]
    assert bytes(rig.driver.ram[LONE_AT:]) == bytes(PAGE)


def test_a_buffer_mapped_to_no_ram_breaks_the_device(rig: RngRig) -> None:
    rig.ask(wire.Map(wire.T_MAP, bytes(3), 1, LONE_IOVA, LONE_IOVA + PAGE - 1, 0xE000_0000, wire.MAP_F_WRITE))
    rig.post_lone()

    rig.run()

    assert broken(rig)
    assert rig.door.refused == {"unsupported-request": 1}
    assert rig.fault_records() == []


def test_a_ring_that_is_unmapped_in_mid_work_breaks_the_device(rig: RngRig) -> None:
    rig.drawn(64)
    rig.post(64)
    rig.unmap(IOVA, len(rig.driver.ram))

    rig.run()

    assert broken(rig)
    assert rig.fault_records() == [(rig.ring.desc_gpa, wire.MAP_F_READ)]


def test_a_ring_that_is_not_mapped_at_driver_ok_breaks_the_device() -> None:
    rig = RngRig()
    rig.unmap(IOVA, len(rig.driver.ram))

    rig.start()

    assert broken(rig)
    assert rig.fault_records() == [(rig.ring.desc_gpa, wire.MAP_F_READ)]


def test_what_was_done_before_the_refusal_is_not_lost(rig: RngRig) -> None:
    rig.ring.add([], [64])
    rig.post_lone()

    rig.run()

    assert [each.data for each in rig.ring.reap()] == [stream(64)]
    assert broken(rig)


def test_a_reset_heals_a_broken_device(rig: RngRig) -> None:
    rig.post_lone()
    rig.run()

    rig.start()

    assert rig.driver.status() == RUNNING
    assert rig.drawn(64) == stream(64)


def test_a_remap_between_slices_is_seen(rig: RngRig) -> None:
    rig.map(LONE_IOVA, LONE_AT, PAGE)
    rig.drawn(16)
    rig.unmap(LONE_IOVA, PAGE)
    rig.map(LONE_IOVA, LONE_AT - PAGE, PAGE)

    rig.post_lone(16)
    rig.run()

    assert bytes(rig.driver.ram[LONE_AT - PAGE : LONE_AT - PAGE + 16]) == stream(32)[16:]
    assert bytes(rig.driver.ram[LONE_AT:]) == bytes(PAGE)


def test_bus_master_off_in_mid_work_waits_and_goes_on(rig: RngRig) -> None:
    rig.drawn(32)
    rig.driver.bus_master(False)
    rig.post(32)
    waiting = rig.run(), rig.ring.has_used(), rig.driver.status()
    rig.woken.clear()

    rig.driver.bus_master(True)
    rig.run()

    assert waiting == (Progress.IDLE, False, RUNNING)
    assert rig.woken == [rig.rng]
    assert [each.data for each in rig.ring.reap()] == [stream(64)[32:]]


def test_bus_master_off_at_driver_ok_waits_too() -> None:
    rig = RngRig()
    rig.driver.bus_master(False)
    rig.start()
    rig.post(8)
    rig.run()
    status = rig.driver.status()

    rig.driver.bus_master(True)
    rig.run()

    assert status == RUNNING
    assert [each.data for each in rig.ring.reap()] == [stream(8)]


def test_a_frozen_endpoint_touches_nothing_and_goes_on_when_thawed(rig: RngRig) -> None:
    rig.rng.freeze(True)
    rig.post(64)
    before = bytes(rig.driver.ram)
    frozen = rig.run()
    same = bytes(rig.driver.ram) == before
    rig.woken.clear()

    rig.rng.freeze(False)
    rig.run()

    assert (frozen, same) == (Progress.IDLE, True)
    assert rig.woken == [rig.rng]
    assert [each.data for each in rig.ring.reap()] == [stream(64)]


def test_a_start_while_frozen_waits_for_the_thaw() -> None:
    rig = RngRig()
    rig.rng.freeze(True)
    rig.start()
    rig.post(8)

    rig.rng.freeze(False)
    rig.run()

    assert rig.driver.status() == RUNNING
    assert [each.data for each in rig.ring.reap()] == [stream(8)]


def test_ram_that_qemu_takes_away_and_gives_back_is_waited_for(rig: RngRig) -> None:
    (region,) = rig.rng.memory.remove(0x10_0000, 1 << 20)
    rig.rng.memory_changed()
    rig.post(8)
    without = rig.run(), rig.driver.status()

    rig.rng.memory.add(region)
    rig.rng.memory_changed()
    rig.run()

    assert without == (Progress.IDLE, RUNNING)
    assert [each.data for each in rig.ring.reap()] == [stream(8)]


@pytest.mark.parametrize("how", ["status", "function-level", "system"])
def test_nothing_lands_after_a_reset_in_mid_work(rig: RngRig, how: str) -> None:
    rig.post(64)
    resets: list[str] = []
    rig.rng.was_reset = lambda: resets.append(how)
    if how == "status":
        rig.driver.status(0)
    elif how == "system":
        rig.rng.reset()
    else:
        pcie = rig.rng.config.find(pci.CapId.PCIE)
        assert pcie is not None
        rig.rng.config_write(pcie + pci.DEVCTL, pci.DEVCTL_FLR.to_bytes(2, "little"))
    before = bytes(rig.driver.ram)

    progress = rig.run()

    assert progress is Progress.IDLE
    assert bytes(rig.driver.ram) == before
    assert resets == [how]


def test_a_reset_of_the_iommu_stops_the_rings_until_the_driver_resets_the_device(rig: RngRig) -> None:
    rig.post(64)
    rig.rng.quiesce()
    before = bytes(rig.driver.ram)

    rig.run()
    stopped = bytes(rig.driver.ram) == before
    needs_reset = broken(rig)
    rig.start()

    assert stopped
    assert needs_reset
    assert rig.drawn(8) == stream(8)


def test_a_reset_of_the_iommu_before_the_driver_runs_changes_nothing() -> None:
    rig = RngRig()
    rig.driver.negotiate(ENDPOINT_FEATURES)

    rig.rng.quiesce()

    assert rig.driver.status() == NEGOTIATED


def test_a_chain_longer_than_the_door_allows_breaks_the_ring() -> None:
    rig = RngRig(granule=1).start()
    entries = ((IOVA, 0x8000, vring.DESC_F_WRITE | vring.DESC_F_NEXT), (IOVA, 0x8001, vring.DESC_F_WRITE))
    for number, (iova, nbytes, flags) in enumerate(entries):
        rig.ring.write_descriptor(number, iova, nbytes, flags, following=1)
    rig.ring.offer(0)
    rig.ring.publish()

    rig.run()

    assert broken(rig)
