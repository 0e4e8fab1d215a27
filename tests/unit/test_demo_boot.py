"""Booting and showing, with the launcher replaced: what becomes of a VM that dies, of failed checks, of wrong input."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from guest_tests import boot as boot_module
from guest_tests import demo
from guest_tests.boot import Vm, boot
from guest_tests.report import Painter, Run
from qmp_bridge.errors import VmDied
from qmp_bridge.plan import Options
from vdev.config import Config, UnitConfig

CONFIG = Config(units=(UnitConfig(name="iommu0"),))
HELLO = {"hello": 1, "kernel": "6.12", "checks": ["copy"]}
COPY = {"check": "copy", "ok": True, "title": "A copy", "detail": "copied", "ms": 3.5, "data": {}}


class _BootedVm:
    """What `boot` uses of a RunningVm beyond `follow`."""

    async def wait_exit(self) -> int:
        return 0

    def died(self, reason: str) -> VmDied:
        return VmDied(reason, ["console line"])


def _replace_launcher(monkeypatch: pytest.MonkeyPatch, happens: Callable[[Run], None]) -> None:
    @asynccontextmanager
    async def bring_up(config: Config, options: Options) -> AsyncIterator[_BootedVm]:
        try:
            yield _BootedVm()
        except VmDied as error:
            error.logs = Path("logs/kept")
            raise

    async def follow(vm: Vm, run: Run, boot_timeout_s: float, listen: Any, silence_s: float) -> None:
        happens(run)

    monkeypatch.setattr(boot_module, "bring_up", bring_up)
    monkeypatch.setattr(boot_module, "follow", follow)


def _boot() -> Run:
    return asyncio.run(boot(CONFIG, Options(), lambda message, faults: None))


def test_a_run_with_every_check_passed_is_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_well(run: Run) -> None:
        run.hello, run.records, run.done = HELLO, [COPY], {"done": True, "ok": True}

    _replace_launcher(monkeypatch, all_well)

    run = _boot()

    assert run.ok
    assert run.logs == ""


def test_a_failed_check_keeps_the_logs_and_stays_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(run: Run) -> None:
        run.hello, run.records, run.done = HELLO, [{**COPY, "ok": False}], {"done": True, "ok": False}

    _replace_launcher(monkeypatch, fails)

    run = _boot()

    assert not run.ok
    assert run.cause == ""
    assert run.logs == "logs/kept"
    assert run.console == ["console line"]


def test_a_silent_guest_keeps_the_logs_and_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def silence(run: Run) -> None:
        run.cause = "the guest said nothing for 60 s"

    _replace_launcher(monkeypatch, silence)

    run = _boot()

    assert not run.ok
    assert run.cause == "the guest said nothing for 60 s"
    assert run.logs == "logs/kept"


def test_a_vm_that_dies_under_us_is_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(run: Run) -> None:
        run.hello, run.records = HELLO, [COPY]
        raise VmDied("QEMU was ended by SIGSEGV", ["last words"])

    _replace_launcher(monkeypatch, dies)

    run = _boot()

    assert not run.ok
    assert run.cause == "QEMU was ended by SIGSEGV"
    assert run.records == [COPY]
    assert run.console == ["last words"]


def test_a_vm_that_dies_after_done_fails_a_run_that_was_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(run: Run) -> None:
        run.done = {"done": True, "ok": True}
        raise VmDied("the backend exited with status 1")

    _replace_launcher(monkeypatch, dies)

    assert not _boot().ok


def test_the_demo_shows_every_message(capsys: pytest.CaptureFixture[str]) -> None:
    screen = demo.Screen(Painter(False))

    screen.show(HELLO, [])
    screen.show({"starting": "copy", "title": "A copy"}, [])
    screen.show(COPY, [])

    shown = capsys.readouterr().out
    assert "Linux 6.12, 1 checks" in shown
    assert "A copy ...\n" in shown
    assert "ok    3.5 ms  copied" in shown


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (False, 1)])
def test_the_demos_exit_status_is_the_verdict(ok: bool, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(hello=HELLO, records=[{**COPY, "ok": ok}], done={"done": True, "ok": ok})
    monkeypatch.setattr(demo, "demonstrate", lambda arguments, screen: run)

    assert demo.main([]) == status


def test_the_demo_ends_quietly_on_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(arguments: object, screen: object) -> Run:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "demonstrate", interrupted)

    assert demo.main([]) == 130
    assert "stopped" in capsys.readouterr().out


def test_a_missing_configuration_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--config", str(tmp_path / "absent.yaml")]) == 2
    assert "absent.yaml" in capsys.readouterr().err


def test_the_kernel_of_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNEL", "generic")

    assert demo.command_line("x", "About.").parse_args([]).kernel == "generic"
    assert demo.command_line("x", "About.").parse_args(["--kernel", "cloud"]).kernel == "cloud"
