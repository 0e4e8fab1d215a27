"""The commands about the IOMMU and events-follow against a real `vdev serve`; the guest at its sockets is the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.serve_guest import EVENT_BUFFERS, Ram, until_true
from tests.support.serve_process import ONE_UNIT, ServeProcess, serving
from tests.support.serve_scene import DOMAIN, ENDPOINT, MIB, SOURCE_GPA, SOURCE_IOVA, TARGET_IOVA, Scene
from vdev.control.event_limits import PER_SECOND
from vdev.qapi.check import check_data, check_return
from vdev.qapi.schema import schema
from vdev.wire import viommu
from vdev.wire.accelerator import CompletionStatus
from vdev.wire.virtio_pci import Status

NOWHERE_IOVA = 0x7000_0000
EXTRA = 0x200  # 02:00.0
WAIT_S = 5.0


class Follower:
    """A client of events-follow."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, process: ServeProcess) -> Follower:
        reader, writer = await asyncio.open_unix_connection(process.ready["control"])
        writer.write(b'{"execute": "events-follow", "id": 5}\n')
        assert json.loads(await reader.readline()) == {"return": {}, "id": 5}
        return cls(reader, writer)

    async def next(self, name: str, **wanted: object) -> dict[str, Any]:
        """The data of the next event `name` that has these; TimeoutError after 5 s."""
        async with asyncio.timeout(WAIT_S):
            while True:
                event = json.loads(await self._reader.readline())
                check_data(schema().events[event["event"]].members, event["data"])
                data: dict[str, Any] = event["data"]
                if event["event"] == name and wanted.items() <= data.items():
                    return data

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[ServeProcess]:
    with serving(ONE_UNIT, tmp_path / "run") as running:
        yield running


@pytest.fixture
async def scene(process: ServeProcess) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield await Scene.enter(stack, process.directory, stack.enter_context(Ram()))


@pytest.fixture
async def follower(process: ServeProcess) -> AsyncIterator[Follower]:
    following = await Follower.connect(process)
    yield following
    await following.close()


def ask(process: ServeProcess, command: str, **arguments: object) -> Any:
    """A reply that is what the schema says."""
    reply = process.ask(command, **{name.replace("_", "-"): value for name, value in arguments.items()})
    check_return(schema().commands[command].returns, reply)
    return reply


async def refused_copy(scene: Scene) -> int:
    """A copy from nowhere; its status."""
    return (await scene.accel.copy(NOWHERE_IOVA, TARGET_IOVA, 16)).status


async def test_a_drivers_write_of_bypass_and_set_bypass_are_told_alike_but_one_interrupts(
    process: ServeProcess, scene: Scene, follower: Follower
) -> None:
    await scene.unit.set_common("config_msix_vector", 0)
    before = (await scene.unit.common()).config_generation
    await scene.unit.set_bypass(0)
    by_driver = await follower.next("BYPASS_CHANGED")
    untold = scene.unit.interrupts(0)
    ask(process, "set-bypass", bypass=True)
    by_command = await follower.next("BYPASS_CHANGED")
    await scene.unit.interrupted(0)

    assert (by_driver["bypass"], by_command["bypass"], untold) == (False, True, 0)
    assert (await scene.unit.unit_config()).bypass == 1
    assert (await scene.unit.common()).config_generation == before + 1


async def test_faults_without_a_buffer_wait_and_are_shown(process: ServeProcess, scene: Scene) -> None:
    await scene.attach()
    for number in range(EVENT_BUFFERS + 3):
        await scene.accel.copy(NOWHERE_IOVA + number * 4096, TARGET_IOVA, 16)

    found = ask(process, "query-faults")

    late = range(EVENT_BUFFERS, EVENT_BUFFERS + 3)
    assert [fault["address"] for fault in found] == [NOWHERE_IOVA + number * 4096 for number in late]
    assert {(fault["reason"], fault["endpoint"], *fault["flags"]) for fault in found} == {("mapping", "accel0", "read")}
    assert ask(process, "query-units")[0]["pending-faults"] == 3


async def test_requests_of_a_frozen_machine_wait_in_the_ring(process: ServeProcess, scene: Scene) -> None:
    ask(process, "freeze", by="a test")
    asking = asyncio.create_task(scene.unit.attach(DOMAIN, ENDPOINT))

    async def has_come() -> bool:
        return bool(ask(process, "query-requests") == [{"unit": "iommu0", "waiting": 1, "held": 0}])

    await until_true(has_come)
    ask(process, "thaw")

    assert await asking == viommu.S_OK
    assert ask(process, "query-requests")[0]["waiting"] == 0


async def test_a_page_of_mappings_and_a_translation_are_the_drivers(process: ServeProcess, scene: Scene) -> None:
    await scene.attach()
    await scene.map_buffers(MIB)

    page = ask(process, "query-mappings", domain=DOMAIN, **{"from": SOURCE_IOVA})
    told = ask(process, "translate", endpoint="accel0", iova=SOURCE_IOVA + 16, nbytes=MIB - 16)

    assert [mapping["virt-start"] for mapping in page["mappings"]] == [SOURCE_IOVA, TARGET_IOVA]
    assert page["total"] == 3
    assert told["pieces"] == [{"iova": SOURCE_IOVA + 16, "gpa": SOURCE_GPA + 16, "nbytes": MIB - 16, "memory": "ram"}]


async def test_a_flood_of_faults_is_told_in_part_and_counted_in_full(
    process: ServeProcess, scene: Scene, follower: Follower
) -> None:
    await scene.attach()
    total = 5 * PER_SECOND
    for _ in range(total):
        assert await refused_copy(scene) == CompletionStatus.TRANSLATION_FAULT

    seen = told = 0
    while seen < total:
        fault = await follower.next("FAULT", endpoint="accel0", reason="not-mapped", iova=NOWHERE_IOVA)
        seen, told = seen + 1 + fault["suppressed"], told + 1

    assert seen == total
    assert told < total


async def test_reset_unit_stops_dma_and_the_same_rings_go_on(
    process: ServeProcess, scene: Scene, follower: Follower
) -> None:
    await scene.attach()
    await scene.start_long_fill()
    landed = await scene.bytes_land()
    ask(process, "reset-unit")
    lands = await scene.bytes_land()

    await follower.next("UNIT_RESET", kind="host")
    assert (landed, lands) == (True, False)
    assert await scene.unit.map(DOMAIN, SOURCE_IOVA, 4096, SOURCE_GPA) == viommu.S_NOENT
    refused = await follower.next("REQUEST_REFUSED", type="MAP")
    assert (refused["status"], refused["domain"]) == ("NOENT", DOMAIN)
    assert ask(process, "query-units")[0]["domains"] == 0
    # The driver may go on as if nothing had been: with what it negotiated, on the rings it has.
    await scene.attach()
    assert await scene.map_buffers(MIB) == [viommu.S_OK, viommu.S_OK]
    scene.put(SOURCE_GPA, b"after")
    assert (await scene.accel.copy(SOURCE_IOVA, TARGET_IOVA, 5)).status == CompletionStatus.OK


async def test_a_reset_unit_may_say_that_it_needs_one(process: ServeProcess, scene: Scene) -> None:
    await scene.unit.set_common("config_msix_vector", 0)

    ask(process, "reset-unit", needs_reset=True)

    await scene.unit.interrupted(0)
    assert (await scene.unit.common()).device_status & Status.DEVICE_NEEDS_RESET
    assert await scene.unit.attach(DOMAIN, ENDPOINT) == viommu.S_OK  # requests are answered all the same


async def test_a_follower_that_goes_leaves_nothing_connected(process: ServeProcess, scene: Scene) -> None:
    for _ in range(3):
        following = await Follower.connect(process)
        await scene.unit.attach(DOMAIN, ENDPOINT)
        await following.next("ENDPOINT_ATTACHED", endpoint="accel0")
        await scene.unit.detach(DOMAIN, ENDPOINT)
        await following.close()

    assert (await scene.unit.attach(DOMAIN, ENDPOINT)) == viommu.S_OK
    assert process.ask("query-status")["crashed"] == []


async def test_an_endpoint_that_comes_and_goes_is_told_with_its_name(tmp_path: Path) -> None:
    slots = 'slots:\n  - {bdf: "02:00.0"}\n'
    async with AsyncExitStack() as stack:
        process = stack.enter_context(serving(ONE_UNIT + slots, tmp_path / "run"))
        scene = await Scene.enter(stack, process.directory, stack.enter_context(Ram()))
        following = await Follower.connect(process)
        process.ask("endpoint-add", name="extra")
        await scene.unit.attach(DOMAIN, EXTRA)
        process.ask("endpoint-remove", name="extra")
        told = [await following.next(name, endpoint="extra") for name in ("ENDPOINT_ADDED", "ENDPOINT_ATTACHED")]
        told += [await following.next(name, endpoint="extra") for name in ("ENDPOINT_DETACHED", "ENDPOINT_REMOVED")]
        await following.close()

    assert [(data["unit"], data["id"]) for data in told] == [("iommu0", EXTRA)] * 4


def test_a_refusal_on_the_socket_names_the_rule_and_the_cure(process: ServeProcess) -> None:
    with pytest.raises(RuntimeError, match=r"unit: there is no unit 'x' \(known: iommu0\)"):
        process.ask("query-domains", unit="x")
    with pytest.raises(RuntimeError, match="Parameter 'access' does not accept value 'execute'"):
        process.ask("translate", endpoint="accel0", iova=0, access="execute")
