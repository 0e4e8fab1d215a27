"""What becomes of a VM when one of its parts fails, with real parts: who is stopped, what is said, what is kept."""

from __future__ import annotations

import asyncio
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from guest_tests import report
from guest_tests.boot import boot
from guest_tests.payload import __path__ as payload_path
from qmp_bridge.errors import VmDied
from qmp_bridge.plan import Options
from qmp_bridge.up import RunningVm, bring_up
from tests.booted.conftest import CONFIG
from tests.support.patience import heard, patience
from vdev.config import load_config

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

# Opens the device, so that vdev has something to lose, says hello, and hangs.
HANGING_PAYLOAD = b"""\
import sys, time
sys.path.insert(0, "/payload")
from guest_payload.checks import chosen
from guest_payload.guest import Channel, KernelLog
from guest_payload.lab import Lab
from guest_payload.main import run_check

channel, lab = Channel(), Lab(KernelLog())
records = [run_check(check, lab) for check in chosen(["driver-bound", "own-group", "opens-through-vfio"], 1)]
print("the payload hangs from here on", flush=True)
channel.send({"hello": 1, "kernel": "any", "checks": [], "opened": all(record["ok"] for record in records)})
time.sleep(600)
"""
DEATH_S = 10.0
SILENCE_S = 1.0


def _options(logs: Path) -> Options:
    files: dict[str, Path | bytes] = {"main.py": HANGING_PAYLOAD, "guest_payload": Path(payload_path[0])}
    return Options(config_path=CONFIG, payload_files=files, logs=logs, trace="logs")


@dataclass(frozen=True)
class Killed:
    """A VM whose backend was killed, what it died of, and what vain waits for its guest and for a reset said before."""

    vm: RunningVm
    death: VmDied
    silent: str
    reset: str


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    said: list[str] = []
    vms: list[RunningVm] = []
    with pytest.raises(VmDied) as caught:
        asyncio.run(_kill_the_backend(_options(tmp_path_factory.mktemp("killed")), vms, said))
    return Killed(vms[0], caught.value, *said)


async def _reset_in_vain(vm: RunningVm) -> None:
    async with patience(vm, SILENCE_S, "a reboot"):
        await vm.qmp.execute("system_reset")
        await asyncio.sleep(DEATH_S)


async def _kill_the_backend(options: Options, vms: list[RunningVm], said: list[str]) -> None:
    """By its handle, once the guest has used it; VmDied is to end the wait."""
    async with bring_up(load_config(CONFIG), options) as vm:
        vms.append(vm)
        hello = await anext(heard(vm))
        assert hello["opened"]
        await vm.qmp.execute("set-action", {"reboot": "reset"})  # -no-reboot would end QEMU instead
        with pytest.raises(pytest.fail.Exception) as silent:
            await anext(heard(vm, SILENCE_S))
        with pytest.raises(pytest.fail.Exception) as reset:
            await _reset_in_vain(vm)
        said += [str(silent.value), str(reset.value)]
        assert vm._backend is not None
        vm._backend._popen.kill()
        await asyncio.sleep(DEATH_S)


def test_when_the_backend_dies_qemu_is_stopped_before_it_aborts(killed: Killed) -> None:
    death, qemu = killed.death, killed.vm._qemu
    assert "the backend was ended by SIGKILL; QEMU was stopped at once" in death.reason
    assert any("the payload hangs" in line for line in death.tail)
    assert qemu is not None
    assert qemu.exited.result() == -signal.SIGKILL  # ours; its own way would be SIGABRT
    assert death.logs is not None
    assert "abort" not in (death.logs / "qemu.stderr").read_text().lower()
    assert "the payload hangs" in (death.logs / "console.log").read_text()


def test_a_wait_for_a_word_that_does_not_come_shows_the_guest(killed: Killed) -> None:
    assert killed.silent.startswith("1 s were not enough for the guest's next word, the one before was nothing\n")
    assert "the payload hangs from here on" in killed.silent  # the console
    assert "iommu0 has a driver: a kernel has booted so far" in killed.silent
    assert killed.silent.count("RIP=") > 1  # the processor
    assert re.search(r"iommu0 +MAP +domain \d+ 0x.* -> 0x.* rw- +OK +\d+\.\d us", killed.silent)  # the last requests


def test_a_wait_for_a_boot_that_does_not_come_says_that_the_machine_was_reset(killed: Killed) -> None:
    assert re.search(r"QEMU told of [12] resets of the machine since this wait began", killed.reset)
    assert "vdev saw these resets of its units: system" in killed.reset
    assert "iommu0 has no driver: nothing has booted since its last reset" in killed.reset


def test_a_guest_that_hangs_is_reported_with_what_it_last_said(tmp_path: Path) -> None:
    run = asyncio.run(boot(load_config(CONFIG), _options(tmp_path), lambda message, faults: None, SILENCE_S))

    text = "\n".join(report.failure(run))
    assert not run.ok
    assert run.cause == "the guest said nothing for 1 s; its last word was about: hello"
    assert run.cause in text
    assert "the payload hangs from here on" in text  # the console
    assert re.search(r"iommu0 +MAP +domain \d+ 0x.* -> 0x.* rw- +OK +\d+\.\d us", text)  # the last requests
    assert sorted(path.name for path in Path(run.logs).iterdir()) == [
        "backend.log",
        "commands.txt",
        "console.log",
        "qemu.stderr",
        "qmp.log",
        "trace.jsonl",
    ]
