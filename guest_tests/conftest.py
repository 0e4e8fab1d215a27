"""One booted guest for all tests of this directory: it runs every check once, the tests look at what came of it."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guest_tests import report
from guest_tests.boot import boot
from guest_tests.report import Run
from qmp_bridge.plan import Options
from vdev.config import Config, load_config, parse_bdf

CONFIG = Path(__file__).parent.parent / "configs" / "first-light.yaml"
DEFAULT_KERNEL = "cloud"
# More kernels, with commas between: flavours or paths. `VDEV_GUEST_KERNELS=cloud-backports pytest guest_tests`
KERNELS = [DEFAULT_KERNEL, *(name for name in os.environ.get("VDEV_GUEST_KERNELS", "").split(",") if name)]


@dataclass(frozen=True)
class FirstLight:
    """A run that reached the guest's `done`, and the configuration it ran on."""

    config: Config
    run: Run

    @property
    def endpoint(self) -> int:
        """The accelerator's number at the IOMMU: its address, from the configuration."""
        return parse_bdf(self.config.endpoints[0].bdf)

    def data(self, check: str) -> dict[str, Any]:
        """The facts one check found."""
        data = self.run.record(check)["data"]
        assert isinstance(data, dict)
        return data


@pytest.fixture(scope="session", params=dict.fromkeys(KERNELS))
def first_light(request: pytest.FixtureRequest) -> FirstLight:
    """Boots once per kernel. A guest that does not come to `done` fails every test, with all that is known."""
    config = load_config(CONFIG)
    options = Options(kernel=request.param, config_path=CONFIG)
    run = asyncio.run(boot(config, options, lambda message, faults: None))
    if run.done is None:
        pytest.fail("\n".join(report.failure(run, nconsole=40, nevents=50)), pytrace=False)
    return FirstLight(config, run)
