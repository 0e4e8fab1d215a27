"""QEMU's dialogue with the vhost-user back end over a real socket, with RAM in a memfd and a driver in it."""

from __future__ import annotations

import os

import pytest

from tests.support import vfio_scene, vhost_scene
from tests.support.vfio_client import VfioClient
from tests.support.vfio_scene import GuestRam, fired, until
from tests.support.vhost import ATTACH, OK, map_page
from tests.support.vhost_client import HVA, VhostClient, connected
from tests.support.vhost_scene import RAM_NBYTES, Scene
from vdev.functions.vhost_rings import State
from vdev.wire import vhost_user as wire
from vdev.wire import viommu
from vdev.wire.vhost_user import Command, ProtocolFeature

every_fd_is_closed = vfio_scene.every_fd_is_closed
ram = vhost_scene.ram
scene = vhost_scene.scene


async def test_what_is_offered_is_what_qemu_needs(scene: Scene) -> None:
    client = await VhostClient.connect(scene.path)
    features = await client.u64(Command.GET_FEATURES)
    protocol = await client.u64(Command.GET_PROTOCOL_FEATURES)
    nqueues = await client.u64(Command.GET_QUEUE_NUM)
    slots = await client.u64(Command.GET_MAX_MEM_SLOTS)
    client.close()

    needed = ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ | ProtocolFeature.CONFIG
    assert features & wire.F_PROTOCOL_FEATURES
    assert features >> 32 & 1, "VERSION_1"
    assert not features >> 33 & 1, "ACCESS_PLATFORM"
    assert protocol & needed == needed
    assert not protocol & ProtocolFeature.STATUS
    assert (nqueues, slots >= 32) == (2, True)


async def test_a_driver_maps_and_unmaps(scene: Scene) -> None:
    unmap = viommu.Unmap(viommu.T_UNMAP, bytes(3), 1, 0, 0xFFFFF, bytes(4)).pack()
    async with scene.guest() as guest:
        await guest.ask(*[map_page(page) for page in range(2, 100)])
        mapped = scene.mappings

        assert await guest.ask(unmap) == [OK]
        assert (mapped, scene.mappings) == (99, 0)


@pytest.mark.parametrize(("nbytes", "expected"), [(64, 64), (40, 40), (1, 1), (0, 0), (256, 256)])
async def test_the_configuration_is_read_as_often_and_as_long_as_asked(
    scene: Scene, nbytes: int, expected: int
) -> None:
    async with scene.guest() as guest:
        answers = [await guest.client.config(nbytes) for _ in range(3)]

    whole = scene.carrier.config_read(0, 256)
    assert answers == [whole[:expected]] * 3


async def test_a_driver_can_write_the_bypass_byte(scene: Scene) -> None:
    async with scene.guest() as guest:
        config = bytearray(await guest.client.config())
        config[viommu.BYPASS_OFFSET] ^= 1
        body = wire.ConfigAccess(0, 64, wire.CONFIG_BY_DRIVER).pack() + bytes(config)

        assert await guest.client.acked(Command.SET_CONFIG, body) == 0
        assert await guest.client.config() == bytes(config)


async def test_stop_and_cont_keep_everything_a_hundred_times(scene: Scene) -> None:
    async with scene.guest() as guest:
        for page in range(2, 102):
            guest.requests.submit([map_page(page)], [4])  # perhaps taken before the stop, perhaps not
            bases = await guest.client.stop()
            assert scene.frozen
            await guest.start(bases)
            while not guest.requests.has_used():
                await guest.interrupted(0)
            assert [done.data for done in guest.requests.reap()] == [OK]
            assert not scene.frozen

        assert scene.mappings == 101
        assert (scene.carrier.resumes, scene.carrier.new_drivers) == (100, 0)


async def test_ram_stands_still_while_the_rings_are_suspended(scene: Scene) -> None:
    async with scene.guest() as guest:
        await guest.client.stop()
        guest.requests.submit([map_page(2)], [4])
        assert scene.ram.map is not None
        before = scene.ram.map[:]
        os.eventfd_write(guest.client.fronts[0].kick, 1)
        await guest.client.config()  # the back end has been through its loop

        assert scene.ram.map[:] == before


async def test_a_new_driver_finds_a_fresh_device(scene: Scene) -> None:
    async with scene.guest() as guest:
        await guest.client.stop()
        guest.new_rings()
        await guest.start()

        assert await guest.ask(map_page(1)) == [viommu.TAILS[viommu.S_NOENT]]
        assert scene.carrier.new_drivers == 1
        assert not scene.frozen


async def test_a_machine_reset_is_seen_by_the_endpoints_reset(scene: Scene) -> None:
    async with scene.guest() as guest:
        endpoint = await VfioClient.connect(scene.app.servers["accel0"].path)
        await endpoint.negotiate()
        await endpoint.reset()
        running = (scene.carrier.state, scene.mappings)
        await guest.client.stop()
        await endpoint.reset()
        endpoint.close()

        assert running == (State.RUNNING, 1)
        assert (scene.carrier.state, scene.mappings, scene.frozen) == (State.IDLE, 0, False)


async def test_an_endpoint_that_disconnects_proves_nothing(scene: Scene) -> None:
    async with scene.guest() as guest:
        endpoint = await VfioClient.connect(scene.app.servers["accel0"].path)
        await endpoint.negotiate()
        await guest.client.stop()
        endpoint.close()
        await until(lambda: scene.app.servers["accel0"].connection is None)

        assert (scene.carrier.state, scene.mappings) == (State.SUSPENDED, 1)


async def test_the_end_of_qemu_is_a_system_reset_and_the_next_one_is_served(scene: Scene) -> None:
    async with scene.guest():
        pass
    await until(lambda: scene.server.connection is None)
    left = (scene.mappings, scene.frozen, len(scene.carrier.memory), len(scene.app.vm.ram))

    async with scene.guest():
        assert left == (0, False, 0, 0)
        assert scene.mappings == 1


async def test_memory_may_be_taken_and_given_back_while_the_rings_run(scene: Scene) -> None:
    async with scene.guest() as guest:
        assert await guest.client.remove_memory(0, RAM_NBYTES) == 0
        guest.requests.submit([map_page(2)], [4])
        os.eventfd_write(guest.client.fronts[0].kick, 1)
        config = await guest.client.config()
        assert await guest.client.add_memory(0, RAM_NBYTES, scene.ram.fd) == 0

        await guest.interrupted(0)
        assert config
        assert [done.data for done in guest.requests.reap()] == [OK]


async def test_a_whole_memory_table_serves_as_well(scene: Scene) -> None:
    half = RAM_NBYTES // 2
    regions = [wire.MemoryRegion(at, half, HVA + at, at).pack() for at in (0, half)]
    async with connected(scene.path, scene.ram) as guest:
        body = wire.MemoryTable(2, 0).pack() + b"".join(regions)

        assert await guest.client.acked(Command.SET_MEM_TABLE, body, [scene.ram.fd, scene.ram.fd]) == 0
        await guest.start()
        assert await guest.ask(ATTACH) == [OK]


async def test_other_ram_than_the_vms_is_not_used(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with GuestRam(RAM_NBYTES) as other:
        endpoint = await VfioClient.connect(scene.app.servers["accel0"].path)
        await endpoint.negotiate()
        await endpoint.dma_map(0, RAM_NBYTES, other.fd)
        async with connected(scene.path, scene.ram) as guest:
            await guest.start()
            broken, log = scene.carrier.broken, caplog.text
        endpoint.close()

    assert broken
    assert "not the RAM that this VM's other functions have" in log


async def test_an_address_out_of_memory_leaves_no_ring_where_the_last_driver_had_it(scene: Scene) -> None:
    async with scene.guest() as guest:
        await guest.client.stop()
        outside = wire.RingAddress(0, 0, 0x1000, 0x2000, 0x3000, 0).pack()
        guest.client.send(Command.SET_VRING_ADDR, outside)
        guest.client.send(Command.SET_VRING_KICK, wire.U64(0).pack(), [guest.client.fronts[0].kick])
        await guest.client.enable(True)

        assert scene.carrier.broken


async def test_a_broken_ring_is_signalled_and_the_connection_stays(scene: Scene) -> None:
    async with scene.guest() as guest:
        guest.requests.offer(0xFFFF)
        guest.requests.publish()
        os.eventfd_write(guest.client.fronts[0].kick, 1)
        await until(lambda: scene.carrier.broken)

        assert [fired(front.error) for front in guest.client.fronts] == [1, 1]
        assert len(await guest.client.config()) == 64


async def test_a_config_change_is_pushed_on_the_back_end_channel(scene: Scene) -> None:
    async with scene.guest() as guest:
        scene.carrier.config_changed()
        pushed = guest.client.channel.recv(64)

    assert pushed == wire.Header(wire.BACKEND_CONFIG_CHANGE_MSG, wire.VERSION, 0).pack()


async def test_a_full_back_end_channel_is_counted_and_blocks_nothing(scene: Scene) -> None:
    async with scene.guest() as guest:
        assert scene.server.connection is not None
        channel = scene.server.connection.channel
        for _ in range(100_000):
            if channel.dropped:
                break
            scene.carrier.config_changed()

        assert channel.dropped == 1
        assert await guest.ask(map_page(2)) == [OK]
