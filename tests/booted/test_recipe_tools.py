"""The recipes in docs/recipes for libvirt, virtme-ng and systemd, run by those tools of Debian's current stable."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from guest_tests.disk_image import MAIN, PAYLOAD, why_not
from guest_tests.report import Run
from qmp_bridge.plan import Options, find_parts
from tests.booted.conftest import CONFIG, CONFIGS, GuestRun
from tests.support.launchers import channel_arguments, launch
from tests.support.recipe_tools import inside, qemu_script, recipe_tools
from tests.support.serve_process import serving
from vdev.config import load_config
from vdev.parts.cache import Cache
from vdev.parts.fetch import GUEST_ARCH, host_arch
from vdev.parts.kernel import find_kernel
from vdev.parts.progress import to_stderr
from vdev.parts.qemu import packaged_qemu

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]  # their packages are fetched in it, too

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"
DOMAIN = RECIPES / "libvirt" / "domain.xml"
UNIT = RECIPES / "systemd" / "vdev@.service"
ON_ROOT_BUS = CONFIGS / "on-root-bus.yaml"
TOOL_S = 60.0


@pytest.fixture(scope="module")
def tree() -> Path:
    if problem := why_not():
        pytest.skip(f"the tools run in a tree of their own: {problem}")
    return recipe_tools(Cache(), to_stderr)


@pytest.fixture
def qemu(tmp_path: Path) -> Path:
    """vdev's own QEMU, which brings its libraries, as one program."""
    found = packaged_qemu(Cache(), to_stderr)
    return qemu_script(tmp_path / "qemu-system-x86_64", found.argv_prefix, found.env)


def run(command: list[str]) -> str:
    """The output of a tool that must be content."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TOOL_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def checks(config: Path) -> int:
    return len(GuestRun(load_config(config), Run()).checks)


def domain(directory: Path, qemu: Path) -> Path:
    """The recipe's domain for this test, changed as README.md says, and nothing else."""
    parts = find_parts(load_config(CONFIG), Options())
    path = directory / "domain.xml"
    text = DOMAIN.read_text().replace("<devices>", f"<devices>\n    <emulator>{qemu}</emulator>")
    for word, value in (
        ("KERNEL", parts.kernel),
        ("INITRD", parts.initrd),
        ("/run/vdev/first-light", directory / "run"),
    ):
        text = text.replace(word, str(value))
    path.write_text(text)
    return path


def test_libvirts_schema_accepts_the_domain(tree: Path, qemu: Path, tmp_path: Path) -> None:
    path = domain(tmp_path, qemu)
    schema = "/usr/share/libvirt/schemas/domain.rng"

    run(inside(tree, {tmp_path: str(tmp_path)}, ["xmllint", "--noout", "--relaxng", schema, str(path)]))


def test_libvirt_starts_the_domain_and_its_guest_passes_every_check(tree: Path, qemu: Path, tmp_path: Path) -> None:
    path = domain(tmp_path, qemu)
    cache = Cache().root
    places = {cache: str(cache), tmp_path: str(tmp_path)}
    command = inside(tree, places, ["virt-qemu-run", "--verbose", str(path)])

    with serving(CONFIG.read_text(), tmp_path / "run") as backend:
        launched = asyncio.run(launch(command, backend.directory / "channel.sock", stays=True))

    assert launched.passed(checks(CONFIG)), str(launched)
    assert launched.status == 0, str(launched)


def test_virtme_ng_boots_the_tree_it_is_in_and_every_check_passes(tree: Path, qemu: Path, tmp_path: Path) -> None:
    if host_arch() != GUEST_ARCH:
        pytest.skip("virtme-ng's guest runs the host's programs, and this host is no x86-64")
    kernel = find_kernel("cloud", to_stderr)
    assert kernel.modules_dir is not None
    channel, cache = tmp_path / "channel.sock", Cache().root
    (tmp_path / "main.py").write_bytes(MAIN)
    places = {cache: str(cache), tmp_path: str(tmp_path)}
    places |= {tmp_path / "main.py": "/payload/main.py", PAYLOAD: "/payload/guest_payload"}
    places |= {kernel.image: f"/boot/vmlinuz-{kernel.version}"}
    places |= {path: f"/usr/lib/modules/{kernel.version}/{path.name}" for path in kernel.modules_dir.iterdir()}
    ours = run([sys.executable, "-m", "vdev", "qemu-args", str(ON_ROOT_BUS), "--runtime-dir", str(tmp_path / "run"),
                "--no-memory"])  # fmt: skip
    vng = ["vng", "--run", kernel.version, "--disable-microvm", "--memory", "512M", "--cpus", "1"]
    vng += ["--append", "no_timer_check vfio_iommu_type1.allow_unsafe_interrupts=1"]
    vng += [f"--qemu-opts={ours.strip()} {shlex.join(channel_arguments(channel))}"]
    vng += ["--qemu", str(qemu), "--disable-kvm"]
    vng += ["--exec", "modprobe -a vfio_iommu_type1 vfio_pci && python3 -B /payload/main.py"]

    with serving(ON_ROOT_BUS.read_text(), tmp_path / "run"):
        launched = asyncio.run(launch(inside(tree, places, vng), channel))

    assert launched.passed(checks(ON_ROOT_BUS)), str(launched)
    assert launched.status == 0, str(launched)


def test_systemd_accepts_the_unit_and_finds_little_exposed(tree: Path, tmp_path: Path) -> None:
    vdev = tmp_path / "vdev"
    vdev.write_text("#!/bin/sh\n")
    vdev.chmod(0o755)
    places = {vdev: "/opt/vdev/bin/vdev", UNIT: f"/units/{UNIT.name}"}

    said = run(inside(tree, places, ["systemd-analyze", "verify", "--man=no", f"/units/{UNIT.name}"]))
    run(inside(tree, places, ["systemd-analyze", "security", "--offline=yes", "--threshold=15", f"/units/{UNIT.name}"]))

    assert said == ""  # it warns of a line it does not know, and is content all the same
