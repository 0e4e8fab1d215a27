"""The vhost-user carrier: what starts a device, what a stop keeps, and what proves that a restart is no `cont`."""

from __future__ import annotations

import errno

import pytest

from tests.support.vhost import ATTACH, ENDPOINT, OK, RAM_NBYTES, RING_SIZE, CarrierRig, map_page
from vdev.errors import MessageError, TranslationFault
from vdev.functions.vhost_rings import State
from vdev.functions.viommu import Reply
from vdev.memory import Region
from vdev.wire import viommu as wire
from vdev.wire.vhost_user import F_PROTOCOL_FEATURES

PLATFORM = 1 << 33


def started() -> CarrierRig:
    """A running driver with one mapping; nothing noted."""
    rig = CarrierRig()
    rig.start()
    assert rig.ask(ATTACH, map_page(1)) == [OK, OK]
    rig.take_notes()
    return rig


def test_the_offer_has_the_protocol_bit_and_never_the_platform_bit() -> None:
    rig = CarrierRig()

    assert rig.carrier.offered_features & F_PROTOCOL_FEATURES
    assert rig.carrier.offered_features & ~F_PROTOCOL_FEATURES == rig.device.offered_features
    assert not rig.carrier.offered_features & PLATFORM


def test_nothing_is_served_before_the_last_ring_is_enabled() -> None:
    rig = CarrierRig()
    rig.configure(0, 0)
    rig.carrier.enable(0, True)

    before = rig.ask(ATTACH)
    rig.carrier.enable(1, True)

    assert before == []
    assert rig.ask(map_page(1)) == [OK, OK]


def test_used_buffers_are_called_out() -> None:
    rig = CarrierRig()
    rig.start()

    rig.ask(ATTACH)

    assert "call 0" in rig.take_notes()


def test_a_unit_that_never_started_freezes_nothing() -> None:
    rig = CarrierRig()

    assert rig.stop() == (0, 0)
    rig.carrier.function_was_reset()

    assert rig.take_notes() == []
    assert rig.carrier.state is State.IDLE


def test_a_stop_freezes_the_endpoints_and_tells_where_the_rings_are() -> None:
    rig = started()

    assert rig.stop() == (2, 0)

    assert rig.take_notes() == ["freeze"]
    assert rig.carrier.state is State.SUSPENDED


def test_nothing_is_written_after_the_stop() -> None:
    rig = started()
    rig.requests.submit([map_page(2)], [4])
    rig.stop()
    before = bytes(rig.ram)

    rig.carrier.kicked(0)
    rig.engine.fault(ENDPOINT, TranslationFault(wire.FAULT_R_MAPPING, "mapping", 0x9000), 1)
    rig.device.faults_pending()
    rig.run()

    assert rig.ram == before


def test_the_same_driver_goes_on_where_it_stopped() -> None:
    rig = started()
    bases = rig.stop()
    rig.requests.submit([map_page(2)], [4])  # it was in the ring, and not taken, when the VM stopped

    rig.start(*bases)
    answers = rig.ask(map_page(3))

    assert answers == [OK, OK]
    assert rig.mappings == 3
    assert (rig.carrier.resumes, rig.carrier.new_drivers) == (1, 0)
    assert rig.take_notes()[:2] == ["freeze", "thaw"]


def test_a_fault_of_the_time_between_is_delivered_afterwards() -> None:
    rig = started()
    rig.events.submit([], [wire.Fault.layout.size])
    bases = rig.stop()
    rig.engine.fault(ENDPOINT, TranslationFault(wire.FAULT_R_MAPPING, "mapping", 0x9000), 1)

    rig.start(*bases)
    rig.run()

    (event,) = rig.events.reap()
    assert wire.Fault.parse(event.data).address == 0x9000


def test_a_held_reply_outlives_the_stop() -> None:
    held: list[Reply] = []

    def hold(reply: Reply) -> bool:
        held.append(reply)
        return True

    rig = CarrierRig(hold=hold)
    rig.start()
    rig.ask(ATTACH)
    bases = rig.stop()
    too_early = rig.device.complete(held[0])
    rig.start(*bases)

    in_time = rig.device.complete(held[0])

    assert (bases, too_early, in_time) == ((1, 0), False, True)
    assert [done.data for done in rig.requests.reap()] == [OK]


def test_a_new_driver_at_the_same_addresses_gets_a_fresh_device() -> None:
    rig = started()
    rig.stop()
    rig.new_rings()

    rig.start()
    answers = rig.ask(map_page(5))

    assert answers == [wire.TAILS[wire.S_NOENT]], "the domain is gone"
    assert rig.mappings == 0
    assert rig.carrier.new_drivers == 1
    assert rig.take_notes()[:3] == ["freeze", "quiesce", "thaw"]


@pytest.mark.parametrize("change", ["features", "size", "address"])
def test_a_restart_that_differs_is_a_new_driver(change: str) -> None:
    rig = started()
    bases = rig.stop()
    rig.configure(*bases)
    if change == "features":
        rig.carrier.set_features(rig.features & ~wire.F_PROBE)
    elif change == "size":
        rig.carrier.set_size(1, RING_SIZE // 2)
    else:
        rig.carrier.set_addresses(1, rig.events.desc_gpa + 16, rig.events.avail_gpa, rig.events.used_gpa)
    rig.carrier.enable(0, True)
    rig.carrier.enable(1, True)

    assert (rig.carrier.resumes, rig.carrier.new_drivers) == (0, 1)
    assert rig.mappings == 0


def wrapped() -> CarrierRig:
    """A running driver whose request ring has just come round to index 0."""
    rig = CarrierRig()
    rig.new_rings(start=0x10000 - 2)
    rig.start(0x10000 - 2, 0)
    assert rig.ask(ATTACH, map_page(1)) == [OK, OK]
    return rig


def test_a_ring_that_wrapped_to_0_goes_on() -> None:
    rig = wrapped()
    bases = rig.stop()

    rig.start(*bases)

    assert bases == (0, 0)
    assert (rig.carrier.resumes, rig.mappings) == (1, 1)


def test_a_new_driver_is_not_taken_for_a_ring_that_wrapped_to_0() -> None:
    rig = wrapped()
    bases = rig.stop()
    rig.new_rings()

    rig.start(*bases)

    assert (rig.carrier.new_drivers, rig.mappings) == (1, 0)


def test_rings_no_request_was_taken_from_go_on() -> None:
    rig = CarrierRig()
    rig.start()
    bases = rig.stop()

    rig.start(*bases)

    assert (rig.carrier.resumes, rig.carrier.new_drivers) == (1, 0)


def test_rings_that_are_only_disabled_go_on_without_being_set_up_again() -> None:
    rig = started()
    rig.carrier.enable(1, False)

    rig.carrier.enable(1, True)

    assert rig.ask(map_page(2)) == [OK]
    assert rig.carrier.resumes == 1


def test_a_device_reset_of_another_function_proves_a_machine_reset() -> None:
    rig = started()
    rig.stop()
    rig.take_notes()

    rig.carrier.function_was_reset()

    assert rig.take_notes() == ["system reset", "quiesce", "thaw"]
    assert (rig.carrier.state, rig.carrier.machine_resets, rig.mappings) == (State.IDLE, 1, 0)
    rig.new_rings()
    rig.start()
    assert rig.carrier.new_drivers == 0, "it was counted as the machine's reset"


def test_a_device_reset_of_another_function_means_nothing_while_the_rings_run() -> None:
    rig = started()

    rig.carrier.function_was_reset()

    assert rig.take_notes() == []
    assert rig.mappings == 1


def test_reset_device_is_a_virtio_reset_at_once() -> None:
    rig = started()

    rig.carrier.reset()

    assert rig.take_notes() == ["freeze", "quiesce", "thaw"]
    assert (rig.carrier.state, rig.mappings) == (State.IDLE, 0)


def test_the_end_of_the_connection_is_the_end_of_the_machine() -> None:
    rig = started()

    rig.carrier.disconnected()

    assert rig.take_notes() == ["freeze", "system reset", "quiesce", "thaw"]
    assert (rig.carrier.state, rig.mappings) == (State.IDLE, 0)


def break_ring(rig: CarrierRig) -> None:
    """Make a descriptor available that does not exist."""
    rig.requests.offer(RING_SIZE)
    rig.requests.publish()
    rig.run()


def test_a_broken_ring_is_signalled_and_not_served_even_after_a_stop() -> None:
    rig = started()
    break_ring(rig)
    noted = rig.take_notes()

    bases = rig.stop()
    rig.start(*bases)

    assert noted == ["error 0", "error 1"]
    assert rig.carrier.broken
    assert rig.run() is not None
    assert rig.requests.reap() == []


def test_a_new_driver_ends_the_brokenness() -> None:
    rig = started()
    break_ring(rig)
    rig.stop()
    rig.new_rings()

    rig.start()

    assert not rig.carrier.broken
    assert rig.ask(ATTACH) == [OK]


def test_a_ring_outside_ram_breaks_the_device_until_another_start() -> None:
    rig = CarrierRig()
    rig.configure(0, 0)
    rig.carrier.set_addresses(0, RAM_NBYTES, RAM_NBYTES + 0x1000, RAM_NBYTES + 0x2000)
    rig.carrier.enable(0, True)
    rig.carrier.enable(1, True)
    broken = rig.carrier.broken

    bases = rig.stop()
    rig.start(*bases)

    assert broken
    assert rig.ask(ATTACH) == [OK]


def test_rings_survive_memory_that_was_replaced_while_suspended() -> None:
    rig = started()
    bases = rig.stop()
    rig.carrier.memory.clear()
    rig.carrier.memory_changed()
    rig.carrier.memory.add(Region(0, RAM_NBYTES, memoryview(rig.ram)))
    rig.carrier.memory_changed()

    rig.start(*bases)

    assert rig.ask(map_page(2)) == [OK]
    assert rig.carrier.resumes == 1


def test_the_bypass_byte_can_be_written_before_driver_ok_and_with_the_feature_afterwards() -> None:
    rig = CarrierRig()
    config = bytearray(rig.carrier.config_read(0, 64))
    config[wire.BYPASS_OFFSET] = 0
    rig.carrier.config_write(0, bytes(config))
    before = rig.carrier.config_read(wire.BYPASS_OFFSET, 1)
    rig.features &= ~wire.F_BYPASS_CONFIG
    rig.start()
    config[wire.BYPASS_OFFSET] = 1

    rig.carrier.config_write(0, bytes(config))

    assert before == rig.carrier.config_read(wire.BYPASS_OFFSET, 1) == b"\0"


@pytest.mark.parametrize(
    ("command", "arguments", "code"),
    [
        ("set_features", (PLATFORM,), errno.EINVAL),
        ("set_size", (0, 0), errno.EINVAL),
        ("set_size", (0, 3), errno.EINVAL),
        ("set_size", (0, 512), errno.EINVAL),
        ("set_size", (2, 16), errno.EINVAL),
        ("set_base", (0, 0x10000), errno.EINVAL),
        ("set_addresses", (2, 0, 0, 0), errno.EINVAL),
        ("set_kick", (2,), errno.EINVAL),
        ("enable", (255, True), errno.EINVAL),
        ("stop", (2,), errno.EINVAL),
    ],
)
def test_what_makes_no_sense_is_refused(command: str, arguments: tuple[int, ...], code: int) -> None:
    rig = CarrierRig()

    with pytest.raises(MessageError) as caught:
        getattr(rig.carrier, command)(*arguments)

    assert caught.value.errno == code


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("set_features", (F_PROTOCOL_FEATURES,)),
        ("set_size", (0, 8)),
        ("set_base", (0, 7)),
        ("set_addresses", (0, 0, 0, 0)),
    ],
)
def test_a_running_ring_is_not_changed(command: str, arguments: tuple[int, ...]) -> None:
    rig = started()

    with pytest.raises(MessageError) as caught:
        getattr(rig.carrier, command)(*arguments)

    assert caught.value.errno == errno.EBUSY
    assert rig.ask(map_page(2)) == [OK]
