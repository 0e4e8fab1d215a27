"""When a unit over vhost-user tells QEMU that its configuration changed: QEMU ends if its device is not started."""

from __future__ import annotations

from tests.support.vhost import ATTACH, OK, CarrierRig, map_page


def started() -> CarrierRig:
    """A running driver with one mapping; nothing noted."""
    rig = CarrierRig()
    rig.start()
    assert rig.ask(ATTACH, map_page(1)) == [OK, OK]
    rig.take_notes()
    return rig


def test_a_config_change_waits_for_the_resume() -> None:
    rig = started()
    bases = rig.stop()
    rig.take_notes()
    rig.carrier.config_changed()
    early = rig.take_notes()

    rig.start(*bases)

    assert early == []
    assert rig.take_notes() == ["thaw", "config"]


def test_a_config_change_of_a_stopped_vm_waits_until_it_runs() -> None:
    rig = started()

    rig.carrier.hold_config(True)
    rig.carrier.config_changed()
    rig.carrier.config_changed()
    while_stopped = rig.take_notes()
    rig.carrier.hold_config(False)

    assert while_stopped == []
    assert rig.take_notes() == ["config"]


def test_a_resume_before_the_vm_is_known_to_run_does_not_tell_a_config_change_yet() -> None:
    rig = started()
    rig.carrier.hold_config(True)
    bases = rig.stop()
    rig.carrier.config_changed()
    rig.take_notes()

    rig.start(*bases)
    early = rig.take_notes()
    rig.carrier.hold_config(False)

    assert early == ["thaw"]
    assert rig.take_notes() == ["config"]


def test_a_config_change_without_a_driver_is_not_told() -> None:
    rig = CarrierRig()

    rig.carrier.config_changed()
    rig.start()

    assert "config" not in rig.take_notes()
