"""PASIDs under a kernel that knows of none: what is refused or taken is the kernel PASID of accel1 (docs/pasids.md).

The machine's own plan refuses it once, at the start; here it is asked for again with every quota.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from guest_tests.payload import accel, vfio
from guest_tests.payload.accel import Accelerator, Operation
from guest_tests.payload.beside import Beside
from guest_tests.payload.fault_fixtures import Faults, Rule
from guest_tests.payload.guest import KernelLog, endpoint_id
from guest_tests.payload.host import Host
from guest_tests.payload.lab import PAGE, RING_IOVA, TARGET_IOVA, Lab
from guest_tests.payload.stock import Machine, within

ORDER_S = 10.0  # an order goes by the authority
STOP_S = 5.0
QUOTA = 400
FILL = 0x5A5A5A5A5A5A5A5A


@dataclass
class Scene:
    """accel1 under VFIO, a page mapped, its accesses with the kernel PASID."""

    host: Host
    log: KernelLog
    bdf: str
    registers: vfio.Bar
    ring: vfio.Buffer
    page: vfio.Buffer

    @property
    def pasid(self) -> int:
        return self.registers.read32(accel.KERNEL_PASID)

    def has_pasid(self, faults: Faults) -> bool:
        """Whether there is one; it is asked for if there is not."""
        if not self.pasid:
            faults.add("timer", "quota-order", quota=QUOTA)
        return within(ORDER_S, lambda: self.pasid != 0)

    @property
    def problem(self) -> str:
        """Why there is no kernel PASID, in vdev's words; empty when there is one."""
        (kernel,) = self.host.control("query-pasid-set")["kernel"]
        return str(kernel.get("problem", ""))

    def fills(self) -> bool:
        """Whether the engine fills the page; if not, it was stopped by a fault of which the kernel's log has a line."""
        self.page.fill(0)
        pasid, mark = self.pasid, self.log.mark()
        engine = Accelerator(self.registers, self.ring.memory, RING_IOVA, pasid)
        engine.start()
        index = engine.submit(Operation(accel.FILL, dst=TARGET_IOVA, nbytes=PAGE, arg=FILL, pasid=pasid))
        assert within(STOP_S, lambda: engine.status_of(index) == accel.OK or self.stopped)
        filled = self.page.memory == FILL.to_bytes(8, "little") * (PAGE // 8)
        line = f"domain fault from EP {endpoint_id(self.bdf)} at {RING_IOVA:#x} "
        assert filled or self.log.wait_for(line, since=mark) is not None
        return filled

    @property
    def stopped(self) -> bool:
        return self.registers.read32(accel.ERROR) == accel.ERROR_RING_FETCH


@pytest.fixture
def scene(stock: Machine, lab: Lab, host: Host, kernel_log: KernelLog) -> Iterator[Scene]:
    bdf = stock.bdf("accel1")
    with (
        contextlib.closing(vfio.Container(lab.accelerators[bdf])) as container,
        contextlib.closing(vfio.Device(container, bdf)) as device,
    ):
        device.set_command(on=vfio.COMMAND_MEMORY | vfio.COMMAND_BUS_MASTER)
        Beside(bdf).enable_pasids()
        ring, page = vfio.Buffer(accel.MEMORY_NBYTES), vfio.Buffer(PAGE)
        with (
            contextlib.closing(device.bar(0)) as registers,
            container.mapped(RING_IOVA, ring),
            container.mapped(TARGET_IOVA, page),
        ):
            yield Scene(host, kernel_log, bdf, registers, ring, page)
            registers.write32(accel.CONTROL, accel.RESET)


REFUSALS = [
    ("exhausted", "the host has none to give"),
    ("quota", "the VM's quota is used up"),
    ("unreachable", "the host's allocator did not answer"),
]


def test_without_a_kernel_pasid_vfio_maps_as_ever_and_every_access_faults(scene: Scene, faults: Faults) -> None:
    for number, (do, problem) in enumerate(REFUSALS):
        rule = faults.add("pasid", do)
        faults.add("timer", "quota-order", quota=QUOTA + number)
        assert within(ORDER_S, partial(_has_fired, rule))
        assert (scene.pasid, scene.problem, scene.fills()) == (0, problem, False)
        rule.remove()
    faults.clear()
    assert within(ORDER_S, lambda: scene.pasid != 0)

    assert scene.fills()


def _has_fired(rule: Rule) -> bool:
    return rule.fired == 1


def test_another_quota_goes_unnoticed(scene: Scene, faults: Faults, kernel_log: KernelLog, host: Host) -> None:
    assert scene.has_pasid(faults)
    mark, pasid = kernel_log.mark(), scene.pasid

    faults.add("timer", "quota-order", quota=2)
    assert within(ORDER_S, lambda: host.control("query-pasid-set")["quota"] == 2)

    assert scene.fills()
    assert scene.pasid == pasid
    assert kernel_log.find("", since=mark) == []


def test_a_kernel_pasid_that_is_reclaimed_is_gone_for_good_and_every_access_faults(
    scene: Scene, faults: Faults
) -> None:
    assert scene.has_pasid(faults)
    assert scene.fills()

    faults.add("timer", "reclaim", pasid=scene.pasid)
    assert within(ORDER_S, lambda: scene.pasid == 0)

    assert not scene.fills()
    faults.clear()
    assert (scene.problem, scene.fills()) == ("an administrator took it", False)
