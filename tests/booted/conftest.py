"""Booted guests, one per configuration: each runs every check once, the tests look at what came of it."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guest_tests import report
from guest_tests.boot import boot
from guest_tests.payload.checks import chosen
from guest_tests.report import Run
from qmp_bridge.plan import Options
from vdev.config import Config, EndpointConfig, load_config, override_vm, parse_bdf
from vdev.config.schema import ATTACHMENTS, Attach

CONFIGS = Path(__file__).parents[2] / "configs"
CONFIG = CONFIGS / "first-light.yaml"
DEFAULT_KERNEL = "cloud"
# More kernels, with commas between: flavours or paths. `VDEV_GUEST_KERNELS=cloud-backports pytest tests/booted`
KERNELS = [DEFAULT_KERNEL, *(name for name in os.environ.get("VDEV_GUEST_KERNELS", "").split(",") if name)]


@dataclass(frozen=True)
class GuestRun:
    """A run that reached the guest's `done`, and the configuration it ran on."""

    config: Config
    run: Run

    @property
    def endpoint(self) -> int:
        """The number at the IOMMU of the accelerator the checks use: its address, from the configuration."""
        return min(self.units_by_endpoint)

    def endpoints(self, model: str) -> list[EndpointConfig]:
        """Those of one model, by rising address."""
        found = [endpoint for endpoint in self.config.endpoints if endpoint.model == model]
        return sorted(found, key=lambda endpoint: parse_bdf(endpoint.bdf))

    @property
    def units_by_endpoint(self) -> dict[int, str]:
        """Number of an accelerator -> the unit in front of it."""
        return {parse_bdf(endpoint.bdf): endpoint.unit for endpoint in self.endpoints("accelerator")}

    @property
    def checks(self) -> list[str]:
        """The checks that make sense on this machine."""
        return [check.name for check in chosen([], len(self.endpoints("accelerator")), len(self.endpoints("rng")))]

    def data(self, check: str) -> dict[str, Any]:
        """The facts one check found."""
        data = self.run.record(check)["data"]
        assert isinstance(data, dict)
        return data


def boot_guest(
    path: Path,
    kernel: str = DEFAULT_KERNEL,
    attach: Attach | None = None,
    changes: Mapping[str, object] | None = None,
) -> GuestRun:
    """Boot the configuration at `path`, with `changes` to its `vm`.

    A guest that does not come to `done` fails the test, with all that is known.
    """
    config = override_vm(load_config(path), changes or {})
    # The backend reads the file itself where it is named, without the changes.
    options = Options(kernel=kernel, attach=attach, config_path=None if changes else path)
    run = asyncio.run(boot(config, options, lambda message, faults: None))
    if run.done is None:
        pytest.fail("\n".join(report.failure(run)), pytrace=False)
    return GuestRun(config, run)


def _machine_id(machine: tuple[str, Attach]) -> str:
    kernel, attach = machine
    return attach if kernel == DEFAULT_KERNEL else f"{attach}, {kernel}"


@pytest.fixture(
    scope="session",
    params=[(kernel, attach) for kernel in dict.fromkeys(KERNELS) for attach in ATTACHMENTS],
    ids=_machine_id,
)
def first_light(request: pytest.FixtureRequest) -> GuestRun:
    """The demo's machine, once per kernel and attachment."""
    return _first_light(*request.param)


@functools.cache  # pytest makes a fixture anew for each module that wants the other machine in between
def _first_light(kernel: str, attach: Attach) -> GuestRun:
    return boot_guest(CONFIG, kernel, attach)
