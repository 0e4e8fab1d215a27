"""QEMU and vdev as the hot-plug flow sees them, played by one object."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from qmp_bridge.hot_plug import HotPlug
from vdev.config import parse_bdf
from vdev.errors import VdevError

FREE = ["02:00.0", "03:00.0"]


class Refused(VdevError):
    """A refusal of QEMU or vdev."""

    error_class = "GenericError"


class Gone(VdevError):
    """Nobody answers."""


class Machine:
    """QEMU and vdev at once. `refuse` makes a command fail, `hold` makes it wait for `release`."""

    def __init__(self) -> None:
        self.flow = HotPlug(self.qemu, self.vdev)
        self.commands: list[str] = []
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.refuse: dict[str, VdevError] = {}
        self.held: dict[str, asyncio.Event] = {}
        self.reaches = "enumerated"  # how far the guest gets by itself
        self.ejects = True  # the guest gives devices back
        self.moved = 0  # buses the guest numbers on
        self.lingers = 0  # looks at an endpoint before QEMU's connection has ended

    async def _answer(self, name: str) -> None:
        self.commands.append(name)
        if name in self.held:
            await self.held[name].wait()
        await asyncio.sleep(0)
        if name in self.refuse:
            raise self.refuse[name]

    async def vdev(self, name: str, arguments: Mapping[str, object]) -> Any:
        if name == "query-endpoints":
            return [self._look(str(arguments["endpoint"]))]
        if name == "query-slots":
            return [{"bdf": bdf} for bdf in FREE]
        await self._answer(name)
        endpoint = str(arguments["name"])
        if name == "endpoint-remove":
            if self._look(endpoint)["stage"] != "absent":
                raise Refused(f"{endpoint}: QEMU is connected to it")
            del self.endpoints[endpoint]
            return {}
        taken = {known["bdf"] for known in self.endpoints.values()}
        free = [bdf for bdf in FREE if bdf not in taken]
        if endpoint in self.endpoints or not free:
            raise Refused(f"'{endpoint}' is there already, or no slot is free")
        self.endpoints[endpoint] = {"endpoint": endpoint, "bdf": free[0], "stage": "absent", "given": dict(arguments)}
        return {"endpoint": endpoint, "bdf": free[0], "port": "p", "path": f"/run/{endpoint}", "until": "enumerated"}

    def _look(self, name: str) -> dict[str, Any]:
        if name not in self.endpoints:
            raise Refused(f"name: there is no endpoint '{name}'")
        found = self.endpoints[name]
        if name not in self.devices and found["stage"] != "absent":
            self.lingers -= 1
            if self.lingers < 0:
                found["stage"] = "absent"
        return dict(found)

    async def qemu(self, name: str, arguments: Mapping[str, object]) -> Any:
        await self._answer(name)
        if name == "device_add":
            self.devices[str(arguments["id"])] = dict(arguments)
            self.reach(str(arguments["id"]), "plugged")
            if self.reaches != "plugged":
                self.reach(str(arguments["id"]), self.reaches)
        elif name == "query-pci":
            return [{"devices": [self._pci(device) for device in self.devices]}]
        elif name == "device_del":
            device = str(arguments["id"])
            if device not in self.devices:
                raise Refused(f"Device '{device}' not found")
            if self.ejects:
                self.deleted(device)
        return {}

    def _pci(self, device: str) -> dict[str, Any]:
        bdf = parse_bdf(self.endpoints[device]["bdf"])
        return {"qdev_id": device, "bus": (bdf >> 8) + self.moved, "slot": bdf >> 3 & 31, "function": bdf & 7}

    def reach(self, name: str, stage: str) -> None:
        """The guest gets as far as `stage`, and vdev says so."""
        self.endpoints[name]["stage"] = stage
        self.flow.vdev_event("ENDPOINT_STAGE", {"unit": "iommu0", "id": 512, "endpoint": name, "stage": stage})

    def deleted(self, device: str) -> None:
        """QEMU lets go of a device, and says so before it closes the connection."""
        self.devices.pop(device, None)
        self.flow.qemu_event("DEVICE_DELETED", {"device": device, "path": f"/machine/peripheral/{device}"})

    @property
    def left(self) -> tuple[list[str], list[str]]:
        """What QEMU and what vdev has."""
        return sorted(self.devices), sorted(self.endpoints)
