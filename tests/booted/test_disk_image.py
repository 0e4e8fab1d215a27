"""A Debian that boots itself from a disk, by either firmware, with vdev as its IOMMU."""

from __future__ import annotations

import asyncio
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from guest_tests.boot import boot
from guest_tests.disk_image import debian_image, image_part, payload_disk, payload_disk_arguments, why_not
from guest_tests.report import Run
from qmp_bridge.plan import Options
from tests.booted.conftest import CONFIG, GuestRun
from vdev.config import load_config, override_vm
from vdev.parts.cache import Cache
from vdev.parts.progress import to_stderr

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1500)]  # the image is made in it, too

ROOT = Path(__file__).parents[2]
BOOT_S = 240.0  # a boot takes half a minute emulated; other tests may want the same processors
PCI = "/sys/bus/pci"
# A kernel that goes down with an UNMAP put off hangs: docs/stock-linux.md.
SEND_RNG_AWAY = 'cd /sys/bus/virtio/drivers/virtio_rng && for i in virtio*; do echo "$i" > unbind; done'
ACCELERATOR, DISK = "0000:01:00.0", "0000:00:01.1"
# What `make shell` says between two chunks of the console, which may be in the middle of a word.
BETWEEN = re.compile(rb"\x1b\[2m\[vdev\] .*?\x1b\[0m\r\n")
TAIL_NBYTES = 4000


@pytest.fixture(scope="module")
def image() -> Path:
    cache = Cache()
    if cache.current(image_part()) is None and (problem := why_not()):
        pytest.skip(f"no disk image can be made here without root: {problem}")
    return debian_image(cache, to_stderr)


def test_a_debian_disk_booted_by_uefi_passes_every_check(image: Path, tmp_path: Path) -> None:
    """The command is that of docs/bring-your-own.md; the checks come on a second disk."""
    payload = payload_disk(tmp_path / "payload.tar")
    patient = tmp_path / "patient.yaml"
    patient.write_text(CONFIG.read_text().replace("vm:\n", f"vm:\n  boot_timeout: {BOOT_S}\n", 1))
    before = image.stat()
    command = [sys.executable, "-m", "qmp_bridge", "up", str(patient), "--disk", str(image), "--firmware", "ovmf"]
    command += ["--payload", "all", "--timeout", str(BOOT_S), "--logs", str(tmp_path)]
    command += [f"--qemu-arg={argument}" for argument in payload_disk_arguments(payload)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=2 * BOOT_S)

    count = len(GuestRun(load_config(CONFIG), Run()).checks)
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"guest: done, {count} of {count} checks passed" in done.stderr
    assert "login:" in done.stdout or "multi-user.target" in done.stdout  # it was Debian's own init
    assert (image.stat().st_mtime_ns, image.stat().st_size) == (before.st_mtime_ns, before.st_size)


def test_a_disk_with_nothing_to_boot_ends_the_vm_at_once(tmp_path: Path) -> None:
    disk = tmp_path / "empty.img"
    disk.write_bytes(bytes(1 << 20))
    config = override_vm(load_config(CONFIG), {"disk": str(disk)})

    run = asyncio.run(boot(config, Options(config_path=CONFIG, payload=None, logs=tmp_path), lambda *_: None))

    assert run.cause.startswith(f"the firmware finds nothing to boot on {disk}")


class Terminal:
    """A person at `make shell`, over pipes; all that takes longer than BOOT_S fails with the end of the console."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._deadline = time.monotonic() + BOOT_S
        self._seen = b""

    def wait_for(self, words: bytes) -> None:
        """Read until `words` appear after what an earlier call waited for."""
        while words not in (seen := BETWEEN.sub(b"", self._seen)):
            if not self._read():
                self._fail(f"{words!r} did not come")
        self._seen = seen[seen.index(words) + len(words) :]

    def wait_for_end(self) -> int:
        """Read to the end of the output; the command's exit status."""
        while self._read():
            pass
        return self._process.wait()

    def type(self, line: str) -> None:
        """One line, as if typed."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def _read(self) -> bool:
        """Read what there is; whether it was not the end."""
        assert self._process.stdout is not None
        left = self._deadline - time.monotonic()
        if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
            self._fail(f"nothing more within {BOOT_S:.0f} s")
        chunk = os.read(self._process.stdout.fileno(), 65536)
        self._seen += chunk
        return bool(chunk)

    def _fail(self, reason: str) -> NoReturn:
        tail = self._seen[-TAIL_NBYTES:].decode(errors="replace")
        pytest.fail(f"{reason}; the console's end:\n{tail}", pytrace=False)


@pytest.fixture
def terminal(image: Path) -> Iterator[Terminal]:
    """`make shell DISK=image`, with the firmware it takes by default."""
    command = [sys.executable, "-m", "guest_tests.shell"]
    environ = {**os.environ, "DISK": str(image)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield Terminal(process)
        finally:
            process.terminate()  # it takes its QEMU down with it


def test_a_person_logs_in_to_a_debian_disk_booted_by_a_bios(terminal: Terminal) -> None:
    terminal.wait_for(b"debian login: ")
    terminal.type("root")
    terminal.wait_for(b"root@debian")

    # Login may be ready before udev has loaded virtio_iommu; endpoints wait for it. What is awaited is not in what is
    # typed, because the terminal shows that, too.
    terminal.type(f"echo vfio-pci > {PCI}/devices/{ACCELERATOR}/driver_override")
    terminal.type(f"echo {ACCELERATOR} > {PCI}/drivers_probe")  # a group is made when a driver takes the device
    terminal.type(f"until [ -e {PCI}/devices/{ACCELERATOR}/iommu_group ]; do sleep 1; done; echo accel-group''ed")
    terminal.wait_for(b"accel-grouped")
    terminal.type(f"[ -e {PCI}/devices/{DISK}/iommu_group ]; echo disk-has-group=$((! $?)).")
    terminal.wait_for(b"disk-has-group=0.")

    terminal.type(SEND_RNG_AWAY)
    terminal.type("poweroff")
    assert terminal.wait_for_end() == 0
