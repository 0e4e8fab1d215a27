"""The kernel PASID under the stock kernel's VFIO: every MAP, UNMAP and re-ATTACH is followed, and nothing more.

The accelerator makes no accesses without a PASID; all it does, its ring included, goes through the kernel's mappings by
the PASID that the host attached. Its capability is enabled through sysfs, beside vfio-pci, which hides it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from guest_tests.payload import accel, vfio
from guest_tests.payload.accel import Accelerator, Completion, Operation
from guest_tests.payload.beside import Beside
from guest_tests.payload.guest import KernelLog
from guest_tests.payload.host import Host
from guest_tests.payload.lab import MARKER, NOWHERE_IOVA, PAGE, RING_IOVA, SOURCE_IOVA, TARGET_IOVA, Lab, copy
from guest_tests.payload.stock_fixtures import opened_lab

PAGEMAP_ENTRY_NBYTES = 8
PAGEMAP_PFN = (1 << 55) - 1
READ, WRITE = vfio.READ, vfio.WRITE


class Scene:
    """An opened accelerator whose engine does everything with the kernel PASID."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        registers = lab.engine.registers
        self.pasid = registers.read32(accel.KERNEL_PASID)
        assert self.pasid
        assert Beside(lab.bdf).enable_pasids() == 1
        self.engine = Accelerator(registers, lab.ring.memory, RING_IOVA, self.pasid)
        self.engine.start()

    def run(self, operation: Operation, pasid: int | None = None) -> Completion:
        """The operation with the kernel PASID, or another."""
        started = time.monotonic_ns()
        tagged = replace(operation, pasid=self.pasid if pasid is None else pasid)
        return self.engine.wait(self.engine.submit(tagged), started)

    def copies(self) -> bool:
        """Whether a copy of everything passes, and arrives."""
        content = self.lab.randomise_source()
        passed = self.run(copy()).status == accel.OK
        assert (self.lab.target.memory == content) is passed
        return passed


@pytest.fixture
def scene(lab: Lab) -> Scene:
    return Scene(lab)


@pytest.fixture(autouse=True)
def _no_crash(kernel_log: KernelLog) -> Iterator[None]:
    mark = kernel_log.mark()
    yield
    assert kernel_log.find("BUG:", since=mark) == []


def refused(host: Host) -> dict[str, int]:
    """What accesses of the accelerator were refused for, so far."""
    (found,) = host.control("query-endpoints", endpoint="accel0")
    return {count["name"]: count["count"] for count in found["dma-refused"]}


def gpa_of(buffer: vfio.Buffer) -> int:
    """The guest-physical address of its first page."""
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(buffer.address // PAGE * PAGEMAP_ENTRY_NBYTES)
        entry = int.from_bytes(pagemap.read(PAGEMAP_ENTRY_NBYTES), "little")
    return (entry & PAGEMAP_PFN) * PAGE


def test_it_reaches_what_vfio_maps_as_long_as_it_is_mapped(scene: Scene) -> None:
    seen = []
    for _ in range(3):
        seen.append(scene.copies())
        with scene.lab.both_mapped():
            seen.append(scene.copies())

    assert seen == [False, True] * 3


def test_it_follows_each_page_and_has_its_rights(scene: Scene) -> None:
    page = vfio.Buffer(PAGE)
    fill = Operation(accel.FILL, dst=TARGET_IOVA, nbytes=64, arg=0x11)
    read = Operation(accel.CHECKSUM, TARGET_IOVA, nbytes=64)

    scene.lab.container.map(TARGET_IOVA, page, READ)
    read_only = scene.run(read).status, scene.run(fill).status
    scene.lab.container.unmap(TARGET_IOVA, PAGE)
    gone = scene.run(read).status
    scene.lab.container.map(TARGET_IOVA, page, READ | WRITE)
    written = scene.run(fill).status
    scene.lab.container.unmap(TARGET_IOVA, PAGE)

    assert read_only == (accel.OK, accel.TRANSLATION_FAULT)
    assert (gone, written) == (accel.TRANSLATION_FAULT, accel.OK)
    assert bytes(page.memory[:8]) == (0x11).to_bytes(8, "little")


def test_it_reaches_nothing_more(scene: Scene) -> None:
    scene.lab.randomise_source()
    gpa = gpa_of(scene.lab.target)

    with scene.lab.both_mapped():
        tried = [NOWHERE_IOVA, SOURCE_IOVA - PAGE, gpa, 0x1000, 0xFEE0_0000]
        statuses = [scene.run(Operation(accel.FILL, dst=address, nbytes=64, arg=0xBAD)).status for address in tried]

    assert set(statuses) == {accel.TRANSLATION_FAULT}
    assert set(bytes(scene.lab.target.memory)) == {MARKER}


def test_another_pasid_reaches_nothing(scene: Scene) -> None:
    with scene.lab.both_mapped():
        outcomes = [scene.run(copy(), pasid).status for pasid in (scene.pasid + 1, 0x7_7777)]

    assert outcomes == [accel.TRANSLATION_FAULT] * 2


def test_a_closed_container_leaves_it_nothing_and_the_next_is_followed(kernel_log: KernelLog, host: Host) -> None:
    pasids = set()
    for _ in range(3):
        with opened_lab(kernel_log) as lab:
            scene = Scene(lab)
            before = scene.copies()  # what the last container had there is gone
            with lab.both_mapped():
                assert (before, scene.copies()) == (False, True)
            pasids.add(scene.pasid)

    assert len(pasids) == 1


def test_without_a_pasid_it_is_refused_although_it_is_mapped(scene: Scene, host: Host, lab: Lab) -> None:
    before = refused(host).get("pasid-required", 0)

    with lab.both_mapped():
        status = scene.run(copy(), 0).status

    assert status == accel.TRANSLATION_FAULT
    assert refused(host)["pasid-required"] == before + 1


def test_with_its_capability_off_it_is_refused(scene: Scene, host: Host, lab: Lab) -> None:
    with lab.both_mapped():
        Beside(lab.bdf).enable_pasids(0)
        index = scene.engine.submit(replace(copy(), pasid=scene.pasid))
        stopped = comes_to(lambda: not lab.engine.registers.read32(accel.STATUS) & accel.RUNNING)

    assert stopped
    assert scene.engine.status_of(index) == accel.PENDING
    assert lab.engine.registers.read32(accel.ERROR) == accel.ERROR_RING_FETCH
    assert refused(host)["pasid-disabled"] > 0


def test_the_driver_saw_nothing_of_it(host: Host) -> None:
    (unit,) = host.control("query-pasid-set")["units"]
    (mine,) = host.control("query-pasids")["pasids"]

    assert unit["mode"] == "not-negotiated"
    assert (mine["owner"], [pair["follows"] for pair in mine["pairs"]]) == ("host", [True])


def comes_to(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether it comes to hold."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True
