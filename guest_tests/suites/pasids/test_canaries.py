"""DMA with a PASID that is foreign, freed, free-pending, unattached or disabled changes nothing, and each is told.

The canaries: pages of the guest's, and the RAM regions below 1 MiB as QEMU sees them. The addresses tried are those at
which another address space has a mapping, and those of the canaries themselves, which an untranslated access would hit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import FLAG_EXECUTE, FLAG_PRIVILEGED, Operation
from guest_tests.payload.direct import Accel, DmaArena, DmaBuffer, Reason, Viommu
from guest_tests.payload.fixtures import OpenAccel
from guest_tests.payload.host import Host

EP, NARROW_EP = 0x100, 0x200
RING_DOMAIN, DOMAIN, VICTIM = 1, 2, 3
RING_IOVA, IOVA = 0x0100_0000, 0x40_0000
PAGE = 4096
NCANARIES = 5
LOW = (0x9_0000, 0xF_0000)  # in the RAM below 1 MiB
NOBODYS = 0x7_7777


@dataclass
class Scene:
    """An engine with its ring in the RID's domain, and a pair that may do all that the others may not."""

    viommu: Viommu
    accel: Accel
    canaries: list[DmaBuffer]
    before: list[bytes]
    good: int

    @property
    def addresses(self) -> list[int]:
        """Where a refused access is tried: where a living pair has memory, and where memory is."""
        return [IOVA, *(one.gpa for one in self.canaries), *LOW]

    def changed(self) -> list[int]:
        """Addresses of canaries that are not what they were."""
        return [one.gpa for one, was in zip(self.canaries, self.before, strict=True) if one.read() != was]


@pytest.fixture
def scene(managed: Viommu, open_accel: OpenAccel, dma: DmaArena) -> Scene:
    accel = open_accel().start_in(managed, RING_DOMAIN, RING_IOVA)
    accel.function.enable_pasids(7)
    canaries = [dma.random(PAGE) for _ in range(NCANARIES)]
    good = managed.pasids.alloc().pasid
    managed.pasids.attach(domain=VICTIM, endpoint=EP, pasid=good)
    managed.map_buffer(VICTIM, IOVA, canaries[0])
    return Scene(managed, accel, canaries, [one.read() for one in canaries], good)


def never(scene: Scene) -> int:
    return NOBODYS


def unattached(scene: Scene) -> int:
    return scene.viommu.pasids.alloc().pasid


def detached(scene: Scene) -> int:
    pasid = scene.viommu.pasids.alloc().pasid
    scene.viommu.pasids.attach(domain=VICTIM, endpoint=EP, pasid=pasid)
    scene.viommu.pasids.detach(domain=VICTIM, endpoint=EP, pasid=pasid)
    return pasid


def freed(scene: Scene) -> int:
    pasid = detached(scene)
    scene.viommu.pasids.free(pasid)
    return pasid


def free_pending(scene: Scene) -> int:
    pasid = scene.viommu.pasids.alloc().pasid
    scene.viommu.pasids.attach(domain=VICTIM, endpoint=EP, pasid=pasid)
    scene.viommu.pasids.free(pasid)
    return pasid


def of_another_endpoint(scene: Scene) -> int:
    pasid = scene.viommu.pasids.alloc(1, 255).pasid
    scene.viommu.pasids.attach(domain=VICTIM, endpoint=NARROW_EP, pasid=pasid)
    return pasid


def following_a_rid_that_has_not_mapped_it(scene: Scene) -> int:
    pasid = scene.viommu.pasids.alloc().pasid
    scene.viommu.pasids.mirror(endpoint=EP, pasid=pasid)
    return pasid


def disabled(scene: Scene) -> int:
    scene.accel.function.enable_pasids(0)
    return scene.good


def rights_disabled(scene: Scene) -> int:
    scene.accel.function.enable_pasids(1)
    return scene.good


ALL = ("fill", "copy", "read")
CASES: dict[str, tuple[Callable[[Scene], int], Reason, int, tuple[str, ...]]] = {
    "never-allocated": (never, Reason.PASID, 0, ALL),
    "unattached": (unattached, Reason.PASID, 0, ALL),
    "detached": (detached, Reason.PASID, 0, ALL),
    "freed": (freed, Reason.PASID, 0, ALL),
    "free-pending": (free_pending, Reason.PASID, 0, ALL),
    "of-another-endpoint": (of_another_endpoint, Reason.PASID, 0, ALL),
    "mirror-of-nothing": (following_a_rid_that_has_not_mapped_it, Reason.MAPPING, 0, ALL),
    "disabled": (disabled, Reason.PASID_DISABLED, 0, ALL),
    "execute-disabled": (rights_disabled, Reason.PASID_DISABLED, FLAG_EXECUTE, ("read",)),
    "privileged-disabled": (rights_disabled, Reason.PASID_DISABLED, FLAG_PRIVILEGED, ALL),
}
OPERATIONS: dict[str, Callable[[int, int, int], Operation]] = {
    "fill": lambda iova, pasid, flags: Operation(engine.FILL, dst=iova, nbytes=64, arg=0xBAD, pasid=pasid, flags=flags),
    "copy": lambda iova, pasid, flags: Operation(
        engine.COPY, 0, iova, 64, pasid=pasid, flags=engine.FLAG_SRC_DEVMEM | flags
    ),
    "read": lambda iova, pasid, flags: Operation(engine.CHECKSUM, iova, nbytes=64, pasid=pasid, flags=flags),
}


@pytest.mark.parametrize("case", CASES)
def test_no_canary_changes_and_each_access_is_told(scene: Scene, host: Host, case: str) -> None:
    make, reason, flags, operations = CASES[case]
    pasid = make(scene)
    low = host.step("sha256_of_low_ram")
    tried = [(address, op) for address in scene.addresses for op in operations]

    statuses, told = [], []
    for address, op in tried:
        statuses.append(scene.accel.run(OPERATIONS[op](address, pasid, flags)).status)
        fault = scene.viommu.wait_fault()
        told.append((fault.reason, fault.pasid, fault.endpoint, fault.address))

    assert set(statuses) == {engine.TRANSLATION_FAULT}
    assert told == [(reason, pasid, EP, address) for address, _ in tried]
    assert scene.changed() == []
    assert host.step("sha256_of_low_ram") == low


def test_the_pair_that_may_reaches_what_the_others_did_not(scene: Scene) -> None:
    scene.accel.fill(IOVA, 64, 0x1234, pasid=scene.good)

    assert scene.changed() == [scene.canaries[0].gpa]


def test_a_pasid_too_wide_for_the_endpoint_changes_nothing(scene: Scene, open_accel: OpenAccel) -> None:
    accel = open_accel(1)
    scene.viommu.attach(domain=RING_DOMAIN + 10, endpoint=NARROW_EP)
    scene.viommu.map_buffer(RING_DOMAIN + 10, RING_IOVA, accel.ring)
    accel.start(RING_IOVA).function.enable_pasids()

    statuses = [accel.run(OPERATIONS["fill"](address, 256, 0)).status for address in scene.addresses]
    reasons = [scene.viommu.wait_fault().reason for _ in statuses]

    assert set(statuses) == {engine.TRANSLATION_FAULT}
    assert set(reasons) == {Reason.PASID_DISABLED}
    assert scene.changed() == []


def test_an_endpoint_without_the_capability_changes_nothing(scene: Scene, open_accel: OpenAccel) -> None:
    accel = open_accel(2)
    scene.viommu.attach(domain=RING_DOMAIN + 10, endpoint=accel.endpoint)
    scene.viommu.map_buffer(RING_DOMAIN + 10, RING_IOVA, accel.ring)
    accel.start(RING_IOVA)

    statuses = [accel.run(OPERATIONS["fill"](address, scene.good, 0)).status for address in scene.addresses]

    assert set(statuses) == {engine.TRANSLATION_FAULT}
    assert {scene.viommu.wait_fault().reason for _ in statuses} == {Reason.PASID_DISABLED}
    assert scene.changed() == []
