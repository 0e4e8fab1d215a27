"""Free actions that are done to functions: what they do, what is left of it, and what clear takes back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.accelerator import descriptor
from tests.support.injected_endpoints import ACCEL, BASE, DST, RAM_NBYTES, RNG, SRC, InjectedEndpoints, InjectedRng
from tests.support.injection import Injected
from tests.support.virtio_pci import RUNNING, PciDriver
from vdev.config import Config, EndpointConfig, UnitConfig
from vdev.endpoints.accelerator_engine import SLICE_NBYTES
from vdev.events import FunctionReset
from vdev.faults.actions import AER_ERRORS
from vdev.faults.events import FaultInjected, FaultWantsQemu
from vdev.functions.base import Progress
from vdev.pci.aer import ERRORS
from vdev.wire import pci
from vdev.wire import viommu as wire
from vdev.wire.accelerator import CompletionStatus, Op, Register
from vdev.wire.virtio_pci import Status

OVER_VHOST_USER = Config(
    units=(UnitConfig(name="iommu0", attach="vhost-user"),), endpoints=(EndpointConfig(name="accel0"),)
)


def notes(scene: Injected) -> list[str]:
    """What came of each firing."""
    return [event.note for event in scene.events if isinstance(event, FaultInjected)]


def done(scene: Injected, do: str, **parameters: Any) -> None:
    """A free action, now."""
    scene.add("timer", do, with_=parameters)
    scene.pass_time(0)


# remove


def test_a_removed_function_is_all_ones_and_silent() -> None:
    scene = InjectedEndpoints()
    done(scene, "remove", function="accel0")

    scene.write(Register.RING_TAIL, 1)
    scene.run()
    scene.accel.signal(0)

    assert (
        scene.accel.config_read(0, 4) == scene.accel.bar_read(0, 0, 4) == scene.accel.bar_read(2, 0, 4) == b"\xff" * 4
    )
    assert not scene.accel.dma_enabled
    assert scene.vectors == []


def test_nothing_in_flight_lands_after_a_removal_and_its_unmap_is_answered() -> None:
    scene = InjectedEndpoints()
    scene.add("dma", "delay", match={"iova": hex(DST)}, with_={"seconds": 5})
    scene.copy()
    scene.unmap_all()
    wait = scene.unit.engine.wait
    assert wait is not None

    done(scene, "remove", function="accel0")
    is_over, before = wait.is_over, bytes(scene.ram)
    scene.pass_time(6)
    scene.run()

    assert is_over
    assert bytes(scene.ram) == before


def test_clear_brings_a_function_back_as_after_power_on_with_its_bars() -> None:
    scene = InjectedEndpoints()
    scene.accel.config_write(pci.BAR0, (0xFDE0_0000).to_bytes(4, "little"))
    scene.accel.bar_write(2, 0, b"mine")
    bars = scene.accel.config_read(pci.BAR0, 24)
    done(scene, "remove", function="accel0")
    told: list[object] = []
    scene.accel.trace = told.append

    undone = scene.injector.clear().undone

    assert undone == ["accel0 is back as after power-on"]
    assert told == [FunctionReset("accel0", "power-on")]
    assert scene.accel.config_read(pci.BAR0, 24) == bars
    assert scene.accel.config_read(pci.COMMAND, 2) == bytes(2)
    assert scene.read(Register.RING_SIZE) == 0
    assert scene.accel.bar_read(2, 0, 4) == bytes(4)
    scene.start()
    assert scene.works()


def test_a_removal_that_a_request_set_off_is_not_done_after_clear() -> None:
    scene = InjectedEndpoints()
    scene.add("dma", "remove", with_={"function": "accel0"})
    scene.copy()

    scene.injector.clear()
    scene.pass_time(1)

    assert not scene.accel.removed


def test_a_function_that_is_removed_already_is_said_to_be() -> None:
    scene = InjectedEndpoints()
    for do in ("remove", "remove", "flr", "aer"):
        done(scene, do, function="accel0")

    assert notes(scene) == [
        "",
        "not done: it is removed already",
        "not done: it is removed",
        "not done: it is removed, or has no AER capability",
    ]


def test_a_removed_unit_serves_nothing_while_its_tables_go_on_translating() -> None:
    scene = InjectedEndpoints()
    driver = PciDriver(scene.unit.function)  # type: ignore[arg-type]
    requests, _ = driver.start(scene.unit.device.offered_features)
    scene.ask(wire.Attach(wire.T_ATTACH, bytes(3), 1, ACCEL))
    scene.map(1, BASE, 0, RAM_NBYTES)
    scene.start()
    done(scene, "remove", function="iommu0")
    driver.submit(0, [wire.Detach(wire.T_DETACH, bytes(3), 1, ACCEL, bytes(8)).pack()], [4])
    for _ in range(4):
        scene.unit.device.run_slice(scene.now_ns)

    assert requests.reap() == []
    assert scene.works()
    scene.injector.clear()
    assert not scene.unit.engine.table.domains
    driver.bus_master(True)
    assert driver.start(scene.unit.device.offered_features)
    assert driver.status() == RUNNING


def test_an_endpoint_that_was_removed_and_unplugged_does_not_come_back() -> None:
    scene = InjectedEndpoints()
    done(scene, "remove", function="accel0")
    scene.machine.remove_endpoint("accel0")

    assert scene.injector.clear().undone == []


# flr


def test_a_function_level_reset_in_mid_dma_lets_nothing_land() -> None:
    scene = InjectedEndpoints()
    scene.add("dma", "flr", match={"iova": hex(DST)}, with_={"function": "accel0"})
    scene.fill_source(3 * SLICE_NBYTES)
    scene.submit(descriptor(Op.COPY, src=SRC, dst=DST, nbytes=3 * SLICE_NBYTES))
    scene.accel.run_slice(scene.now_ns)
    scene.accel.run_slice(scene.alarms["accel0"])

    scene.pass_time(0)
    before = bytes(scene.ram)
    scene.run()

    assert scene.target(SLICE_NBYTES) != bytes(SLICE_NBYTES)
    assert bytes(scene.ram) == before
    assert scene.completion(0).status == CompletionStatus.PENDING
    assert (scene.read(Register.RING_SIZE), scene.accel.bus_master) == (0, False)
    assert scene.injector.clear().terminal[0].startswith("flr: what the driver had set up is gone")
    scene.start()
    assert scene.works()


def test_the_function_of_the_occurrence_is_meant_where_none_is_named() -> None:
    scene = InjectedRng()
    scene.add("dma", "flr", match={"endpoint": "rng0"})

    scene.draw()
    scene.pass_time(0)

    assert scene.driver.status() == 0
    assert scene.accel.bus_master


def test_a_function_level_reset_of_the_unit_is_one_of_its_driver_s() -> None:
    scene = InjectedEndpoints()

    done(scene, "flr", function="iommu0")

    assert not scene.unit.engine.table.domains


@pytest.mark.parametrize("do", ["remove", "flr"])
def test_over_vhost_user_a_unit_that_an_occurrence_is_about_is_left_alone(do: str) -> None:
    scene = Injected(OVER_VHOST_USER)
    scene.add("interrupt", do)

    unit: Any = scene.machine.units["iommu0"].function
    unit.interrupt_queue(0)

    assert notes(scene) == ["not done: over vhost-user that is QEMU's"]


# aer


def registers(scene: InjectedEndpoints) -> tuple[int, int, int]:
    """Uncorrectable and correctable status, Device Status."""
    config = scene.accel.config
    aer, pcie = config.find(pci.ExtCapId.AER, extended=True), config.find(pci.CapId.PCIE)
    at = (aer + pci.AER_UNCORRECTABLE_STATUS, aer + pci.AER_CORRECTABLE_STATUS)
    return (*(config.get(one, 4) for one in at), config.get(pcie + pci.DEVSTA, 2))


NONFATAL, CORRECTABLE, UNSUPPORTED = pci.DEVSTA_NONFATAL, pci.DEVSTA_CORRECTABLE, pci.DEVSTA_UNSUPPORTED


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("unsupported-request", (1 << 20, 0, NONFATAL | UNSUPPORTED)),
        ("completer-abort", (1 << 15, 0, NONFATAL)),
        ("poisoned-tlp", (1 << 12, 0, NONFATAL)),
        ("receiver", (0, 1, CORRECTABLE)),
        ("advisory-nonfatal", (0, 1 << 13, CORRECTABLE)),
    ],
)
def test_an_error_is_in_both_capabilities_and_clear_takes_it_out(error: str, expected: tuple[int, int, int]) -> None:
    scene = InjectedEndpoints()

    done(scene, "aer", function="accel0", error=error)
    seen = registers(scene)

    assert seen == expected
    assert scene.injector.clear().undone == [f"accel0 has these errors no longer: {error}"]
    assert registers(scene) == (0, 0, 0)


def test_severity_decides_whether_an_error_is_fatal() -> None:
    scene = InjectedEndpoints()
    aer = scene.accel.config.find(pci.ExtCapId.AER, extended=True)
    scene.accel.config_write(aer + pci.AER_UNCORRECTABLE_SEVERITY, (1 << 15).to_bytes(4, "little"))

    done(scene, "aer", function="accel0", error="completer-abort")

    assert registers(scene)[2] == pci.DEVSTA_FATAL
    assert scene.accel.config.get(aer + pci.AER_CONTROL, 4) == 15


def test_a_driver_clears_what_it_saw_by_writing_it_and_clear_has_nothing_to_say() -> None:
    scene = InjectedEndpoints()
    done(scene, "aer", function="accel0", error="completer-abort")
    aer = scene.accel.config.find(pci.ExtCapId.AER, extended=True)

    scene.accel.config_write(aer + pci.AER_UNCORRECTABLE_STATUS, (1 << 15).to_bytes(4, "little"))

    assert registers(scene)[0] == 0
    assert scene.injector.clear().undone == []


def test_the_root_port_in_front_is_told_by_qemu_unless_it_is_not_wanted() -> None:
    scene = InjectedEndpoints()

    done(scene, "aer", function="rng0", error="bad-tlp")
    done(scene, "aer", function="rng0", error="bad-tlp", root=False)

    (wish,) = [event for event in scene.events if isinstance(event, FaultWantsQemu)]
    assert (wish.rule, wish.n, wish.command_line) == ("r1", 1, "pcie_aer_inject_error -c vdev.port2 0x40")


def test_on_the_root_bus_there_is_no_port_to_tell() -> None:
    unit = UnitConfig(name="iommu0")
    scene = Injected(Config(units=(unit,), endpoints=(EndpointConfig(name="accel0", bdf="00:05.0"),)))

    done(scene, "aer", function="accel0")

    assert notes(scene) == ["no root port is told: it is on bus 00"]


def test_every_error_of_the_table_is_known_to_the_capability() -> None:
    assert AER_ERRORS == (
        "receiver", "bad-tlp", "bad-dllp", "rollover", "replay-timer", "advisory-nonfatal",
        "poisoned-tlp", "completion-timeout", "completer-abort", "unexpected-completion", "unsupported-request",
    )  # fmt: skip
    assert all(
        (pci.AER_CORRECTABLE_BITS if error.is_correctable else pci.AER_UNCORRECTABLE_BITS) >> error.bit & 1
        for error in ERRORS.values()
    )


# units, and interrupts


def test_a_unit_that_needs_a_reset_serves_nothing_until_it_had_one() -> None:
    scene = InjectedEndpoints()
    driver = PciDriver(scene.unit.function)  # type: ignore[arg-type]
    requests, _ = driver.start(scene.unit.device.offered_features)
    done(scene, "needs-reset")
    driver.submit(0, [wire.Attach(wire.T_ATTACH, bytes(3), 1, RNG).pack()], [4])

    assert scene.unit.device.run_slice(scene.now_ns) is Progress.IDLE
    assert requests.reap() == []
    assert driver.status() == RUNNING | Status.DEVICE_NEEDS_RESET
    (requests, _) = driver.start(scene.unit.device.offered_features)
    driver.submit(0, [wire.Attach(wire.T_ATTACH, bytes(3), 1, RNG).pack()], [4])
    scene.unit.device.run_slice(scene.now_ns)
    assert [done.data for done in requests.reap()] == [wire.TAILS[wire.S_OK]]


def test_a_config_change_that_is_none_has_its_interrupt_and_a_generation() -> None:
    scene = InjectedEndpoints()
    driver = PciDriver(scene.unit.function)  # type: ignore[arg-type]
    driver.start(scene.unit.device.offered_features)
    before = driver.common().config_generation
    driver.vectors.clear()

    done(scene, "config-change", function="iommu0")

    assert driver.common().config_generation == before + 1
    assert driver.vectors == [0]
    assert driver.read(0x1000, 1) & 2


@pytest.mark.parametrize(
    ("name", "vector", "note"), [("accel0", 1, ""), ("accel0", 2, "not done: accel0 has 2 of them")]
)
def test_a_spurious_interrupt_is_one_for_nothing(name: str, vector: int, note: str) -> None:
    scene = InjectedEndpoints()

    done(scene, "spurious", function=name, vector=vector)

    assert scene.vectors == ([] if note else [vector])
    assert notes(scene) == [note]


def test_a_spurious_call_of_a_unit_over_vhost_user_is_one_of_a_queue() -> None:
    scene = Injected(OVER_VHOST_USER)
    carrier: Any = scene.machine.units["iommu0"].function
    calls: list[int] = []
    carrier.raise_call = calls.append

    done(scene, "spurious", function="iommu0", vector=1)
    done(scene, "spurious", function="iommu0", vector=2)

    assert calls == [1]
    assert notes(scene) == ["", "not done: iommu0 has 2 of them"]


def test_a_function_that_is_not_there_any_more_is_said_to_be_gone() -> None:
    scene = InjectedEndpoints()
    scene.add("timer", "spurious", when={"delay": 1}, with_={"function": "accel0"})
    scene.machine.remove_endpoint("accel0")

    scene.pass_time(1)

    assert notes(scene) == ["not done: the function is not there"]
