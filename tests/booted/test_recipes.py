"""The recipes in docs/recipes that need nothing but vdev's own parts, run as they are in the documentation."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from guest_tests.report import Run
from qmp_bridge.plan import Options, find_parts
from tests.booted.conftest import CONFIG, CONFIGS, GuestRun
from tests.support.launchers import channel_arguments, launch
from vdev.config import load_config

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"


@pytest.mark.parametrize("config", [CONFIG, CONFIGS / "on-root-bus.yaml"], ids=lambda path: path.stem)
def test_a_persons_own_script_boots_a_guest_that_passes_every_check(config: Path, tmp_path: Path) -> None:
    loaded = load_config(config)
    parts = find_parts(loaded, Options())
    rundir, channel = tmp_path / "run", tmp_path / "channel.sock"
    environ = {
        **os.environ, **parts.env, "VDEV": f"{sys.executable} -m vdev", "QEMU": " ".join(parts.qemu),
        "RUNDIR": str(rundir), "APPEND": "vdev.payload=all",
    }  # fmt: skip
    command = [str(RECIPES / "own-script.sh"), str(config), str(parts.kernel), str(parts.initrd)]

    launched = asyncio.run(launch([*command, *channel_arguments(channel)], channel, environ))

    assert launched.passed(len(GuestRun(loaded, Run()).checks)), str(launched)
    assert launched.status == 0, str(launched)
    assert '"ready":true' in launched.output
    assert not rundir.exists()
