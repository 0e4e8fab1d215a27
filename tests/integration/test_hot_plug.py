"""Endpoints that come and go in a served machine, asked for on its control socket; what fails leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.vfio_client import VfioClient
from tests.support.vfio_scene import open_fds, until
from vdev.app import App
from vdev.config import Config, EndpointConfig, SlotConfig, UnitConfig
from vdev.wire.vfio_user import REGION_CONFIG

CONFIG = Config(
    units=(UnitConfig(name="iommu0"), UnitConfig(name="iommu1", bdf="00:11.0", attach="vhost-user")),
    endpoints=(EndpointConfig(name="accel0"), EndpointConfig(name="flat", bdf="00:12.0")),
    slots=(SlotConfig(bdf="02:00.0"), SlotConfig(bdf="03:00.0", unit="iommu1")),
)
CONNECT = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"
MANY = [{"start": n << 12, "end": (n << 12) + 4095} for n in range(40)]  # more than probe_size holds


class Refused(Exception):
    """An error reply."""


class Served:
    """A running app and its control socket."""

    def __init__(self, app: App) -> None:
        self.app = app

    def ask(self, command: str, **arguments: object) -> Any:
        """What the command returns, by way of its line of JSON."""
        line = json.dumps({"execute": command, "arguments": arguments}).encode()
        answer = json.loads(self.app.control.answer(line))
        if "error" in answer:
            raise Refused(answer["error"]["desc"])
        return answer["return"]

    def events(self) -> list[str]:
        kinds = ["EndpointAdded", "EndpointRemoved", "EndpointStage", "EndpointDetached"]
        return [f"{event['event']} {event.get('stage', '')}".strip() for event in self.ask("query-events", kinds=kinds)]

    def state(self) -> dict[str, Any]:
        """All that a command which fails must leave alone."""
        machine = self.app.machine
        return {
            "config": self.app.endpoints.config,
            "iommu": self.ask("query-iommu"),
            "endpoints": self.ask("query-endpoints"),
            "slots": self.ask("query-slots"),
            "servers": sorted(self.app.servers),
            "functions": sorted(machine.functions),
            "doors": [sorted(unit.doors) for unit in machine.units.values()],
            "events": self.ask("query-events"),
            "trace": self.app.trace.header,
            "files": sorted(path.name for path in self.app.directory.iterdir()),
            "fds": len(open_fds()),
            "tasks": len(asyncio.all_tasks()),
        }


@asynccontextmanager
async def served(tmp_path: Path, config: Config = CONFIG) -> AsyncIterator[Served]:
    """An app that listens, stopped and closed afterwards."""
    app = App(config, tmp_path / "run")
    listens = asyncio.Event()
    task = asyncio.create_task(app.run(lambda line: listens.set()))
    try:
        await listens.wait()
        await asyncio.sleep(0)
        yield Served(app)
    finally:
        app.stopping.set()
        await task
        app.close()


@asynccontextmanager
async def connected(path: str) -> AsyncIterator[VfioClient]:
    client = await VfioClient.connect(Path(path))
    try:
        await client.negotiate()
        yield client
    finally:
        client.close()


async def test_an_added_endpoint_listens_and_is_shown_everywhere(tmp_path: Path) -> None:
    async with served(tmp_path) as machine:
        made = machine.ask("endpoint-add", name="new", reserved=[{"start": 0, "end": 4095}])

        path = tmp_path / "run" / "new.sock"
        assert made == {
            "endpoint": "new", "bdf": "02:00.0", "port": "vdev.port2", "path": str(path), "until": "enumerated",
        }  # fmt: skip
        assert path.is_socket()
        (shown,) = machine.ask("query-endpoints", endpoint="new")
        assert shown["in-flight"] == 0
        assert shown["reserved"] == [
            {"start": 0, "end": 4095, "kind": "reserved"},
            {"start": 0xFEE00000, "end": 0xFEEFFFFF, "kind": "msi"},
        ]
        assert (shown["id"], shown["stage"], shown["plugged"], len(shown["probe"])) == (0x200, "absent", True, 96)
        assert "domain" not in shown
        assert machine.ask("query-slots")[1] == {
            "bdf": "02:00.0", "unit": "iommu0", "port": "vdev.port2", "endpoint": "new",
        }  # fmt: skip
        assert machine.ask("query-groups", unit="iommu0")[-1]["endpoints"] == ["new"]
        assert "new" in [function["function"] for function in machine.ask("query-status")["functions"]]
        assert machine.events() == ["EndpointAdded"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "accel0"}, "'accel0' is also"),
        ({"name": "Bad"}, "is not a name"),
        ({"name": "new", "model": "toaster"}, "'toaster' is no model"),
        ({"name": "new", "options": {"devmem": "3"}}, "endpoints[new].options.devmem"),
        ({"name": "new", "options": {"nonsense": 1}}, "endpoints[new].options.nonsense"),
        ({"name": "new", "options": [1]}, "endpoints[new].options"),
        ({"name": "new", "bdf": "01:00.0"}, "is taken by accel0"),
        ({"name": "new", "bdf": "07:00.0"}, "is no slot"),
        ({"name": "new", "reserved": MANY}, "cannot hold"),
        ({"name": "new", "reserved": [{"start": 0, "end": 4095, "kind": "msi"}]}, "of kind msi"),
        ({"name": "blocked"}, "exists and is not a socket"),
        ({"name": "new", "colour": "red"}, "Parameter 'colour' is unexpected"),
    ],
)  # fmt: skip
async def test_an_endpoint_that_cannot_be_added_leaves_nothing(
    tmp_path: Path, arguments: dict[str, object], words: str
) -> None:
    async with served(tmp_path) as machine:
        (tmp_path / "run" / "blocked.sock").write_text("in the way")
        before = machine.state()

        with pytest.raises(Refused) as caught:
            machine.ask("endpoint-add", **arguments)

        assert words in str(caught.value)
        assert machine.state() == before


async def test_a_removed_endpoint_leaves_nothing_but_a_free_slot(tmp_path: Path) -> None:
    async with served(tmp_path) as machine:
        before = machine.state()
        machine.ask("endpoint-add", name="new")
        machine.ask("endpoint-remove", name="new")
        await asyncio.sleep(0.05)
        after = machine.state()

        for state in (before, after):
            del state["events"], state["trace"]
        assert {**after, "config": set(after["config"].slots)} == {**before, "config": set(before["config"].slots)}
        assert machine.events() == ["EndpointAdded", "EndpointRemoved"]


async def test_nothing_refers_to_a_removed_endpoint(tmp_path: Path) -> None:
    async with served(tmp_path) as machine:
        held: list[weakref.ref[object]] = []
        for model in ("accelerator", "rng"):
            path = machine.ask("endpoint-add", name="new", model=model)["path"]
            server = machine.app.servers["new"]
            held += [weakref.ref(server), weakref.ref(machine.app.machine.functions["new"])]
            async with connected(path) as client:
                await client.region_read(REGION_CONFIG, 0, 4)
            await until(lambda server=server: server.connection is None)  # type: ignore[misc]
            machine.ask("endpoint-remove", name="new")
            del server, client
            await asyncio.sleep(0.02)

        gc.collect()

        assert [reference() for reference in held] == [None] * 4


async def test_a_name_may_be_used_again_at_once(tmp_path: Path) -> None:
    async with served(tmp_path) as machine:
        for _ in range(3):
            path = machine.ask("endpoint-add", name="new")["path"]
            machine.ask("endpoint-remove", name="new")
        path = machine.ask("endpoint-add", name="new")["path"]
        await asyncio.sleep(0.05)

        async with connected(path) as client:
            assert await client.region_read(REGION_CONFIG, 0, 4) == bytes.fromhex("34126476")


async def test_an_endpoint_is_not_removed_while_qemu_is_connected(tmp_path: Path) -> None:
    async with served(tmp_path) as machine:
        path = machine.ask("endpoint-add", name="new")["path"]
        async with connected(path):
            assert machine.ask("query-endpoints", endpoint="new")[0]["stage"] == "plugged"
            with pytest.raises(Refused, match=f"QEMU .pid {os.getpid()}. is connected to it"):
                machine.ask("endpoint-remove", name="new")
        await until(lambda: machine.ask("query-endpoints", endpoint="new")[0]["stage"] == "absent")

        machine.ask("endpoint-remove", name="new")

        assert machine.events() == ["EndpointAdded", "EndpointStage plugged", "EndpointRemoved"]


async def test_an_endpoint_of_the_configuration_leaves_its_place_to_another(tmp_path: Path) -> None:
    async with served(tmp_path) as machine:
        machine.ask("endpoint-remove", name="accel0")

        assert [slot.get("endpoint") for slot in machine.ask("query-slots")] == [None, None, None]
        assert machine.ask("endpoint-add", name="accel0")["bdf"] == "01:00.0"


@pytest.mark.parametrize(
    ("name", "words"), [("flat", "is on bus 00, which has no hot-plug"), ("iommu0", "no endpoint 'iommu0'")]
)
async def test_what_is_in_no_slot_stays(tmp_path: Path, name: str, words: str) -> None:
    async with served(tmp_path) as machine:
        before = machine.state()

        with pytest.raises(Refused, match=words):
            machine.ask("endpoint-remove", name=name)

        assert machine.state() == before


async def test_a_configuration_without_slots_gives_nothing_away(tmp_path: Path) -> None:
    async with served(tmp_path, msgspec.structs.replace(CONFIG, slots=())) as machine:
        slots = machine.ask("query-slots")

        with pytest.raises(Refused, match="accel0: is in no slot"):
            machine.ask("endpoint-remove", name="accel0")

    assert slots == []


async def test_every_slot_is_filled_and_no_more(tmp_path: Path) -> None:
    async with served(tmp_path) as machine:
        assert [machine.ask("endpoint-add", name=f"new{n}")["bdf"] for n in range(2)] == ["02:00.0", "03:00.0"]

        with pytest.raises(Refused, match="all 3 slots are taken"):
            machine.ask("endpoint-add", name="new2")


async def test_a_stranger_is_turned_away_from_the_new_socket(tmp_path: Path) -> None:
    async with served(tmp_path) as machine:
        path = machine.ask("endpoint-add", name="new")["path"]
        async with connected(str(machine.app.servers["accel0"].path)):
            stranger = await asyncio.create_subprocess_exec(sys.executable, "-c", CONNECT, path)
            assert await asyncio.wait_for(stranger.wait(), 20) == 0

        assert machine.app.servers["new"].refused == 1


async def test_an_endpoint_that_comes_while_the_vm_is_stopped_is_frozen_until_it_runs(tmp_path: Path) -> None:
    async with served(tmp_path) as machine:
        machine.ask("freeze")
        machine.ask("endpoint-add", name="new")
        door = machine.app.machine.units["iommu0"].doors["new"]
        stopped = door.frozen

        machine.ask("thaw")

        assert (stopped, door.frozen) == (True, False)


async def test_a_trace_that_is_on_hears_of_the_new_endpoint_and_knows_its_name(tmp_path: Path) -> None:
    async with served(tmp_path) as machine:
        machine.ask("trace-start")
        path = machine.ask("endpoint-add", name="new")["path"]
        async with connected(path) as client:
            await client.reset()
        await until(lambda: machine.app.servers["new"].connection is None)

        records = machine.ask("query-trace", endpoints=["new"])["newest"]

        kinds = [record["type"] for record in records if record["kind"] != "trace"]
        assert kinds == ["ADDED", "CONNECT", "STAGE", "RESET", "RESET", "HANGUP"]
        assert {record["endpoint"] for record in records if record["kind"] != "trace"} == {"02:00.0"}


async def test_the_scheduler_forgets_the_worker(tmp_path: Path) -> None:
    async with served(tmp_path) as machine:
        machine.ask("endpoint-add", name="new")
        worker = machine.app.machine.units["iommu0"].endpoints["new"]
        machine.app.scheduler.pause()
        machine.app.scheduler.wake(worker)
        machine.app.scheduler.wake_at(worker, 1 << 62)

        machine.ask("endpoint-remove", name="new")

        described = machine.ask("query-status")["scheduler"]
        machine.app.scheduler.resume()
        assert "new" not in [*described["active"], *described["timers"]]


async def test_an_added_endpoint_counts_for_the_machine_reset_of_a_unit_over_vhost_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path) as machine:
        resets: list[bool] = []
        carrier = machine.app.machine.units["iommu1"].function
        monkeypatch.setattr(carrier, "function_was_reset", lambda: resets.append(True))
        path = machine.ask("endpoint-add", name="new", bdf="03:00.0")["path"]
        async with connected(path) as client:
            await client.reset()

        assert resets == [True]


async def test_an_app_that_stops_takes_the_sockets_of_added_endpoints_along(tmp_path: Path) -> None:
    async with served(tmp_path) as machine:
        machine.ask("endpoint-add", name="new")
        before = machine.state()["files"]

    assert "new.sock" in before
    assert list((tmp_path / "run").glob("*.sock")) == []


@pytest.mark.parametrize("command", ["query-endpoints", "query-groups"])
async def test_a_unit_that_is_not_there_is_named(tmp_path: Path, command: str) -> None:
    async with served(tmp_path) as machine:
        with pytest.raises(Refused, match=r"there is no unit 'x' \(there are: iommu0, iommu1\)"):
            machine.ask(command, unit="x")
