"""What functions and doors tell a trace, and that nothing is connected while there is none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.viommu import ATTACH, MAP, ViommuRig
from tests.support.virtio_endpoint import IOVA, LONE_AT, LONE_IOVA, PAGE, RngRig
from tests.support.virtio_pci import RAM_NBYTES
from vdev.assemble import Machine
from vdev.config import Config, EndpointConfig, UnitConfig
from vdev.errors import DmaError
from vdev.events import (
    DeviceError,
    DmaDone,
    FunctionReset,
    InterruptRaised,
    RegisterWritten,
    RingsChanged,
    flag_words,
)
from vdev.iommu.events import FaultRaised
from vdev.memory import Region
from vdev.virtio.ordering import NoOrdering
from vdev.wire import pci, virtio_pci
from vdev.wire.accelerator import Control, Register

CONFIG = Config(units=(UnitConfig(name="iommu0"),), endpoints=(EndpointConfig(name="accel0"),))
BUS_MASTER = int(pci.Command.MEMORY | pci.Command.BUS_MASTER).to_bytes(2, "little")


class MachineRig:
    """A machine that is traced, with the trace switched on."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.timed: list[object] = []
        self.machine = Machine(
            CONFIG,
            emit=self.events.append,
            wake=lambda worker: None,
            wake_at=lambda worker, when_ns: None,
            ordering=NoOrdering(),
        )
        self.unit = self.machine.units["iommu0"]
        self.accel = self.unit.endpoints["accel0"]
        self.machine.trace_to(self.events.append, self._timed)

    def _timed(self, handle: Any) -> Any:
        self.timed.append(handle)
        return lambda readable, writable_nbytes: handle(readable, writable_nbytes)


@pytest.fixture
def rig() -> MachineRig:
    return MachineRig()


def test_off_means_that_no_source_is_connected_and_requests_go_straight_to_the_engine(rig: MachineRig) -> None:
    on = (rig.accel.trace, rig.unit.function.trace, rig.unit.doors["accel0"].trace)
    rig.machine.trace_to(None, rig._timed)

    assert None not in on
    assert rig.timed == [rig.unit.engine.handle]
    assert rig.unit.device.handle == rig.unit.engine.handle
    assert [function.trace for function in rig.machine.functions.values()] == [None, None]
    assert [door.trace for door in rig.unit.doors.values()] == [None]


def test_a_new_machine_is_off() -> None:
    machine = Machine(
        CONFIG,
        emit=lambda event: None,
        wake=lambda worker: None,
        wake_at=lambda worker, when_ns: None,
        ordering=NoOrdering(),
    )

    assert [function.trace for function in machine.functions.values()] == [None, None]
    assert machine.units["iommu0"].device.handle == machine.units["iommu0"].engine.handle


def test_bus_mastering_is_told_when_it_changes_and_bar_sizing_is_not(rig: MachineRig) -> None:
    rig.accel.config_write(pci.COMMAND, b"\x02\0")
    rig.accel.config_write(pci.COMMAND, BUS_MASTER)
    rig.accel.config_write(pci.COMMAND, BUS_MASTER)

    assert rig.events == [RegisterWritten("accel0", "command", 6, "MEMORY|BUS_MASTER")]


@pytest.mark.parametrize(
    ("cap_id", "offset", "value", "name"),
    [
        (pci.ExtCapId.PASID, pci.PASID_CONTROL, pci.PASID_ENABLE, "pasid_control"),
        (pci.ExtCapId.ATS, pci.ATS_CONTROL, pci.ATS_ENABLE, "ats_control"),
        (pci.ExtCapId.PRI, pci.PRI_CONTROL, pci.PRI_ENABLE, "pri_control"),
    ],
)
def test_the_controls_of_pasid_ats_and_pri_are_told(
    rig: MachineRig, cap_id: int, offset: int, value: int, name: str
) -> None:
    at = rig.unit.endpoints["accel0"].config.find(cap_id, extended=True)  # type: ignore[attr-defined]

    rig.accel.config_write(at + offset, value.to_bytes(2, "little"))

    assert rig.events == [RegisterWritten("accel0", name, value, "ENABLE")]


def test_a_function_level_reset_is_told(rig: MachineRig) -> None:
    at = rig.accel.config_read(0x34, 1)[0]  # the first capability is PCI Express

    rig.accel.config_write(at + pci.DEVCTL, pci.DEVCTL_FLR.to_bytes(2, "little"))

    assert FunctionReset("accel0", "function-level") in rig.events


def test_the_accelerators_registers_are_told_by_name_and_its_refusals_too(rig: MachineRig) -> None:
    rig.accel.bar_write(0, Register.RING_BASE + 4, (1).to_bytes(4, "little"))
    rig.accel.bar_write(0, Register.CONTROL, int(Control.ENABLE | Control.IRQ_ENABLE).to_bytes(4, "little"))

    assert rig.events == [
        RegisterWritten("accel0", "RING_BASE+0x4", 1),
        RegisterWritten("accel0", "CONTROL", 5, "ENABLE|IRQ_ENABLE"),
        DeviceError("accel0", "BUS_MASTER_OFF", 0),
    ]


def test_a_refused_dma_is_told_before_the_fault_it_becomes(rig: MachineRig) -> None:
    rig.accel.config_write(pci.COMMAND, BUS_MASTER)
    rig.unit.engine.write_bypass(0)
    rig.events.clear()

    with pytest.raises(DmaError):
        rig.unit.doors["accel0"].views(0x1000, 64, write=True)

    assert rig.events == [
        DmaDone(0x100, 0x1000, 64, True, 0, "no-domain"),
        FaultRaised("iommu0", 0x100, "no-domain", 2, 0x1000),
    ]


def test_dma_that_is_allowed_is_told_with_its_pieces(rig: MachineRig) -> None:
    rig.accel.config_write(pci.COMMAND, BUS_MASTER)  # and the unit bypasses, as it does at boot
    for gpa in (0x1000, 0x2000):
        rig.accel.memory.add(Region(gpa, 0x1000, memoryview(bytearray(0x1000))))
    rig.events.clear()

    views = rig.unit.doors["accel0"].views(0x1800, 0x1000, write=False)

    assert [len(view) for view in views] == [0x800, 0x800]
    assert rig.events == [DmaDone(0x100, 0x1800, 0x1000, False, 2)]


def test_a_driver_that_brings_the_unit_up_is_told_step_by_step() -> None:
    rig, events = ViommuRig(), list[Any]()
    rig.function.trace = events.append
    rig.driver.start(rig.device.offered_features)

    told = [(event.register, event.words) for event in events if isinstance(event, RegisterWritten)]
    assert events[0] == FunctionReset("unit", "virtio")
    assert ("device_status", "ACKNOWLEDGE|DRIVER|FEATURES_OK") in told
    assert ("device_status", "ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK") in told
    (features,) = [words for register, words in told if register == "driver_features"]
    assert {"MAP_UNMAP", "VERSION_1", "BYPASS_CONFIG"} <= set(features.split("|"))
    queues = [words for register, words in told if register == "queue_enable"]
    assert [words.split(":")[0] for words in queues] == ["queue 0 (requests)", "queue 1 (events)"]


def test_features_that_are_not_taken_are_said_to_be_so() -> None:
    rig, events = ViommuRig(), list[Any]()
    rig.function.trace = events.append
    for status in (0, 1, 3, 11):  # FEATURES_OK without VERSION_1
        rig.function.bar_write(0, virtio_pci.COMMON_STATUS, bytes([status]))

    assert events[-1].words == "ACKNOWLEDGE|DRIVER (FEATURES_OK not taken)"


def test_the_bypass_byte_is_told_and_so_is_a_write_that_is_ignored() -> None:
    rig, events = ViommuRig(), list[Any]()
    rig.function.trace = events.append

    rig.function.bar_write(0, 0x2000 + 36, b"\0")
    rig.function.bar_write(0, 0x2000 + 36, b"\7")

    assert events == [
        RegisterWritten("unit", "bypass", 0, ""),
        RegisterWritten("unit", "bypass", 7, "ignored, reads back 0x0"),
    ]


def test_doorbells_and_interrupts_are_told() -> None:
    rig, events = ViommuRig(), list[Any]()
    rig.function.trace = events.append
    rig.ask(ATTACH, MAP)

    assert RegisterWritten("unit", "notify", 0, "queue 0 (requests)") in events
    assert any(isinstance(event, InterruptRaised) for event in events)


def test_the_seam_of_the_device_is_what_answers_requests() -> None:
    rig, calls = ViommuRig(), list[int]()
    inner = rig.device.handle

    def counted(readable: bytes | memoryview, writable_nbytes: int) -> bytes:
        calls.append(writable_nbytes)
        return inner(readable, writable_nbytes)

    rig.device.handle = counted
    rig.ask(ATTACH)

    assert calls == [4]


def test_flags_are_named_and_the_unknown_rest_is_a_number() -> None:
    assert flag_words(pci.Command(0x6)) == "MEMORY|BUS_MASTER"
    assert flag_words(pci.Command(0)) == "0"
    assert flag_words(virtio_pci.Status(0x21)) == "ACKNOWLEDGE|0x20"


def test_a_broken_ring_is_told_once_with_what_the_driver_did() -> None:
    rig, events = ViommuRig(), list[Any]()
    rig.function.trace = events.append
    size = rig.requests.size
    rig.requests.offer(size)
    rig.requests.publish()

    rig.run()
    rig.run()

    assert [event for event in events if isinstance(event, RingsChanged)] == [
        RingsChanged("unit", "broken", f"descriptor {size} of {size}")
    ]


def test_of_an_endpoints_rings_only_what_is_refused_is_told_and_of_its_buffers_everything() -> None:
    rig, events = RngRig().start(), list[Any]()
    rig.door.trace = events.append
    rig.map(LONE_IOVA, LONE_AT, PAGE)
    rig.post_lone(64)
    rig.run()
    buffers, events[:] = list(events), []

    rig.unmap(IOVA, RAM_NBYTES)
    rig.run()

    assert buffers == [DmaDone(0x200, LONE_IOVA, 64, True, 1)]
    (refused,) = events
    assert (refused.iova, refused.reason) == (rig.ring.desc_gpa, "not-mapped")
