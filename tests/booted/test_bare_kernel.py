"""Kernels of one's own: a build tree as it is after `make`, and images that come without modules."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from guest_tests import report
from guest_tests.boot import boot
from guest_tests.report import Run
from qmp_bridge.plan import Options
from tests.booted.conftest import CONFIG
from vdev.config import load_config
from vdev.parts.cache import Cache
from vdev.parts.cpio import CpioWriter
from vdev.parts.kernel import TREE_IMAGE, Kernel, find_kernel
from vdev.parts.modules import read_module
from vdev.parts.progress import to_stderr
from vdev.parts.userland import ARCHIVE, guest_userland

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]

CHECKS = ["driver-bound", "own-group", "opens-through-vfio", "copy", "refused-after-unmap", "gives-back"]


@pytest.fixture(scope="module")
def packaged() -> Kernel:
    return find_kernel("cloud", to_stderr, Cache())


def build_tree(tree: Path, packaged: Kernel) -> Path:
    """What `make bzImage modules` leaves in a source tree, made of a packaged kernel: plain modules in their places."""
    assert packaged.modules_dir is not None
    (tree / TREE_IMAGE).parent.mkdir(parents=True)
    shutil.copy(packaged.image, tree / TREE_IMAGE)
    shutil.copy(packaged.modules_dir / "modules.builtin", tree)
    order = []
    for directory in ("drivers/iommu", "drivers/vfio", "drivers/virtio", "drivers/char", "virt/lib"):
        for source in sorted((packaged.modules_dir / "kernel" / directory).rglob("*.ko*")):
            path = source.relative_to(packaged.modules_dir / "kernel")
            target = tree / path.with_name(path.name.split(".ko")[0] + ".ko")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(read_module(source))
            order.append(str(target.relative_to(tree).with_suffix(".o")))
    (tree / "modules.order").write_text("".join(f"{line}\n" for line in order))
    return tree


def boot_kernel(kernel: Path, logs: Path, append: str = "") -> Run:
    options = Options(kernel=str(kernel), append=append, config_path=CONFIG, payload=",".join(CHECKS), logs=logs)
    return asyncio.run(boot(load_config(CONFIG), options, lambda message, faults: None))


def test_a_build_tree_boots_with_the_modules_lying_in_it(packaged: Kernel, tmp_path: Path) -> None:
    run = boot_kernel(build_tree(tmp_path / "linux", packaged), tmp_path / "logs")

    assert run.ok, "\n".join(report.failure(run))
    assert run.hello["kernel"] == packaged.version
    assert [record["check"] for record in run.records] == CHECKS


def test_an_image_without_modules_and_channel_says_on_the_console_what_it_lacks(
    packaged: Kernel, tmp_path: Path
) -> None:
    image = tmp_path / "bzImage"
    shutil.copy(packaged.image, image)

    run = boot_kernel(image, tmp_path / "logs", append="initcall_blacklist=virtio_console_init")

    assert not run.ok
    assert f"the guest cannot run the payload: kernel {packaged.version} lacks what the payload needs" in run.cause
    assert {"vfio_pci", "virtio_console", "virtio_iommu"} <= set(run.cause.replace(",", " ").split())


def test_an_initrd_of_ones_own_is_followed_to_its_end(packaged: Kernel, tmp_path: Path) -> None:
    """The command is that of docs/bring-your-own.md."""
    initrd = tmp_path / "my.cpio"
    with initrd.open("wb") as file, (guest_userland(Cache(), to_stderr) / ARCHIVE).open("rb") as userland:
        shutil.copyfileobj(userland, file)
        overlay = CpioWriter(file)
        overlay.file("init", b"#!/bin/busybox sh\necho an init of my own\n/bin/busybox poweroff -f\n", 0o755)
        overlay.close()
    command = [sys.executable, "-m", "qmp_bridge", "up", str(CONFIG), "--initrd", str(initrd), "--payload", "none"]
    command += ["--kernel", str(packaged.image), "--timeout", "120", "--logs", str(tmp_path)]

    done = subprocess.run(command, cwd=CONFIG.parent.parent, capture_output=True, text=True, timeout=180)

    assert done.returncode == 0, done.stderr
    assert "an init of my own" in done.stdout


def test_a_kernel_that_lacks_only_the_driver_says_so_on_the_channel(packaged: Kernel, tmp_path: Path) -> None:
    tree = build_tree(tmp_path / "linux", packaged)
    with (tree / "modules.builtin").open("a") as listing:
        listing.write("kernel/drivers/iommu/virtio-iommu.ko\n")  # it is not

    run = boot_kernel(tree, tmp_path / "logs")

    assert run.done is not None
    assert str(run.done["reason"]).endswith("built in or as a module: virtio_iommu")
    assert f"cause: the guest cannot run the payload: {run.done['reason']}" in report.failure(run)
