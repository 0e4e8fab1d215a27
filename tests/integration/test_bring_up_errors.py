"""The launcher against a stand-in QEMU and a stand-in backend: whatever goes wrong, it says so and nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qmp_bridge.__main__ import main
from qmp_bridge.errors import VmDied
from qmp_bridge.plan import Options, Parts
from qmp_bridge.run_directory import PREFIX
from qmp_bridge.up import RunningVm, bring_up
from vdev.config import Config, parse_config
from vdev.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent
FAKES = ROOT / "tests" / "support"
TEXT = """
vm: {name: test, boot_timeout: 1.5}
units: [{name: iommu0, bdf: 00:10.0}]
endpoints: [{name: accel0, bdf: 01:00.0}]
"""


@pytest.fixture(autouse=True)
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of this test's own, short enough for sockets."""
    base = tmp_path / "run"
    base.mkdir()
    short = Path(f"/tmp/v{os.getpid()}-{time.monotonic_ns() % 10**9}")
    short.symlink_to(base)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    yield base
    short.unlink()


@pytest.fixture
def config() -> Config:
    return parse_config(TEXT, "test.yaml")


def options(qemu: str = "silent", backend: str = "serve", **more: Any) -> Options:
    parts = Parts(
        qemu=(sys.executable, str(FAKES / "fake_qemu.py"), qemu),
        env={},
        version="10.2.0",
        kernel="/nowhere/vmlinuz",
        initrd=None,
        accel="tcg",
    )
    return Options(parts=parts, backend=(sys.executable, str(FAKES / "fake_backend.py"), backend), **more)


def children() -> list[int]:
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in path.read_text().split()]


async def all_messages(vm: RunningVm) -> list[dict[str, Any]]:
    return [message async for message in vm.messages()]


async def death(config: Config, chosen: Options) -> VmDied:
    """How a VM ends whose block waits for what never comes."""

    async def run() -> None:
        async with bring_up(config, chosen) as vm:
            await all_messages(vm)
            await asyncio.sleep(30)

    with pytest.raises(VmDied) as caught:
        await run()
    return caught.value


def assert_nothing_is_left(runtime_dir: Path) -> None:
    assert children() == []
    assert list(runtime_dir.glob(f"{PREFIX}*")) == []


async def test_a_vm_that_says_done_is_no_failure(config: Config, runtime_dir: Path, tmp_path: Path) -> None:
    async with bring_up(config, options("done")) as vm:
        messages = await all_messages(vm)
        await vm.send({"bye": True})
        status = await vm.wait_exit()
    assert [*messages[0], *messages[-1]] == ["hello", "done", "ok", "checks", "passed"]
    assert status == 0
    assert not (tmp_path / "logs").exists()
    assert_nothing_is_left(runtime_dir)


async def test_the_block_may_end_before_the_guest_does(config: Config, runtime_dir: Path) -> None:
    async with bring_up(config, options()) as vm:
        assert vm.control_path.endswith("/control.sock")
        assert await vm.qmp.execute("query-status") == {"status": "running", "running": True}
    assert_nothing_is_left(runtime_dir)


async def test_a_qemu_that_ignores_everything_is_killed(config: Config, runtime_dir: Path) -> None:
    async with bring_up(config, options("deaf")):
        pass
    assert_nothing_is_left(runtime_dir)


async def test_a_qemu_that_refuses_its_arguments_is_quoted(config: Config, runtime_dir: Path) -> None:
    died = await death(config, options("refuse"))
    assert "status 1" in died.reason
    assert "not a valid device model" in died.reason
    assert_nothing_is_left(runtime_dir)


async def test_a_qemu_that_fails_after_it_made_its_sockets_is_quoted(config: Config, runtime_dir: Path) -> None:
    died = await death(config, options("stillborn"))
    assert "Connection refused" in died.reason
    assert_nothing_is_left(runtime_dir)


async def test_a_missing_qemu_is_a_death_not_a_traceback(config: Config, runtime_dir: Path) -> None:
    parts = Parts(qemu=("/nowhere/qemu",), env={}, version="11", kernel="k", initrd=None, accel="tcg")
    died = await death(config, Options(parts=parts, backend=options().backend))
    assert "QEMU cannot be started" in died.reason
    assert_nothing_is_left(runtime_dir)


async def test_a_crash_keeps_the_console_and_the_logs(config: Config, runtime_dir: Path, tmp_path: Path) -> None:
    died = await death(config, options("crash"))
    assert "QEMU was ended by SIGABRT before the guest's payload was done" in died.reason.replace(" (", " ").rstrip(")")
    assert died.tail[-1] == "last words of the console"
    assert died.logs is not None
    assert died.logs.parent == Path("logs")
    assert died.logs.name.startswith("test-")
    assert {"backend.log", "qemu.stderr", "qmp.log", "commands.txt"} <= {path.name for path in died.logs.iterdir()}
    assert "query-pci" in (died.logs / "qmp.log").read_text()
    assert_nothing_is_left(runtime_dir)


async def test_a_dead_backend_takes_qemu_with_it_and_is_named(config: Config, runtime_dir: Path) -> None:
    died = await death(config, options(backend="die"))
    assert died.reason.startswith("the backend was ended by SIGKILL; QEMU was stopped at once")
    assert "the backend's last words" in died.reason
    assert_nothing_is_left(runtime_dir)


async def test_a_backend_that_refuses_its_input_is_a_config_error(config: Config, runtime_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"endpoints\[0\].model: there is no model 'toaster'"):
        async with bring_up(config, options(backend="refuse")):
            pass
    assert_nothing_is_left(runtime_dir)


@pytest.mark.parametrize(
    ("part", "words"),
    [("early", "before it listened"), ("garbage", "not its readiness"), ("elsewhere", "QEMU expects it at")],
)
async def test_a_backend_that_does_not_come_up_is_quoted(
    config: Config, runtime_dir: Path, part: str, words: str
) -> None:
    died = await death(config, options(backend=part))
    assert words in died.reason
    assert_nothing_is_left(runtime_dir)


async def test_a_silent_guest_is_a_failure_after_the_boot_timeout(config: Config, runtime_dir: Path) -> None:
    died = await death(config, options("silent"))
    assert "did not report within" in died.reason
    assert "vm.boot_timeout" in died.reason
    assert_nothing_is_left(runtime_dir)


async def test_a_vm_that_lives_too_long_is_ended(config: Config, runtime_dir: Path) -> None:
    died = await death(config, options("silent", payload=None, timeout=0.3))
    assert "not done within" in died.reason
    assert_nothing_is_left(runtime_dir)


async def test_a_payload_that_babbles_ends_the_vm(config: Config, runtime_dir: Path) -> None:
    died = await death(config, options("babble"))
    assert "not JSON" in died.reason
    assert_nothing_is_left(runtime_dir)


async def test_bus_numbers_that_are_not_the_configured_ones_fail_loudly(config: Config, runtime_dir: Path) -> None:
    died = await death(config, options("wrong-bus", payload=None))
    assert "accel0 should be 01:00.0 and is 02:00.0" in died.reason
    assert_nothing_is_left(runtime_dir)


async def test_an_error_of_the_block_comes_out_unwrapped(config: Config, runtime_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with bring_up(config, options()):
            _ = 1 // 0
    assert len(list((tmp_path / "logs").iterdir())) == 1
    assert_nothing_is_left(runtime_dir)


async def test_a_cancelled_block_leaves_nothing(config: Config, runtime_dir: Path) -> None:
    up = asyncio.Event()

    async def run() -> None:
        async with bring_up(config, options()):
            up.set()
            await asyncio.sleep(30)

    task = asyncio.create_task(run())
    await up.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert_nothing_is_left(runtime_dir)


CLI = """
import sys, time
from pathlib import Path
import qmp_bridge.__main__ as cli
from qmp_bridge.plan import Parts
cli.find_parts = lambda *_: time.sleep({fetching})
import qmp_bridge.up
qmp_bridge.up.find_parts = lambda *_: Parts(
    (sys.executable, {qemu!r}, {part!r}), {{}}, "10.2.0", "/nowhere/vmlinuz", None, "tcg", "as told")
import dataclasses
options = cli._options
cli._options = lambda *a: dataclasses.replace(options(*a), backend=(sys.executable, {backend!r}, "serve"))
sys.exit(cli.main(sys.argv[1:]))
"""


def command_line(
    part: str, tmp_path: Path, *arguments: str, text: str = TEXT, fetching: float = 0
) -> subprocess.Popen[str]:
    script = CLI.format(
        qemu=str(FAKES / "fake_qemu.py"), backend=str(FAKES / "fake_backend.py"), part=part, fetching=fetching
    )
    (tmp_path / "test.yaml").write_text(text)
    command = [sys.executable, "-c", script, "up", str(tmp_path / "test.yaml"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_everything_down(number: int, runtime_dir: Path, tmp_path: Path) -> None:
    process = command_line("silent", tmp_path, "--payload", "none")
    assert process.stdout is not None
    process.stdout.readline()  # the console is followed: the VM runs
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert f"stopped by {signal.Signals(number).name}" in said
    assert list(runtime_dir.glob(f"{PREFIX}*")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_parts_are_fetched_is_heard_at_once(number: int, runtime_dir: Path, tmp_path: Path) -> None:
    process = command_line("silent", tmp_path, text=TEXT.replace("00:10.0}", "00:10.0, reserved: []}"), fetching=60)
    assert process.stderr is not None
    process.stderr.readline()  # the warning: parts are next
    time.sleep(0.2)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert said == f"stopped by {signal.Signals(number).name}\n"
    assert list(runtime_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("part", "status", "words"),
    [
        ("done", 0, "guest: done, 1 of 1 checks passed"),
        ("failed-check", 1, "the guest's payload reports failure"),
        ("crash", 1, "console: last words of the console"),
    ],
)
def test_the_exit_status_is_the_guests_verdict(
    part: str, status: int, words: str, runtime_dir: Path, tmp_path: Path
) -> None:
    process = command_line(part, tmp_path)
    _, said = process.communicate(timeout=20)
    assert process.returncode == status, said
    assert words in said
    assert "Traceback" not in said, said


@pytest.mark.parametrize("isolation", ["required", "preferred", "off"])
def test_the_policy_is_told_at_each_start(isolation: str, runtime_dir: Path, tmp_path: Path) -> None:
    process = command_line("done", tmp_path, text=TEXT.replace("vm: {", f"vm: {{isolation: {isolation}, "))
    _, said = process.communicate(timeout=20)
    assert f"qmp-bridge: isolation: {isolation}: " in said


UNIT = "units: [{name: iommu0}]"
REFUSED = {
    "": "x.yaml: the file: is empty",
    "- a": "x.yaml: the file: this is a list, not keys with values (keys here: vm, sockets, units, endpoints, slots, ",
    "vm: {name: [": "x.yaml: the file: not valid YAML at line 1",
    "vm: {}": "x.yaml: units: this key is missing",
    f"{UNIT}\n{UNIT}": "x.yaml: units: given twice, in lines 1 and 2",
    f"{UNIT}\n1: 2": "x.yaml: 1: the key in line 2 is not a word",
    f"{UNIT}\nvm: {{memory: 16M}}": "x.yaml: vm.memory: 16M is not a whole number of MiB from 128M",
    f"{UNIT}\nfaults: {{rules: 3}}": "x.yaml: faults.rules: 3 is a whole number, not a list",
    f"{UNIT}\nvm: {{kernel: /nowhere/bzImage}}": "vm.kernel: /nowhere/bzImage does not exist",
    f"{UNIT}\nvm: {{initrd: /nowhere/initrd}}": "vm.initrd: /nowhere/initrd is not a file",
    f"{UNIT}\nvm: {{qemu: /nowhere/qemu}}": "vm.qemu: /nowhere/qemu is not a program",
    f"{UNIT}\nvm: {{qemu: /bin/true}}": "vm.qemu: /bin/true: does not run",
    f"{UNIT}\nvm: {{extra_args: [-mem-path, /tmp]}}": "x.yaml: vm.extra_args[0]: -mem-path is decided by vdev",
    "units: [{name: iommu0, bdf: 01:00.0}]": "x.yaml: units[iommu0].bdf: 01:00.0 is not on bus 00",
    "units: [{name: iommu0, granule: 3000}]": "x.yaml: units[iommu0].granule: 3000 is not a power of two",
    "units: [{name: iommu0, probe_size: 8}]": "x.yaml: units[iommu0].probe_size: 8 cannot hold",
    "units: [{name: iommu0, mode: loose}]": "x.yaml: units[iommu0].mode: 'loose' is not a possible value (one of",
    f"{UNIT}\nendpoints: [{{name: e0, bdf: 00:1f.0}}]": "x.yaml: endpoints[e0].bdf: 00:1f.0: this slot is the chips",
    f"{UNIT}\nendpoints: [{{name: e0}}, {{name: e1}}]": "x.yaml: endpoints[e1].bdf: 01:00.0 is already the address",
    f"{UNIT}\nendpoints: [{{name: e0, unit: iommu1}}]": "x.yaml: endpoints[e0].unit: there is no unit 'iommu1'",
    f"{UNIT}\nendpoints: [{{bdf: 01:00.0}}]": "x.yaml: endpoints[0].name: this key is missing",
    f"{UNIT}\nendpoints: [{{name: e0, options: {{a: [1]}}}}]": "x.yaml: endpoints[e0].options.a: this is a list",
}


@pytest.mark.parametrize(("text", "words"), REFUSED.items(), ids=range(len(REFUSED)))
def test_wrong_input_is_named_with_its_cure_and_status_2(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert main(["up", str(path), "--accel", "tcg"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"qmp-bridge: {words}")
    assert len(said.splitlines()) <= 2


async def test_a_rule_that_the_backend_refuses_is_a_config_error_of_its_file(runtime_dir: Path) -> None:
    config = parse_config(TEXT + "faults: {rules: [{id: bad, at: request, do: nothing}]}", "test.yaml")
    chosen = replace(options(), backend=(sys.executable, "-m", "vdev"))

    with pytest.raises(ConfigError) as caught:
        async with bring_up(config, chosen):
            pass

    assert str(caught.value).startswith("config: faults.rules[bad].do: 'nothing' is no action at the point request")


def test_a_plan_that_is_none_is_refused_before_anything_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text(UNIT)
    (tmp_path / "plan.yaml").write_text("rules: 3")

    assert main(["up", str(tmp_path / "x.yaml"), "--faults", str(tmp_path / "plan.yaml")]) == 2
    assert capsys.readouterr().err.startswith("qmp-bridge: plan.yaml: rules: 3 is a whole number, not a list")


def test_extra_arguments_qemu_does_not_take_are_wrong_input(runtime_dir: Path, tmp_path: Path) -> None:
    process = command_line("refuse", tmp_path, text=TEXT.replace("vm: {", "vm: {extra_args: [-nonsense], "))
    _, said = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "vm.extra_args: QEMU exited with status 1" in said
    assert list(runtime_dir.glob(f"{PREFIX}*")) == []


def test_a_wrong_configuration_is_one_line_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("units: [{name: iommu0, granul: 4K}]")
    command = [sys.executable, "-m", "qmp_bridge", "up", str(tmp_path / "bad.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert done.stderr == ("qmp-bridge: bad.yaml: units[iommu0].granul: there is no such key (did you mean granule?)\n")
