"""The launcher's pieces that need no process: topology, console, channel, plan, run directory."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

from qmp_bridge import check_topology as topology
from qmp_bridge.channel import MAX_LINE_NBYTES, Channel, parse_message
from qmp_bridge.console import LINE_CHARACTERS, TAIL_LINES, Console
from qmp_bridge.errors import VmDied, the_cause
from qmp_bridge.narrate import narrate
from qmp_bridge.plan import CONFIG_COPY, Options, Parts, make_plan, overridden
from qmp_bridge.run_directory import RunDirectory, runtime_base
from vdev.config import load_config, parse_config
from vdev.errors import ConfigError

TEXT = "{units: [{name: iommu0}], endpoints: [{name: e0, bdf: '01:00.0'}], vm: {append: mine}}"
EXPECTED = {"iommu0": 0x80, "e0": 0x100}


def buses(bus: int | None) -> list[dict[str, Any]]:
    """What query-pci says when the bridge's bus number is `bus`; None: firmware has not been there."""
    device = {"qdev_id": "e0", "bus": bus, "slot": 0, "function": 0}
    bridge: dict[str, Any] = {"devices": [device] if bus is not None else []}
    chipset = {"qdev_id": "", "bus": 0, "slot": 31, "function": 0}
    unit = {"qdev_id": "iommu0", "bus": 0, "slot": 16, "function": 0}
    port = {"qdev_id": "vdev.port1", "bus": 0, "slot": 2, "function": 0, "pci_bridge": bridge}
    return [{"bus": 0, "devices": [chipset, unit, port]}]


class ScriptedQmp(QMPClient):
    """Answers query-pci with one entry of a script after another, the last one for ever."""

    def __init__(self, *answers: int | None) -> None:
        super().__init__("scripted")
        self.answers = list(answers)

    async def execute(self, cmd: str, arguments: object = None, oob: bool = False) -> object:
        return buses(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(topology, "SETTLED_SECONDS", 0.02)


def test_devices_behind_bridges_are_found() -> None:
    assert topology.function_addresses(buses(1)) == {"iommu0": 0x80, "vdev.port1": 0x10, "e0": 0x100}


def test_a_topology_as_configured_has_no_problems() -> None:
    assert topology.topology_problems(topology.function_addresses(buses(1)), EXPECTED) == []


def test_a_missing_and_a_misplaced_function_are_both_named() -> None:
    assert topology.topology_problems({"e0": 0x200}, EXPECTED) == [
        "iommu0 should be 00:10.0 and is not there",
        "e0 should be 01:00.0 and is 02:00.0",
    ]


@pytest.mark.usefixtures("_quick")
async def test_the_firmware_is_given_time_to_number_the_buses() -> None:
    qmp = ScriptedQmp(None, 0, 0xFF, 0xFF, 1)
    await topology.check_topology(qmp, EXPECTED)
    assert qmp.answers == [1]


@pytest.mark.usefixtures("_quick")
async def test_settled_but_wrong_numbers_fail_before_the_time_is_out() -> None:
    with pytest.raises(VmDied, match=r"e0 should be 01:00\.0 and is 02:00\.0"):
        await topology.check_topology(ScriptedQmp(0, 2), EXPECTED, seconds=30)


@pytest.mark.usefixtures("_quick")
async def test_numbers_that_never_come_fail_when_the_time_is_out() -> None:
    with pytest.raises(VmDied, match=r"e0 should be 01:00\.0 and is not there"):
        await topology.check_topology(ScriptedQmp(None), EXPECTED, seconds=0.05)


def test_the_consoles_tail_has_whole_lines_and_the_unfinished_one() -> None:
    console = Console()
    for chunk in (b"one\r\ntw", b"o\r\n", b"login: "):
        console.feed(chunk)
    assert console.tail(2) == ["two", "login: "]
    assert console.tail(0) == []


def test_a_panic_is_found_in_the_console() -> None:
    console = Console()
    assert console.panic() == ""
    console.feed(b"[ 1.0] Kernel panic - not syncing: no init\r\n[ 1.1] Kernel Offset\n")
    assert console.panic() == "Kernel panic - not syncing: no init"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ({"starting": "a", "title": "It copies"}, "It copies ..."),
        ({"check": "a", "ok": False, "detail": "no\x1b[2J", "ms": 1.6}, "  FAILED after 2 ms: no?[2J"),
        ({"done": True, "ok": True, "checks": 3, "passed": 3}, "done, 3 of 3 checks passed"),
        ({"check": "a", "ok": 1}, '{"check": "a", "ok": 1}'),
    ],
)
def test_what_the_payload_says_is_told_in_words(message: dict[str, Any], line: str) -> None:
    assert narrate(message) == line


def test_the_console_forgets_what_is_too_much() -> None:
    console = Console()
    console.feed(b"x\n" * (TAIL_LINES + 5) + b"y" * (LINE_CHARACTERS + 5))
    console.feed(b"y")
    assert len(console.tail(10**6)) == TAIL_LINES + 1
    assert len(console.tail(1)[0]) <= LINE_CHARACTERS


def test_a_follower_gets_every_byte() -> None:
    seen: list[bytes] = []
    Console(seen.append).feed(b"\xff\r\n")
    assert seen == [b"\xff\r\n"]


@pytest.mark.parametrize("line", [b"nonsense", b"[1]", b"1", b"\xff", b'{"a":', b"[" * 100000])
def test_what_is_not_a_json_object_ends_the_vm(line: bytes) -> None:
    with pytest.raises(VmDied, match=r"not JSON|not an object"):
        parse_message(line)


async def over_a_socket(directory: Path, guest: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> Channel:
    """A channel whose guest has done its part and is gone."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await guest(writer)
        writer.close()

    path = directory / "s"
    server = await asyncio.start_unix_server(serve, path)
    channel = Channel()
    try:
        await channel.run(*await asyncio.open_unix_connection(path))
    finally:
        server.close()
    return channel


async def test_messages_arrive_in_order_and_end_with_done(tmp_path: Path) -> None:
    async def guest(writer: asyncio.StreamWriter) -> None:
        for part in (b'{"hello"', b': 1}\n\n{"check": "a"}\n{"done": true, "ok": true}\n{"late": 1}\n'):
            writer.write(part)
            await writer.drain()

    channel = await over_a_socket(tmp_path, guest)
    assert [message async for message in channel.messages()] == [
        {"hello": 1}, {"check": "a"}, {"done": True, "ok": True},
    ]  # fmt: skip
    assert channel.verdict == {"done": True, "ok": True}
    assert [message async for message in channel.messages()] == [{"late": 1}]


async def test_messages_end_without_done_when_the_guest_goes(tmp_path: Path) -> None:
    async def guest(writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"hello": 1}\n')
        await writer.drain()

    channel = await over_a_socket(tmp_path, guest)
    assert [message async for message in channel.messages()] == [{"hello": 1}]
    assert channel.verdict is None
    with pytest.raises(VmDied, match="closed"):
        await channel.send({"anyone": "there"})


async def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    async def guest(writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * (MAX_LINE_NBYTES + 1))
        await writer.drain()

    with pytest.raises(VmDied, match="a line of more than"):
        await over_a_socket(tmp_path, guest)


def plan_of(version: str, **more: Any) -> list[str]:
    parts = Parts(("/q", "-L", "/l"), {"A": "b c"}, version, "/k", "/i", "tcg")
    return make_plan(parse_config(TEXT, "x"), parts, Options(**more), Path("/run/v")).qemu


def test_the_plan_names_the_payload_after_the_users_words() -> None:
    argv = plan_of("10.2.0", append="theirs", payload="open,copy")
    assert argv[argv.index("-append") + 1].endswith(" mine theirs vdev.payload=open,copy")
    assert argv[:3] == ["/q", "-L", "/l"]


def test_no_payload_is_asked_for_when_there_is_none() -> None:
    argv = plan_of("10.2.0", payload=None)
    assert "vdev.payload" not in argv[argv.index("-append") + 1]


def test_qemu_goes_with_its_parent_where_it_can() -> None:
    assert "exit-with-parent=on" in plan_of("11.1.3")
    assert "exit-with-parent=on" not in plan_of("10.2.1")


def test_what_is_shown_is_what_a_shell_takes(tmp_path: Path) -> None:
    config = parse_config(TEXT, "x")
    parts = Parts(("/q",), {"A": "b c"}, "11", "/k", "/i", "tcg")
    plan = make_plan(config, parts, Options(config_path=Path("my config.yaml")), tmp_path)
    shown = plan.shown()
    assert f" '{Path.cwd()}/my config.yaml' --runtime-dir {tmp_path}" in shown
    assert "\nA='b c' /q -name vm " in shown


def test_what_is_shown_runs_as_a_script(tmp_path: Path) -> None:
    config = parse_config(TEXT, "x")
    parts = Parts(("test", "-s"), {"A": "b c"}, "", "/k", "/i", "tcg")
    backend = ("sh", "-c", 'shift 4; echo table > "$1/viot.bin"; echo ready; exec sleep 30', "it's")
    plan = make_plan(config, parts, Options(config_path=Path("x"), backend=backend), tmp_path / "run dir")
    plan = replace(plan, qemu=["test", "-s", plan.paths.viot])
    done = subprocess.run(["sh", "-c", plan.shown()], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(plan.paths.viot).read_text() == "table\n"  # of the backend, whose file it is


def test_the_backends_copy_of_the_configuration_is_the_configuration(tmp_path: Path) -> None:
    config = parse_config(TEXT, "x")
    plan = make_plan(config, Parts(("/q",), {}, "11", "/k", None, "tcg"), Options(), tmp_path)
    plan.write(config, tmp_path)
    assert plan.backend[-3] == str(tmp_path / CONFIG_COPY)
    assert load_config(tmp_path / CONFIG_COPY) == config
    assert json.loads((tmp_path / CONFIG_COPY).read_text())["vm"]["append"] == "mine"


def test_an_overridden_attachment_reaches_qemu_and_the_backend(tmp_path: Path) -> None:
    options = Options(config_path=Path("my config.yaml"), attach="vhost-user")
    config = overridden(parse_config(TEXT, "x"), options)
    plan = make_plan(config, Parts(("/q",), {}, "11", "/k", None, "tcg"), options, tmp_path)
    plan.write(config, tmp_path)

    assert any("vhost-user-test-device-pci" in argument for argument in plan.qemu)
    assert plan.backend[-3] == str(tmp_path / CONFIG_COPY)
    assert {unit.attach for unit in load_config(tmp_path / CONFIG_COPY).units} == {"vhost-user"}


def test_an_attachment_nobody_knows_is_the_users_error() -> None:
    options = Options(attach="vhost-usr")  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="did you mean vhost-user"):
        overridden(parse_config(TEXT, "x"), options)


def test_a_run_directory_is_private_and_goes_with_everything(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.path.stat().st_mode & 0o777 == 0o700
    (run.logs / "x.log").write_text("x")
    run.remove()
    run.remove()
    assert list(tmp_path.iterdir()) == []


def test_logs_of_the_same_second_are_kept_apart(tmp_path: Path) -> None:
    kept = []
    for _ in range(2):
        run = RunDirectory(tmp_path)
        (run.logs / "x.log").write_text("x")
        kept.append(run.keep_logs(tmp_path / "logs", "vm"))
        run.remove()
    assert kept[0] != kept[1]
    assert [(path / "x.log").read_text() for path in kept] == ["x", "x"]


def test_a_run_directory_that_cannot_be_made_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="XDG_RUNTIME_DIR"):
        RunDirectory(tmp_path / "nowhere")


@pytest.mark.parametrize("value", ["", "relative", "/nowhere", "/" + "x" * 80, "/tmp:x"])
def test_a_runtime_base_that_will_not_do_is_passed_over(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    assert runtime_base() == Path("/tmp")


def test_the_vms_death_is_the_cause_of_all_else() -> None:
    death = VmDied("gone")
    group = BaseExceptionGroup("", [OSError(), BaseExceptionGroup("", [death, ValueError()])])
    assert the_cause(group) is death


def test_a_single_error_comes_out_of_its_group() -> None:
    error = ValueError()
    assert the_cause(BaseExceptionGroup("", [BaseExceptionGroup("", [error])])) is error


def test_several_errors_stay_together() -> None:
    group = BaseExceptionGroup("", [ValueError(), OSError()])
    assert the_cause(group) is group


@pytest.mark.parametrize(
    ("trace", "words"),
    [(None, []), ("memory", ["--trace", "memory"]), ("logs", ["--trace", "/run/v/logs/trace.jsonl"])],
)
def test_the_backend_traces_where_it_is_told_to(trace: str | None, words: list[str]) -> None:
    parts = Parts(("/q",), {}, "11", "/k", None, "tcg")
    plan = make_plan(parse_config(TEXT, "x"), parts, Options(trace=trace), Path("/run/v"))

    assert plan.backend[plan.backend.index("/run/v") + 1 :] == words


def test_the_backend_is_told_of_a_fault_plan_by_its_whole_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")
    parts = Parts(("/q",), {}, "11", "/k", None, "tcg")

    plan = make_plan(parse_config(TEXT, "x"), parts, Options(faults=Path("plan.yaml")), Path("/run/v"))

    assert plan.backend[-2:] == ["--faults", "/usr/plan.yaml"]
