"""What is driven: QEMU's own device, and ours in each mode, granule and attachment, all of ours in one machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from guest_tests.payload.direct import Viommu
from guest_tests.payload.direct.virtio import VirtioPci
from guest_tests.payload.direct.wire import BYPASS_OFFSET, Feature
from guest_tests.payload.guest import endpoint_id
from tests.qtest.machine import QtestMachine, qtest_machine
from tests.support.serve_process import serving
from vdev.config import UnitConfig
from vdev.qemu.machine import vfio_user_function, vhost_user_unit

MODES, GRANULES, ATTACHMENTS = ("compat", "strict"), ("byte", "4k"), ("vfio-user", "vhost-user")
OURS = tuple(f"{mode}-{granule}-{attach}" for attach, mode, granule in product(ATTACHMENTS, MODES, GRANULES))
QEMU = "qemu"
SUBJECTS = (QEMU, *OURS)
QEMU_BDF = "00:04.0"
QEMU_DEVICE = ("-device", f"virtio-iommu-pci,addr={QEMU_BDF[3:]}")
_AWAY = 0x7777  # a domain no test uses
# QEMU's own test accepts neither indirect descriptors nor event indexes.
PLAIN = Feature.INDIRECT_DESC | Feature.EVENT_IDX


@dataclass(frozen=True, slots=True)
class Subject:
    """A device and an endpoint behind it. `transport` is found once; each test opens the device anew."""

    name: str
    machine: QtestMachine
    transport: VirtioPci
    endpoint: int
    boot_bypass: int  # the byte before anybody wrote it

    @classmethod
    def at(cls, name: str, machine: QtestMachine, bdf: str, endpoint: int) -> Subject:
        """The device at `bdf`."""
        transport = VirtioPci(machine.function(bdf))
        return cls(name, machine, transport, endpoint, transport.read_config(BYPASS_OFFSET, 1))

    @property
    def is_qemu(self) -> bool:
        return self.name == QEMU

    @property
    def is_strict(self) -> bool:
        return self.name.startswith("strict")

    @property
    def is_byte_granular(self) -> bool:
        """Whether it takes mappings of single bytes. QEMU's shows 4 KiB and checks nothing."""
        return self.is_qemu or "byte" in self.name

    def open(self, *, features: int | None = None, without: int = 0) -> Viommu:
        """The device after a reset, running, with nothing attached.

        QEMU's device keeps its domains over a reset by the driver (D9), so the endpoint is moved away and detached.
        """
        viommu = Viommu.open(self.transport, self.machine.pool, features=features, without=PLAIN | without)
        viommu.attach(domain=_AWAY, endpoint=self.endpoint)
        viommu.detach(domain=_AWAY, endpoint=self.endpoint)
        return viommu


@contextmanager
def qemus_own(directory: Path) -> Iterator[dict[str, Subject]]:
    """QEMU's virtio-iommu-pci at 00:04.0; the endpoint is the host bridge, 0."""
    with qtest_machine(directory, QEMU_DEVICE) as machine:
        yield {QEMU: Subject.at(QEMU, machine, QEMU_BDF, 0)}


@contextmanager
def ours(directory: Path) -> Iterator[dict[str, Subject]]:
    """Our units, served by a `vdev serve`; each has an endpoint, which only the configuration knows."""
    with serving(configuration(), directory / "vdev") as served:
        arguments: list[str] = []
        units = {unit.name: unit for unit in served.config.units}
        for unit in units.values():
            arguments += device(unit, str(served.path(unit.name)))
        with qtest_machine(directory, arguments) as machine:
            yield {name: Subject.at(name, machine, units[name].bdf, endpoint_of(name)) for name in OURS}


def configuration() -> str:
    """The YAML of all of ours."""
    units, endpoints = [], []
    for number, name in enumerate(OURS):
        mode, granule, attach = name.split("-", 2)
        size = {"byte": 1, "4k": "4K"}[granule]
        unit = {"name": name, "bdf": f"00:{0x10 + number:02x}.0", "mode": mode, "granule": size, "attach": attach}
        units.append(unit)
        endpoints.append({"name": f"e{number}", "unit": name, "bdf": _endpoint_bdf(name)})
    return json.dumps({"vm": {"identity": "unchecked"}, "units": units, "endpoints": endpoints})


def endpoint_of(name: str) -> int:
    """The endpoint behind a unit of ours."""
    return endpoint_id(f"0000:{_endpoint_bdf(name)}")


def _endpoint_bdf(name: str) -> str:
    return f"{1 + OURS.index(name):02x}:00.0"


def device(unit: UnitConfig, path: str) -> list[str]:
    """QEMU's arguments for a unit, as the launcher gives them."""
    if unit.attach == "vhost-user":
        chardev = f"socket,id=vdev.{unit.name},path={path}"
        return ["-chardev", chardev, "-device", json.dumps(vhost_user_unit(unit))]
    return ["-device", vfio_user_function(unit, path.rsplit("/", 1)[0])]
