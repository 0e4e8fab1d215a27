"""What drops DMA that is in flight, at once and for good, over both attachments of a unit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support import flight
from tests.support.flight import (
    BUFFER,
    EMPTY,
    FILLED,
    OK,
    PAGE,
    Attachment,
    FlightScene,
    bypassing,
    status,
)
from vdev.wire import pci
from vdev.wire import viommu as wire
from vdev.wire.accelerator import CompletionStatus, Control, ErrorCode, Register, Status

attach, scene = flight.attach, flight.scene  # fixtures


# --- register accesses cancel


def control(value: int) -> Callable[[FlightScene], None]:
    return lambda scene: scene.accels["accel0"].write(Register.CONTROL, value)


CANCELLED_BY: dict[str, Callable[[FlightScene], None]] = {
    "function-level-reset": lambda scene: scene.accels["accel0"].flr(),
    "machine-reset": lambda scene: scene.accels["accel0"].function.reset(),
    "qemu-gone": lambda scene: scene.accels["accel0"].function.disconnected(),
    "bus-master-off": lambda scene: scene.accels["accel0"].bus_master(False),
    "bus-master-off-and-on": lambda scene: scene.accels["accel0"].cycle_bus_master(),
    "control-reset": control(Control.RESET),
    "enable-cleared": control(0),
    "quiesced": lambda scene: scene.accels["accel0"].function.quiesce(),
    "reset-unit": lambda scene: scene.device.host_reset(),
    "unit-reset": lambda scene: scene.device.reset(),
    "unit-reset-with-the-machine": lambda scene: scene.device.system_reset(),
    "removed": lambda scene: scene.remove("accel0"),
    "worker-crashed": lambda scene: scene.crash("accel0"),
}  # fmt: skip
RINGS_GONE = ("unit-reset", "unit-reset-with-the-machine")


@pytest.mark.parametrize("how", CANCELLED_BY)
def test_nothing_lands_once_it_was_cancelled(scene: FlightScene, how: str) -> None:
    CANCELLED_BY[how](scene)
    flights = scene.nflights
    scene.land()

    assert flights == 0
    assert scene.buffer() == EMPTY


@pytest.mark.parametrize("how", [how for how in CANCELLED_BY if how not in RINGS_GONE])
def test_an_answer_waits_no_longer_once_it_was_cancelled(scene: FlightScene, how: str) -> None:
    early = scene.ask(scene.unmap(BUFFER))
    CANCELLED_BY[how](scene)
    unsliced = scene.answers()
    scene.run()

    assert (early, unsliced) == ([], [])  # guest memory is written in slices only
    assert scene.answers() == [OK]


@pytest.mark.parametrize("how", RINGS_GONE)
def test_a_held_answer_is_void_after_a_reset_of_the_unit(scene: FlightScene, how: str) -> None:
    scene.post(scene.unmap(BUFFER))
    CANCELLED_BY[how](scene)
    before = bytes(scene.ram)

    scene.land()

    assert bytes(scene.ram) == before
    assert scene.device.unanswered() == (None, 0)


@pytest.mark.parametrize("how", ["reset", "FLR", "bus-master-off", "status-0"])
def test_what_the_driver_does_to_the_unit_itself(how: str) -> None:
    scene = FlightScene("vfio-user").set_up()
    scene.fill()
    if how == "status-0":
        scene.pci_driver.status(0)
    elif how == "FLR":
        config = scene.pci_driver.function.config
        at = config.find(pci.CapId.PCIE)
        assert at is not None
        scene.pci_driver.function.config_write(at + pci.DEVCTL, pci.DEVCTL_FLR.to_bytes(2, "little"))
    elif how == "reset":
        scene.pci_driver.function.reset()
    else:
        scene.pci_driver.bus_master(False)  # only its rings: mappings stay, and so does what they let through

    scene.land()

    assert scene.buffer() == (FILLED if how == "bus-master-off" else EMPTY)


def test_a_held_answer_waits_for_the_units_bus_master() -> None:
    scene = FlightScene("vfio-user").set_up()
    scene.fill()
    scene.post(scene.unmap(BUFFER))
    scene.pci_driver.bus_master(False)
    scene.land()
    without = scene.answers()

    scene.pci_driver.bus_master(True)
    scene.run()

    assert without == []
    assert scene.answers() == [OK]


@pytest.mark.parametrize(
    ("how", "error"), [("bus-master-off", ErrorCode.BUS_MASTER_OFF), ("quiesced", ErrorCode.STOPPED)]
)
def test_the_engine_halts_with_the_error_of_what_took_its_dma_away(
    scene: FlightScene, how: str, error: ErrorCode
) -> None:
    CANCELLED_BY[how](scene)

    accel = scene.accels["accel0"]
    assert (accel.read(Register.STATUS), accel.read(Register.ERROR)) == (Status.HALTED, error)
    assert status(scene) == CompletionStatus.PENDING


def test_an_operation_that_is_disabled_in_flight_is_aborted_with_no_byte_done(scene: FlightScene) -> None:
    scene.accels["accel0"].write(Register.CONTROL, 0)

    done = scene.accels["accel0"].completion()
    assert (done.status, done.result) == (CompletionStatus.ABORTED, 0)


def test_bypass_that_ends_cancels_what_bypassed(attach: Attachment) -> None:
    scene = bypassing(attach)

    scene.device.config_write(wire.BYPASS_OFFSET, b"\0", wire.F_BYPASS_CONFIG)
    flights = scene.nflights
    scene.land()

    assert flights == 0
    assert scene.buffer() == EMPTY
    assert scene.accels["accel0"].read(Register.STATUS) == Status.HALTED  # its completion bypasses no more either


def test_bypass_that_ends_leaves_translated_dma_alone(scene: FlightScene) -> None:
    scene.post(scene.detach())
    scene.device.config_write(wire.BYPASS_OFFSET, b"\0", wire.F_BYPASS_CONFIG)
    flights = scene.nflights
    scene.land()

    assert flights == 1
    assert scene.buffer() == FILLED


def test_bypass_that_was_on_and_stays_on_cancels_nothing(attach: Attachment) -> None:
    scene = bypassing(attach)

    scene.device.config_write(wire.BYPASS_OFFSET, b"\1", wire.F_BYPASS_CONFIG)
    scene.land()

    assert scene.buffer() == FILLED


def test_a_reset_of_one_endpoint_leaves_the_others_dma_alone(attach: Attachment) -> None:
    scene = FlightScene(attach).set_up("accel0", "accel1")
    scene.fill()
    scene.fill(BUFFER + PAGE, name="accel1")

    scene.accels["accel0"].flr()
    scene.land()

    assert (scene.buffer(0), scene.buffer(1)) == (EMPTY, FILLED)
