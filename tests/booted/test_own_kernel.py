"""A kernel somebody built himself, everything in it and no modules: built here, booted, all checks passed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from guest_tests import report
from guest_tests.boot import boot
from guest_tests.own_kernel import BZ_IMAGE, FRAGMENT, own_kernel, without
from guest_tests.payload import __path__ as payload_path
from guest_tests.payload.checks import chosen
from guest_tests.report import Run
from qmp_bridge.plan import Options
from tests.booted.conftest import CONFIG, GuestRun
from vdev.config import load_config
from vdev.parts.kernel import image_version
from vdev.parts.progress import to_stderr

# What the demo says of a bare kernel that lacks an option; docs/own-kernel.md quotes the whole.
LACKS = "lacks what the payload needs, built in or as a module: "
SYMPTOMS = {"VIRTIO_IOMMU": "virtio_iommu", "VFIO_PCI": "vfio_pci", "VIRTIO_CONSOLE": "virtio_console"}
ROOT = Path(__file__).parents[2]
BUILD_S = 4000
DEMO_S = 300
SOAK = os.environ.get("VDEV_TIER") == "soak"

pytestmark = [
    pytest.mark.guest,
    pytest.mark.timeout(BUILD_S),
    pytest.mark.skipif(not SOAK, reason="builds kernels for minutes each: `make soak` does"),
]

# The demo's checks, and what the guest's kernel has loaded before and after them.
PAYLOAD = b"""\
import os, sys
sys.path.insert(0, "/payload")
from guest_payload.checks import chosen
from guest_payload.guest import Channel, KernelLog
from guest_payload.lab import Lab
from guest_payload.main import BYE_TIMEOUT_S, run_all

def loaded():
    return open("/proc/modules").read() if os.path.exists("/proc/modules") else None

channel, checks = Channel(), chosen([], 1)
hello = {"hello": 1, "kernel": os.uname().release, "checks": [check.name for check in checks]}
channel.send({**hello, "modules": loaded(), "shipped": os.listdir("/modules")})
run_all(channel, Lab(KernelLog()), checks)
channel.receive(BYE_TIMEOUT_S)
"""


@pytest.fixture(scope="module")
def tree() -> Path:
    """The built tree; from the cache after the first time."""
    return own_kernel(to_stderr)


def _boot(kernel: Path, logs: Path) -> Run:
    files: dict[str, Path | bytes] = {"main.py": PAYLOAD, "guest_payload": Path(payload_path[0])}
    options = Options(kernel=str(kernel), config_path=CONFIG, payload_files=files, logs=logs)
    return asyncio.run(boot(load_config(CONFIG), options, lambda message, faults: None))


def _make(*words: str) -> tuple[int, str]:
    """Exit status and output of make; nothing it started outlives a time-out."""
    with subprocess.Popen(
        ["make", *words], cwd=ROOT, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=DEMO_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output


@pytest.mark.parametrize("form", [BZ_IMAGE, "."], ids=["bzImage", "build tree"])
@pytest.mark.soak(count=1, seed=0)
def test_every_check_passes_on_a_kernel_without_modules(form: str, tree: Path, tmp_path: Path) -> None:
    run = _boot(tree / form, tmp_path)

    assert run.ok, "\n".join(report.failure(run))
    assert [record["check"] for record in run.records] == [check.name for check in chosen([], 1)]
    assert run.hello["kernel"] == image_version(tree / BZ_IMAGE)
    assert not run.hello["modules"], "modules are loaded"
    assert sorted(run.hello["shipped"]) == ["needed", "order"], "modules came with the initramfs"


@pytest.mark.parametrize("form", [BZ_IMAGE, "."], ids=["bzImage", "build tree"])
@pytest.mark.soak(count=1, seed=0)
def test_the_documented_command_passes(form: str, tree: Path) -> None:
    status, output = _make("demo", f"KERNEL={tree / form}")

    version = image_version(tree / BZ_IMAGE)
    assert status == 0, output
    count = len(GuestRun(load_config(CONFIG), Run()).checks)
    assert f"PASSED: {count} of {count} checks" in output
    assert f"guest kernel {version}" in output


@pytest.mark.parametrize("option", SYMPTOMS)
@pytest.mark.soak(count=1, seed=0)
def test_a_kernel_that_lacks_an_option_fails_with_a_word_that_leads_to_it(option: str, tmp_path: Path) -> None:
    tree = own_kernel(to_stderr, without(FRAGMENT.read_text(), [option]))

    image = tmp_path / "bzImage"  # away from its tree, whose configuration would be looked at before the boot
    shutil.copy(tree / BZ_IMAGE, image)

    run = _boot(image, tmp_path)

    assert not run.ok
    assert LACKS + SYMPTOMS[option] in "\n".join(report.failure(run))
