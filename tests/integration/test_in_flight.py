"""What "done" means while DMA is in flight: who waits for it, what drops it, over both attachments of a unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.support.accelerator import descriptor
from tests.support.flight import BUFFER, ENGINES, LATENCY_NS, OK, PAGE, RING_SIZE, Attachment, FlightScene
from tests.support.virtio_pci import RAM_GPA, RAM_NBYTES
from vdev.iommu.events import ReplyHeld
from vdev.wire import pci
from vdev.wire import viommu as wire
from vdev.wire.accelerator import Access, CompletionStatus, Control, ErrorCode, Op, Register, Status

FILLED = b"\xa5" * PAGE
EMPTY = bytes(PAGE)


@pytest.fixture(params=["vfio-user", "vhost-user"])
def attach(request: pytest.FixtureRequest) -> Attachment:
    found: Attachment = request.param
    return found


@pytest.fixture
def scene(attach: Attachment) -> FlightScene:
    """accel0 in domain 1, and a page being filled: translated, not yet written."""
    scene = FlightScene(attach).set_up()
    scene.fill()
    assert scene.nflights == 1
    assert scene.buffer() == EMPTY
    return scene


def bypassing(attach: Attachment) -> FlightScene:
    """accel0 attached to nothing, and a page being filled at its physical address."""
    scene = FlightScene(attach)
    scene.accels["accel0"].start(ENGINES["accel0"], RAM_GPA)
    scene.fill(RAM_GPA + BUFFER)
    assert scene.nflights == 1
    return scene


def status(scene: FlightScene, name: str = "accel0", index: int = 0) -> CompletionStatus:
    return CompletionStatus(scene.accels[name].completion(index).status)


# --- requests of the ring drain


def test_dma_lands_a_latency_after_its_translation(scene: FlightScene) -> None:
    scene.land()

    assert scene.buffer() == FILLED
    assert status(scene) == CompletionStatus.OK
    assert scene.nflights == 0


def test_an_unmap_is_answered_when_what_it_affects_has_landed(scene: FlightScene) -> None:
    early = scene.ask(scene.unmap(BUFFER))
    before = scene.buffer()
    scene.land()

    assert (early, before) == ([], EMPTY)
    assert scene.answers() == [OK]
    assert scene.buffer() == FILLED


def test_an_unmap_of_what_is_not_in_flight_is_answered_at_once(scene: FlightScene) -> None:
    assert scene.ask(scene.unmap(BUFFER + PAGE)) == [OK]
    assert scene.ask(scene.unmap(BUFFER - PAGE)) == [OK]


@pytest.mark.parametrize(("iova", "nbytes", "held"), [(0, PAGE, True), (-PAGE, 2 * PAGE, True), (0, 4 * PAGE, True)])
def test_an_unmap_waits_for_dma_anywhere_in_its_range(attach: Attachment, iova: int, nbytes: int, held: bool) -> None:
    scene = FlightScene(attach).set_up()
    scene.fill(BUFFER, 8)

    assert (scene.ask(scene.unmap(BUFFER + iova, nbytes)) == []) == held


def test_a_second_unmap_of_the_range_waits_as_well(scene: FlightScene) -> None:
    scene.post(scene.unmap(BUFFER))

    again = scene.ask(scene.unmap(BUFFER))
    scene.land()

    assert again == []
    assert scene.answers() == [OK, OK]


def test_a_detach_is_answered_when_the_endpoints_dma_has_landed(scene: FlightScene) -> None:
    early = scene.ask(scene.detach())
    scene.land()

    assert early == []
    assert scene.answers() == [OK]
    assert scene.buffer() == FILLED


def test_an_attach_elsewhere_is_answered_when_the_endpoints_dma_has_landed(scene: FlightScene) -> None:
    early = scene.ask(scene.attach(domain=2))
    scene.land()

    assert early == []
    assert scene.answers() == [OK]
    assert scene.buffer() == FILLED


def test_the_first_attach_waits_for_dma_that_bypassed(attach: Attachment) -> None:
    scene = bypassing(attach)

    early = scene.ask(scene.attach())
    scene.land()

    assert early == []
    assert scene.answers() == [OK]
    assert scene.buffer() == FILLED


def test_other_requests_are_answered_meanwhile(scene: FlightScene) -> None:
    scene.post(scene.unmap(BUFFER))

    meanwhile = scene.ask(scene.map(BUFFER + 8 * PAGE, RAM_GPA), scene.unmap(BUFFER + 8 * PAGE))

    assert meanwhile == [OK, OK]


def test_nothing_new_is_translated_while_an_unmap_waits(scene: FlightScene) -> None:
    scene.post(scene.unmap(BUFFER))
    scene.accels["accel0"].submit(descriptor(Op.FILL, dst=BUFFER, nbytes=8, arg=1))
    scene.land()

    assert status(scene, index=0) == CompletionStatus.OK
    done = scene.accels["accel0"].completion(1)
    assert (done.status, done.fault_iova) == (CompletionStatus.TRANSLATION_FAULT, BUFFER)
    assert scene.buffer() == FILLED


def test_an_endpoint_that_left_still_holds_an_unmap_of_the_domain_it_left(attach: Attachment) -> None:
    scene = FlightScene(attach).set_up("accel0", "accel1")
    scene.fill()
    scene.post(scene.detach())

    unmapped = scene.ask(scene.unmap(BUFFER))
    scene.land()

    assert unmapped == []
    assert sorted(scene.answers()) == [OK, OK]


def test_the_other_endpoints_dma_holds_an_unmap_of_their_domain(attach: Attachment) -> None:
    scene = FlightScene(attach).set_up("accel0", "accel1")
    scene.fill(name="accel1")

    assert scene.ask(scene.unmap(BUFFER)) == []


def test_the_other_endpoints_dma_does_not_hold_a_detach(attach: Attachment) -> None:
    scene = FlightScene(attach).set_up("accel0", "accel1")
    scene.fill(name="accel1")

    assert scene.ask(scene.detach("accel0")) == [OK]


def test_the_same_addresses_in_another_domain_do_not_hold_an_unmap(attach: Attachment) -> None:
    scene = FlightScene(attach).set_up("accel0").set_up("accel1", domain=2)
    scene.fill(name="accel1")

    assert scene.ask(scene.unmap(BUFFER, domain=1)) == [OK]


def test_an_unmap_waits_for_all_it_affects(attach: Attachment) -> None:
    scene = FlightScene(attach).set_up("accel0", "accel1")
    scene.fill()
    scene.now_ns += LATENCY_NS // 2
    scene.fill(BUFFER + PAGE, name="accel1")
    scene.post(scene.unmap(BUFFER, 2 * PAGE))

    scene.now_ns += LATENCY_NS // 2
    scene.run()
    half = (scene.buffer(0), scene.buffer(1), scene.answers())
    scene.land()

    assert half == (FILLED, EMPTY, [])
    assert scene.answers() == [OK]


def test_a_ring_full_of_answers_can_be_held_and_no_more(scene: FlightScene) -> None:
    requests = [scene.unmap(BUFFER)] * (RING_SIZE // 2)  # each takes two descriptors

    early = scene.ask(*requests)
    held = scene.device.unanswered()
    scene.land()

    assert early == []
    assert held == (0, RING_SIZE // 2)
    assert scene.answers() == [OK] * (RING_SIZE // 2)


def test_a_refused_request_is_answered_at_once(scene: FlightScene) -> None:
    assert scene.ask(scene.detach(domain=9), scene.unmap(BUFFER, PAGE // 2)) == [
        wire.TAILS[wire.S_INVAL],
        wire.TAILS[wire.S_RANGE],
    ]


def test_a_long_operation_faults_at_its_next_slice_after_an_unmap(attach: Attachment) -> None:
    scene = FlightScene(attach, granule="1").set_up(npages=4)
    scene.fill(nbytes=2 * PAGE)
    scene.post(scene.unmap(BUFFER, 4 * PAGE))

    scene.land()

    done = scene.accels["accel0"].completion()
    assert scene.answers() == [OK]
    assert (done.status, done.access) == (CompletionStatus.TRANSLATION_FAULT, Access.WRITE)
    assert done.fault_iova == BUFFER + done.result
    assert scene.buffer(nbytes=2 * PAGE) == b"\xa5" * done.result + bytes(2 * PAGE - done.result)


def test_it_is_told_how_long_an_answer_was_held(scene: FlightScene) -> None:
    scene.post(scene.unmap(BUFFER))
    scene.land()

    (told,) = [event for event in scene.events if isinstance(event, ReplyHeld)]
    assert (told.type_name, told.fields["virt_start"], told.naccesses) == ("UNMAP", BUFFER, 1)
    assert LATENCY_NS <= told.held_ns < 2 * LATENCY_NS
    assert scene.device.held_replies == 1


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


# --- who waits for longer gives back what is in flight


def freeze(scene: FlightScene, held: bool) -> None:
    scene.unit.freezer.set("VM stopped", held)


def test_a_stopped_vms_dma_holds_nothing_and_is_translated_anew(scene: FlightScene) -> None:
    scene.post(scene.unmap(BUFFER))
    freeze(scene, True)
    flights = scene.nflights
    scene.land()
    stopped = scene.buffer()
    freeze(scene, False)
    scene.run()

    assert (flights, stopped) == (0, EMPTY)
    assert scene.answers() == [OK]
    assert scene.buffer() == EMPTY
    assert status(scene) == CompletionStatus.TRANSLATION_FAULT


def test_a_stopped_vms_dma_goes_on_where_it_is_still_mapped(scene: FlightScene) -> None:
    freeze(scene, True)
    freeze(scene, False)
    scene.run()
    scene.land()

    assert scene.buffer() == FILLED
    assert status(scene) == CompletionStatus.OK


def test_rings_that_go_on_after_a_stop_have_their_held_answers_to_come() -> None:
    scene = FlightScene("vhost-user").set_up()
    scene.fill()
    scene.post(scene.unmap(BUFFER))

    bases = scene.suspend_rings()
    scene.land()
    suspended = (scene.answers(), scene.buffer(), scene.device.unanswered())
    scene.enable_rings(*bases)
    scene.run()

    assert suspended == ([], EMPTY, (None, 1))
    assert scene.answers() == [OK]
    assert scene.buffer() == EMPTY


def test_a_new_driver_after_a_stop_gets_no_answer_of_the_last_one() -> None:
    scene = FlightScene("vhost-user").set_up()
    scene.fill()
    scene.post(scene.unmap(BUFFER))

    scene.suspend_rings()
    scene.start_unit()
    scene.land()

    assert scene.answers() == []
    assert scene.device.unanswered() == (0, 0)


def test_ram_that_went_away_is_not_written_and_holds_nothing(scene: FlightScene) -> None:
    scene.post(scene.unmap(BUFFER))
    memory = scene.accels["accel0"].function.memory
    (region,) = memory.remove(RAM_GPA, RAM_NBYTES)
    scene.accels["accel0"].function.memory_changed()
    scene.land()
    memory.add(region)

    assert scene.answers() == [OK]
    assert scene.buffer() == EMPTY


# --- whom a landing trusts


def test_by_default_a_landing_trusts_its_translation(attach: Attachment) -> None:
    scene = FlightScene(attach).set_up()
    scene.fill()
    scene.post(scene.unmap(BUFFER), scene.map(BUFFER, RAM_GPA + BUFFER + PAGE))
    scene.land()

    assert (scene.buffer(0), scene.buffer(1)) == (FILLED, EMPTY)


def revalidating(attach: Attachment) -> FlightScene:
    scene = FlightScene(attach)
    scene.engine.settings = replace(scene.engine.settings, revalidate=True)
    scene.set_up()
    scene.fill()
    return scene


def test_revalidated_dma_lands_where_nothing_changed(attach: Attachment) -> None:
    scene = revalidating(attach)
    scene.land()

    assert scene.buffer() == FILLED


@pytest.mark.parametrize("change", ["unmapped", "elsewhere", "read-only", "detached"])
def test_revalidated_dma_is_refused_where_its_translation_changed(attach: Attachment, change: str) -> None:
    scene = revalidating(attach)
    read_only = scene.map(BUFFER, RAM_GPA + BUFFER)
    read_only.flags = wire.MAP_F_READ
    later: dict[str, list[wire.Map | wire.Unmap | wire.Attach]] = {
        "unmapped": [scene.unmap(BUFFER)],
        "elsewhere": [scene.unmap(BUFFER), scene.map(BUFFER, RAM_GPA + BUFFER + PAGE)],
        "read-only": [scene.unmap(BUFFER), read_only],
        "detached": [scene.attach(domain=2), scene.map_ring(domain=2)],
    }
    scene.post(*later[change])
    scene.land()

    done = scene.accels["accel0"].completion()
    assert (done.status, done.fault_iova) == (CompletionStatus.TRANSLATION_FAULT, BUFFER)
    assert (scene.buffer(0), scene.buffer(1)) == (EMPTY, EMPTY)
    assert scene.answers() == [OK] * len(later[change])
    assert [record[0] for record in scene.engine.pending_faults] == [wire.FAULT_R_MAPPING]
