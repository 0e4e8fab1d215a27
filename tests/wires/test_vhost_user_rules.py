"""Rules of the vhost-user conversation: negotiation, acknowledgements, ring states, resets, what is never served."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

import pytest

from tests.support import vfio_scene, vhost_scene
from tests.support.vfio_scene import eventfds, fired, until
from tests.support.vhost import OK, map_page
from tests.support.vhost_client import HVA, Guest, connected
from tests.support.vhost_scene import Scene
from tests.wires.raw import Wire, words
from tests.wires.test_vhost_user_bytes import NEED_REPLY, PROTOCOL_BIT, REPLY_ACK, acknowledged, message, reply, wired
from vdev.functions.vhost_rings import State
from vdev.transports.vhost_session import COMMANDS
from vdev.wire.vhost_user import Command

every_fd_is_closed = vfio_scene.every_fd_is_closed
ram = vhost_scene.ram
scene = vhost_scene.scene

UNSERVED = sorted(command for command in Command if command not in COMMANDS)


# Negotiation and acknowledgements


async def test_protocol_features_are_negotiated_before_the_features_of_the_device(scene: Scene) -> None:
    async with wired(scene, acked=False) as wire:
        wire.send(message(15))
        offered = int.from_bytes((await wire.vhost_reply())[12:], "little")
        wire.send(message(16, words("Q", offered)))

        assert await acknowledged(wire, 3) == 0


async def test_before_reply_ack_is_negotiated_nothing_is_acknowledged(scene: Scene) -> None:
    async with wired(scene, acked=False) as wire:
        wire.send(message(3, flags=NEED_REPLY) + message(99, flags=NEED_REPLY) + message(17))

        assert await wire.vhost_reply() == reply(17, words("Q", 2))


async def test_what_does_not_ask_for_an_acknowledgement_gets_none(scene: Scene) -> None:
    async with wired(scene) as wire:
        wire.send(message(3) + message(10, words("II", 7, 0)) + message(17))

        assert await wire.vhost_reply() == reply(17, words("Q", 2))


async def test_the_message_that_agrees_to_acknowledgements_can_be_acknowledged(scene: Scene) -> None:
    async with wired(scene, acked=False) as wire:
        assert await acknowledged(wire, 16, words("Q", REPLY_ACK)) == 0


@pytest.mark.parametrize("bit", [1, 2, 4, 6, 7, 8, 10, 11, 12, 14, 16, 17, 18, 19, 20, 63])
async def test_a_protocol_feature_that_was_not_offered_is_not_taken(scene: Scene, bit: int) -> None:
    async with wired(scene) as wire:
        wire.send(message(15))
        offered = int.from_bytes((await wire.vhost_reply())[12:], "little")
        refused = await acknowledged(wire, 16, words("Q", REPLY_ACK | 1 << bit))

    assert not offered & 1 << bit
    assert refused == errno.EINVAL


@pytest.mark.parametrize("bit", [26, 33, 34, 40])
async def test_a_feature_that_was_not_offered_is_not_taken(scene: Scene, bit: int) -> None:
    async with wired(scene) as wire:
        wire.send(message(1))
        offered = int.from_bytes((await wire.vhost_reply())[12:], "little")
        refused = await acknowledged(wire, 2, words("Q", 1 << bit | PROTOCOL_BIT))

    assert not offered & 1 << bit
    assert refused == errno.EINVAL


@pytest.mark.parametrize("command", UNSERVED, ids=[command.name for command in UNSERVED])
async def test_a_message_for_other_devices_or_features_is_enosys_and_changes_nothing(
    scene: Scene, command: int
) -> None:
    async with scene.guest() as guest:
        refused = await guest.client.acked(command, bytes(8))

        assert refused == errno.ENOSYS
        assert await guest.ask(map_page(2)) == [OK]


async def test_a_change_of_the_configuration_is_not_told_to_who_cannot_read_it(scene: Scene) -> None:
    async with wired(scene, acked=False) as wire:
        wire.send(message(16, words("Q", REPLY_ACK | 1 << 5)))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            await acknowledged(wire, 21, b"", [theirs.fileno()])
            assert scene.server.connection is not None
            scene.server.connection.channel.config_changed()
            with pytest.raises(BlockingIOError):
                ours.recv(64)


# Ring states


async def _set_up(guest: Guest, features: int) -> None:
    """Everything of a start but SET_VRING_ENABLE."""
    client = guest.client
    client.features = features
    enable = client.enable
    try:
        client.enable = _nothing  # type: ignore[method-assign]
        await client.start((guest.requests, guest.events))
        await client.config()
    finally:
        client.enable = enable  # type: ignore[method-assign]


async def _nothing(enabled: bool) -> None:
    """In place of SET_VRING_ENABLE."""


async def test_with_the_protocol_bit_rings_begin_disabled(scene: Scene) -> None:
    async with connected(scene.path, scene.ram) as guest:
        guest.requests.submit([map_page(1)], [4])
        await _set_up(guest, guest.client.features)
        os.eventfd_write(guest.client.fronts[0].kick, 1)
        await guest.client.config()

        assert scene.carrier.state is State.IDLE
        assert not guest.requests.has_used()


async def test_without_the_protocol_bit_rings_begin_enabled(scene: Scene) -> None:
    async with connected(scene.path, scene.ram) as guest:
        await _set_up(guest, guest.client.features & ~PROTOCOL_BIT)

        assert scene.carrier.state is State.RUNNING
        assert len(await guest.ask(map_page(1))) == 1


async def test_a_request_that_was_there_before_the_start_needs_no_kick(scene: Scene) -> None:
    async with connected(scene.path, scene.ram) as guest:
        guest.requests.submit([map_page(1)], [4])
        await guest.start()
        await until(guest.requests.has_used)


async def test_after_the_question_for_its_base_a_ring_is_not_served(scene: Scene) -> None:
    async with scene.guest() as guest:
        answered = await guest.client.request(11, words("II", 0, 0))
        guest.requests.submit([map_page(2)], [4])
        os.eventfd_write(guest.client.fronts[0].kick, 1)
        await guest.client.config()
        await asyncio.sleep(0.02)

        assert answered == words("II", 0, 2)
        assert not guest.requests.has_used()


async def test_a_disabled_ring_is_not_served_until_it_is_enabled_again(scene: Scene) -> None:
    async with scene.guest() as guest:
        await guest.client.enable(False)
        guest.requests.submit([map_page(2)], [4])
        os.eventfd_write(guest.client.fronts[0].kick, 1)
        await guest.client.config()
        disabled = guest.requests.has_used()
        await guest.client.enable(True)
        await until(guest.requests.has_used)

        assert not disabled


async def test_the_call_eventfd_may_change_while_the_ring_runs(scene: Scene) -> None:
    async with scene.guest() as guest:
        with eventfds(1) as [new]:
            assert await guest.client.acked(13, words("Q", 0), [new]) == 0
            fired(new)  # a call that may have been lost is made again
            guest.requests.submit([map_page(2)], [4])
            os.eventfd_write(guest.client.fronts[0].kick, 1)
            await until(guest.requests.has_used)
            await until(lambda: fired(new) > 0)


async def test_the_same_addresses_may_be_given_while_the_ring_runs(scene: Scene) -> None:
    async with scene.guest() as guest:
        ring = guest.requests
        desc, used, avail = (HVA + gpa for gpa in (ring.desc_gpa, ring.used_gpa, ring.avail_gpa))
        same = await guest.client.acked(9, words("IIQQQQ", 0, 0, desc, used, avail, 0))
        other = await guest.client.acked(9, words("IIQQQQ", 0, 0, desc + 0x1000, used, avail, 0))

        assert (same, other) == (0, errno.EBUSY)
        assert await guest.ask(map_page(2)) == [OK]


async def test_reset_device_disables_every_ring_and_forgets_the_driver(scene: Scene) -> None:
    async with scene.guest() as guest:
        assert await guest.client.acked(34) == 0
        guest.requests.submit([map_page(2)], [4])
        os.eventfd_write(guest.client.fronts[0].kick, 1)
        await guest.client.config()

        assert (scene.carrier.state, scene.mappings) == (State.IDLE, 0)
        assert [ring.enabled for ring in scene.carrier.rings] == [False, False]
        assert not guest.requests.has_used()
        assert len(scene.carrier.memory) == 1, "the back end keeps what is not the device's state"


async def test_reset_device_disables_rings_that_were_enabled_and_never_ran(scene: Scene) -> None:
    async with connected(scene.path, scene.ram) as guest:
        assert await guest.client.acked(18, words("II", 0, 1)) == 0
        assert await guest.client.acked(34) == 0
        assert await guest.client.acked(18, words("II", 1, 1)) == 0

        assert scene.carrier.state is State.IDLE


async def test_the_owner_may_be_set_at_any_time_and_changes_nothing(scene: Scene) -> None:
    async with scene.guest() as guest:
        assert await guest.client.acked(3) == 0
        assert await guest.ask(map_page(2)) == [OK]


# Order and the end


async def test_messages_are_carried_out_in_their_order(scene: Scene) -> None:
    async with wired(scene) as wire:
        for base in range(100):
            wire.send(message(10, words("II", 0, base)))
        wire.send(message(11, words("II", 0, 0)))

        assert await wire.vhost_reply() == reply(11, words("II", 0, 99))


async def test_no_refusal_ends_the_connection(scene: Scene) -> None:
    async with wired(scene) as wire:
        for command in range(64):
            wire.send(message(command, b"odd"))
        wire.send(message(10, words("II", 0, 3)) + message(11, words("II", 0, 0)))
        found = b""
        while not found.startswith(words("II", 11, 5)) or len(found) == 12:
            found = await wire.vhost_reply()

        assert found == reply(11, words("II", 0, 3))


async def test_after_the_end_the_next_front_end_begins_without_anything(scene: Scene) -> None:
    async with scene.guest():
        pass
    await until(lambda: scene.server.connection is None)
    wire = await Wire.connect(scene.path)
    wire.send(message(3, flags=NEED_REPLY) + message(11, words("II", 0, 0)))
    found = await wire.vhost_reply()
    wire.close()

    assert found == reply(11, words("II", 0, 0)), "neither REPLY_ACK nor a base is left"
    assert len(scene.carrier.memory) == 0
