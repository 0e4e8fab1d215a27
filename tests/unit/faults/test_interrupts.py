"""The point interrupt: vectors of functions and calls of vhost-user queues, lost or late."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.accelerator import descriptor
from tests.support.injected_endpoints import DST, SLOW, InjectedEndpoints, InjectedRng
from tests.support.injection import Injected
from vdev.config import Config, EndpointConfig, UnitConfig
from vdev.faults.events import FaultInjected
from vdev.wire import pci
from vdev.wire.accelerator import Flag, Op

MSIX = 0x11


def interrupted(scene: InjectedEndpoints, times: int = 1) -> list[int]:
    """The vectors that come of operations that ask for an interrupt."""
    scene.vectors.clear()
    for _ in range(times):
        scene.do(descriptor(Op.FILL, dst=DST, nbytes=8, flags=Flag.IRQ))
    return list(scene.vectors)


def test_a_lost_interrupt_does_not_come() -> None:
    scene = InjectedEndpoints()
    scene.add("interrupt", "lose", match={"function": "accel0", "vector": 0}, when={"nth": 2})

    assert interrupted(scene, 3) == [0, 0]
    assert scene.firings == [("r1", 1)]


def test_other_vectors_and_functions_are_left_alone() -> None:
    scene = InjectedRng()
    scene.add("interrupt", "lose", match={"function": "accel0", "vector": 1})
    scene.driver.vectors.clear()

    scene.draw()

    assert interrupted(scene) == [0]
    assert scene.driver.vectors != []


def test_a_delayed_interrupt_comes_in_its_time_and_once() -> None:
    scene = InjectedEndpoints()
    scene.add("interrupt", "delay", with_={"seconds": 0.5})

    at_once = interrupted(scene)
    scene.pass_time(0.4)
    early = list(scene.vectors)
    scene.pass_time(0.2)

    assert (at_once, early, scene.vectors) == ([], [], [0])
    assert scene.firings == [("r1", 1)]


@pytest.mark.parametrize("how", ["release", "clear", "remove and release"])
def test_what_is_delayed_comes_when_it_is_let_go(how: str) -> None:
    scene = InjectedEndpoints()
    rule = scene.add("interrupt", "delay", with_={"seconds": 500})
    interrupted(scene, 2)
    held = scene.injector.describe()["rules"][0]["held"]

    if how == "clear":
        assert scene.injector.clear().undone == ["2 delayed interrupts of accel0 are signalled"]
    else:
        if how == "remove and release":
            scene.injector.remove(rule)
        assert scene.injector.release(None if how == "remove and release" else rule) == 2

    assert (held, scene.vectors) == (2, [0, 0])
    scene.pass_time(600)
    assert scene.vectors == [0, 0]
    if how != "release":
        assert scene.accel.interrupts is None


@pytest.mark.parametrize("how", ["function", "device", "removal"])
def test_a_reset_forgets_what_is_delayed(how: str) -> None:
    scene = InjectedEndpoints()
    scene.add("interrupt", "delay", with_={"seconds": 1})
    interrupted(scene)

    {"function": scene.accel.function_level_reset, "device": scene.accel.reset, "removal": scene.accel.bring_back}[
        how
    ]()
    scene.start()
    scene.pass_time(2)

    assert scene.vectors == []
    assert scene.injector.describe()["rules"][0]["held"] == 0


def test_a_virtio_reset_forgets_what_is_delayed() -> None:
    scene = InjectedRng()
    scene.add("interrupt", "delay", match={"function": "rng0"}, with_={"seconds": 1})
    scene.driver.vectors.clear()
    scene.draw()

    scene.bring_up()
    scene.pass_time(2)

    assert scene.driver.vectors == []


def test_without_bus_master_a_delayed_message_is_none() -> None:
    scene = InjectedEndpoints()
    scene.add("interrupt", "delay", with_={"seconds": 1})
    interrupted(scene)

    scene.accel.config_write(pci.COMMAND, bytes(2))
    scene.pass_time(2)

    assert scene.vectors == []


def own_table() -> InjectedEndpoints:
    """accel0 keeps its MSI-X table, as one that may be unplugged; vector 0 writes 0x77 to 0xfee00000."""
    scene = InjectedEndpoints()
    scene.accel.keep_msix_table()
    scene.accel.raise_message = lambda vector, address, data: scene.vectors.append(data)
    scene.accel.bar_write(4, 0, (0xFEE0_0000).to_bytes(8, "little") + (0x77).to_bytes(4, "little") + bytes(4))
    scene.accel.config_write(scene.accel.config.find(MSIX) + 2, (0x8000).to_bytes(2, "little"))
    return scene


def test_messages_of_our_own_table_are_lost_and_delayed_as_well() -> None:
    scene = own_table()
    scene.add("interrupt", "lose", when={"nth": 1})
    scene.add("interrupt", "delay", when={"nth": 2}, with_={"seconds": 1})

    seen = interrupted(scene, 3)
    scene.pass_time(1)

    assert (seen, scene.vectors) == ([0x77], [0x77, 0x77])


def test_a_masked_vector_is_met_once_and_pending_until_it_is_unmasked() -> None:
    scene = own_table()
    rule = scene.add("interrupt", "delay", when={"nth": 2}, with_={"seconds": 1})
    scene.accel.bar_write(4, 12, (1).to_bytes(4, "little"))
    interrupted(scene)

    scene.accel.bar_write(4, 12, bytes(4))

    assert scene.vectors == [0x77]
    assert scene.injector.describe()["rules"][0]["matched"] == 1, rule


def test_calls_of_a_unit_over_vhost_user_are_met_by_queue() -> None:
    config = Config(units=(UnitConfig(name="iommu0", attach="vhost-user"),), endpoints=(EndpointConfig(name="accel0"),))
    scene = Injected(config)
    carrier: Any = scene.machine.units["iommu0"].function
    calls: list[int] = []
    carrier.raise_call = calls.append
    scene.add("interrupt", "lose", match={"function": "iommu0", "vector": 1}, times=1)
    scene.add("interrupt", "delay", match={"vector": 0}, with_={"seconds": 1})

    carrier.interrupt_queue(1)
    carrier.interrupt_queue(0)
    carrier.interrupt_queue(1)
    before = list(calls)
    scene.pass_time(1)

    assert (before, calls) == ([1], [1, 0])


def test_a_reset_of_the_carrier_forgets_delayed_calls() -> None:
    config = Config(units=(UnitConfig(name="iommu0", attach="vhost-user"),), endpoints=(EndpointConfig(name="accel0"),))
    scene = Injected(config)
    carrier: Any = scene.machine.units["iommu0"].function
    calls: list[int] = []
    carrier.raise_call = calls.append
    scene.add("interrupt", "delay", with_={"seconds": 1})
    carrier.interrupt_queue(0)

    carrier.disconnected()
    scene.pass_time(2)

    assert calls == []


def test_what_was_met_says_whose_vector_it_was() -> None:
    scene = InjectedEndpoints()
    scene.add("interrupt", "lose", match={"endpoint": "accel0"})

    interrupted(scene)

    (event,) = [event for event in scene.events if isinstance(event, FaultInjected)]
    assert event.fields == {"unit": "iommu0", "endpoint": 0x100, "function": "accel0", "vector": 0}


def test_an_interrupt_that_an_action_raises_meets_no_rule() -> None:
    scene = InjectedEndpoints()
    scene.add("interrupt", "spurious", times=1000, with_={"vector": 1})

    assert interrupted(scene) == [1, 0]
    assert scene.firings == [("r1", 1)]


def test_an_endpoint_that_came_later_is_met_too() -> None:
    scene = InjectedEndpoints()
    scene.add("interrupt", "lose")
    scene.machine.remove_endpoint("accel0")

    scene.machine.add_endpoint(next(one for one in SLOW.endpoints if one.name == "accel0"))

    assert scene.unit.endpoints["accel0"].interrupts is not None  # type: ignore[attr-defined]
