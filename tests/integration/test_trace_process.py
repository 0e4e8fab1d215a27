"""The trace of a real `vdev serve`: started and stopped while a guest works, followed from another process, on disk."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.serve_guest import Ram, until_true
from tests.support.serve_process import ONE_UNIT, ServeProcess, serving
from tests.support.serve_scene import DOMAIN, MIB, SOURCE_GPA, SOURCE_IOVA, TARGET_IOVA, Scene
from vdev.wire.accelerator import CompletionStatus

WAIT_S = 20.0
TRACED = ONE_UNIT + "trace: {file: %s, max_bytes: 64K}\n"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[ServeProcess]:
    with serving(ONE_UNIT, tmp_path / "run") as running:
        yield running


@contextmanager
def reading(process: ServeProcess, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A `vdev trace` of `process`, killed at the end of the block."""
    command = [sys.executable, "-m", "vdev", "trace", str(process.directory), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as popen:
        try:
            yield popen
        finally:
            popen.kill()


def next_line(popen: subprocess.Popen[str]) -> str:
    assert popen.stdout is not None
    return popen.stdout.readline().rstrip("\n")


async def work(process: ServeProcess) -> list[int]:
    """A guest that attaches, maps, copies, and copies once more where nothing is mapped; the two statuses."""
    async with AsyncExitStack() as stack:
        ram = stack.enter_context(Ram())
        scene = await Scene.enter(stack, process.directory, ram)
        await scene.attach()
        await scene.map_buffers(4096)
        targets = (TARGET_IOVA, TARGET_IOVA + MIB)
        statuses = [(await scene.accel.copy(SOURCE_IOVA, target, 4096)).status for target in targets]
    process.idle()
    return statuses


def kinds(records: list[dict[str, Any]]) -> set[str]:
    return {record["kind"] for record in records}


async def test_a_trace_started_in_mid_run_has_all_kinds_and_stops_when_told(process: ServeProcess) -> None:
    started = process.ask("trace-start")
    statuses = await work(process)
    stopped = process.ask("trace-stop")
    await work(process)
    records = process.ask("query-trace", last=10_000)["newest"]

    assert statuses == [CompletionStatus.OK, CompletionStatus.TRANSLATION_FAULT]
    assert started["recording"]
    assert not stopped["recording"]
    assert len(records) == stopped["records"]
    assert kinds(records) == {
        "request", "fault", "dma", "register", "reset", "irq", "connection", "endpoint", "error", "trace",
    }  # fmt: skip
    assert all(one["t"] <= two["t"] and one["seq"] + 1 == two["seq"] for one, two in itertools.pairwise(records))
    (first,) = [record for record in records if record["kind"] == "fault"]
    assert (first["endpoint"], first["fields"]["iova"]) == ("01:00.0", f"{TARGET_IOVA + MIB:#012x}")


def test_a_stop_of_the_vm_and_its_end_are_one_record_each_in_words(process: ServeProcess) -> None:
    process.ask("trace-start")
    for command in ("freeze", "freeze", "thaw", "thaw"):
        process.ask(command, by="a test")
    records = process.ask("query-trace")["newest"]

    _, *told = [(record["kind"], record["type"], record["fields"]) for record in records]
    assert told == [("run-state", "STOPPED", {"by": "a test"}), ("run-state", "RUNNING", {"by": "a test"})]


async def test_a_reader_in_another_process_sees_requests_with_answers_as_they_come(process: ServeProcess) -> None:
    with reading(process, "--type", "MAP,FAULT", "--last", "0") as reader:
        header = [next_line(reader), next_line(reader)]
        followed = process.ask("query-trace")["followers"]
        await work(process)
        lines = [next_line(reader) for _ in range(4)]
        reader.send_signal(signal.SIGINT)
        _, said = reader.communicate(timeout=WAIT_S)

    assert header[1] == "# iommu0 is 00:10.0, accel0 is 01:00.0 behind iommu0"
    assert followed == 1
    assert [line.split()[2] for line in lines] == ["MAP", "MAP", "MAP", "FAULT"]
    assert (
        f"domain {DOMAIN} {SOURCE_IOVA:#012x}..{SOURCE_IOVA + 4095:#012x}    4K -> {SOURCE_GPA:#012x} r--" in lines[1]
    )
    assert lines[1].split()[-2:][1] == "us"
    assert "01:00.0 (accel0) write" in lines[3]
    assert (reader.returncode, said) == (0, "")


async def test_the_last_reader_switches_the_trace_off_again(process: ServeProcess) -> None:
    with reading(process) as reader:
        next_line(reader)
        during = process.ask("query-trace")["followers"]
    await until_true(lambda: not process.ask("query-trace")["followers"])
    await work(process)

    assert during == 1
    assert process.ask("query-trace", last=100)["newest"] == []


def test_a_reader_whose_own_reader_has_gone_ends_quietly(process: ServeProcess) -> None:
    with reading(process) as reader:
        next_line(reader)
        assert reader.stdout is not None
        reader.stdout.close()
        process.ask("trace-start")
        process.ask("trace-note", text="somebody there?")
        process.ask("trace-note", text="nobody")
        assert reader.wait(WAIT_S) == 0
        assert reader.stderr is not None
        assert reader.stderr.read() == ""


def test_a_reader_ends_with_the_backend(process: ServeProcess) -> None:
    with reading(process) as reader:
        next_line(reader)
        assert process.terminate() == 0
        reader.communicate(timeout=WAIT_S)

    assert reader.returncode == 0


def test_wrong_words_are_refused_live_as_for_a_file(process: ServeProcess) -> None:
    with reading(process, "--endpoint", "accel9") as reader:
        _, said = reader.communicate(timeout=WAIT_S)

    assert reader.returncode == 2
    assert "there is no 'accel9' (known: iommu0 (00:10.0), accel0 (01:00.0))" in said


async def test_a_configured_file_is_bounded_and_complete_when_the_backend_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "vm.jsonl"
    with serving(TRACED % path, tmp_path / "run") as process:
        for _ in range(8):
            await work(process)
        assert process.terminate() == 0
    older = path.with_name("vm.jsonl.1")

    assert path.stat().st_size + older.stat().st_size <= 64 << 10
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records[0]["vdev_trace"] == 1
    assert records[-1]["type"] == "STOP"


def test_serve_takes_the_trace_from_its_command_line(tmp_path: Path) -> None:
    config, path = tmp_path / "vm.yaml", tmp_path / "there" / "vm.jsonl"
    config.write_text(ONE_UNIT)
    command = [sys.executable, "-m", "vdev", "serve", str(config), "--runtime-dir", str(tmp_path / "run")]

    done = subprocess.run([*command, "--trace", str(path)], capture_output=True, text=True, check=False, timeout=WAIT_S)

    assert done.returncode == 2
    assert f"file: {path} cannot be written: No such file or directory" in done.stderr
