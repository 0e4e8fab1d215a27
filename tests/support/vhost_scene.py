"""A backend whose unit is attached by vhost-user, and a guest for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.vfio_scene import GuestRam
from tests.support.vhost import ATTACH, OK, map_page
from tests.support.vhost_client import Guest, connected
from vdev.app import App
from vdev.config import Config, EndpointConfig, UnitConfig
from vdev.functions.vhost import VhostCarrier
from vdev.transports.vhost_user import VhostUserServer

RAM_NBYTES = 2 << 20
CONFIG = Config(units=(UnitConfig(name="iommu0", attach="vhost-user"),), endpoints=(EndpointConfig(name="accel0"),))


class Scene:
    """A running backend whose unit is attached by vhost-user."""

    def __init__(self, app: App, ram: GuestRam) -> None:
        self.app, self.ram = app, ram
        self.unit = app.machine.units["iommu0"]
        carrier, server = self.unit.function, app.servers["iommu0"]
        assert isinstance(carrier, VhostCarrier)
        assert isinstance(server, VhostUserServer)
        self.carrier, self.server = carrier, server
        self.endpoint = self.unit.endpoints["accel0"]

    @property
    def path(self) -> Path:
        return self.server.path

    @property
    def mappings(self) -> int:
        count = self.unit.engine.describe()["mappings"]
        assert isinstance(count, int)
        return count

    @property
    def frozen(self) -> bool:
        return self.unit.doors["accel0"].frozen

    @asynccontextmanager
    async def guest(self) -> AsyncIterator[Guest]:
        """A guest with a running driver and one mapping."""
        async with connected(self.path, self.ram) as guest:
            await guest.start()
            assert await guest.ask(ATTACH, map_page(1)) == [OK, OK]
            yield guest


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    with GuestRam(RAM_NBYTES) as ram:
        yield ram


@pytest.fixture
async def scene(tmp_path: Path, ram: GuestRam) -> AsyncIterator[Scene]:
    app = App(CONFIG, tmp_path / "run")
    listens = asyncio.Event()
    task = asyncio.create_task(app.run(lambda line: listens.set()))
    try:
        await listens.wait()
        yield Scene(app, ram)
    finally:
        app.stopping.set()
        await task
        app.close()
