"""`vdev serve` as a process: its peers, its end, and several units in it."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.serve_guest import Ram
from tests.support.serve_process import ONE_UNIT, TWO_UNITS, ServeProcess, serving
from tests.support.serve_scene import (
    DOMAIN,
    FILLED_GPA,
    MIB,
    SOURCE_GPA,
    SOURCE_IOVA,
    TARGET_IOVA,
    Scene,
)
from vdev.wire import viommu
from vdev.wire.accelerator import CompletionStatus, Op


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """Serves whatever QEMU comes first, and then its successors: each test's peers end with it."""
    with serving(ONE_UNIT, tmp_path_factory.mktemp("serve") / "run") as running:
        yield running


@contextmanager
def peer(mode: str, process: ServeProcess) -> Iterator[subprocess.Popen[str]]:
    """Another process in front of `process`; killed at the end of the block."""
    command = [sys.executable, "-m", "tests.support.serve_peer", mode, str(process.directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as popen:
        try:
            yield popen
        finally:
            popen.kill()


def word(popen: subprocess.Popen[str]) -> str:
    """The next word the peer says; empty when it ended."""
    assert popen.stdout is not None
    return popen.stdout.readline().strip()


def hold_and_kill(process: ServeProcess) -> tuple[str, list[str]]:
    """A whole QEMU with DMA under way, killed; what it said, and the RAM that was mapped for it."""
    with peer("hold", process) as popen:
        said, maps = word(popen), process.ram_maps()
    process.idle()
    return said, maps


def run_to_its_end(config: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    """A `vdev serve` that is expected to refuse its input."""
    command = [sys.executable, "-m", "vdev", "serve", str(config), "--runtime-dir", str(directory)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)


def test_a_second_qemu_is_refused_while_the_first_lives(process: ServeProcess) -> None:
    with peer("hold", process) as first:
        held = word(first)
        with peer("knock", process) as second:
            answer = word(second)
        connections = process.ask("query-status")["process"]["connections"]
        alive = first.poll() is None
    process.idle()

    assert held == "holding"
    assert answer == "refused"
    assert connections == 2
    assert alive
    assert "is not the QEMU of this VM" in process.log.read_text()


def test_a_killed_qemu_leaves_nothing_behind_and_another_may_come(process: ServeProcess) -> None:
    hold_and_kill(process)  # whatever is opened once in a life is open now
    before = Counter(process.open_fds())

    said, maps = hold_and_kill(process)

    assert said == "holding"
    assert len(maps) == 1, "two functions, one file: one mapping"
    assert process.ram_maps() == []
    assert Counter(process.open_fds()) == before
    unit = process.unit()
    assert (unit["mappings"], unit["domains"]) == (0, [])
    assert not unit["functions"]["accel0"]["running"]
    assert process.ask("query-status")["process"]["ram"] == []


def test_sigterm_ends_with_status_0_and_removes_the_sockets(tmp_path: Path) -> None:
    with serving(ONE_UNIT, tmp_path / "run") as process:
        sockets = sorted(path.name for path in process.directory.glob("*.sock"))
        with peer("hold", process) as popen:
            held = word(popen)
            status = process.terminate()

        assert sockets == ["accel0.sock", "control.sock", "iommu0.sock"]
        assert held == "holding"
        assert status == 0
        assert list(process.directory.glob("*.sock")) == []
        assert "Traceback" not in process.log.read_text()  # though a control client was connected, too


@pytest.mark.parametrize("isolation", ["required", "preferred", "off"])
def test_the_log_and_the_queries_tell_the_policy_from_the_start(isolation: str, tmp_path: Path) -> None:
    with serving(f"vm: {{isolation: {isolation}}}\n{ONE_UNIT.lstrip()}", tmp_path / "run") as process:
        told = process.log.read_text()
        shown = {process.ask("query-status")["isolation"], process.unit()["isolation"]}

    assert f" vdev.app: isolation: {isolation}: " in told
    assert (f"vm.isolation: {isolation}: " in told) == (isolation == "off")
    assert shown == {isolation}


def test_what_only_the_model_can_judge_is_still_wrong_input(tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text(ONE_UNIT + "    options: {devmem: 3K}\n")

    done = run_to_its_end(config, tmp_path / "run")

    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "endpoints[accel0].options.devmem" in line
    assert list(tmp_path.glob("run/*.sock")) == []


@pytest.mark.parametrize("name", ["accel0", "control"])
def test_a_socket_path_that_is_taken_is_wrong_input(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    (directory / f"{name}.sock").touch()
    config = tmp_path / "right.yaml"
    config.write_text(ONE_UNIT)

    done = run_to_its_end(config, directory)

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"{name}.sock exists and is not a socket" in line
    assert [path.name for path in directory.glob("*.sock")] == [f"{name}.sock"]


async def test_two_units_of_one_process_are_strangers(tmp_path: Path) -> None:
    with serving(TWO_UNITS, tmp_path / "run") as process:
        async with AsyncExitStack() as stack:
            ram = stack.enter_context(Ram())
            scenes = [await Scene.enter(stack, process.directory, ram, index) for index in (0, 1)]
            gpas = [(SOURCE_GPA, FILLED_GPA), (SOURCE_GPA + 4096, FILLED_GPA + 4096)]
            for scene, (source, target), content in zip(scenes, gpas, (b"zero", b"one!"), strict=True):
                await scene.attach()
                scene.put(source, content)
                await scene.unit.map(DOMAIN, SOURCE_IOVA, 4096, source)
                await scene.unit.map(DOMAIN, TARGET_IOVA, 4096, target)

            copied = [await scene.accel.copy(SOURCE_IOVA, TARGET_IOVA, 4) for scene in scenes]
            foreign = await scenes[0].unit.attach(DOMAIN, scenes[1].endpoint)
            await scenes[0].unit.virtio_reset()
            after = await scenes[1].accel.copy(SOURCE_IOVA, TARGET_IOVA, 4)

            assert [completion.status for completion in (*copied, after)] == [CompletionStatus.OK] * 3
            assert [scenes[0].get(target, 4) for _, target in gpas] == [b"zero", b"one!"]
            assert foreign == viommu.S_NOENT
            assert (process.unit("iommu0")["mappings"], process.unit("iommu1")["mappings"]) == (0, 3)


async def test_a_fault_is_reported_to_its_own_unit_only(tmp_path: Path) -> None:
    with serving(TWO_UNITS, tmp_path / "run") as process:
        async with AsyncExitStack() as stack:
            ram = stack.enter_context(Ram())
            first, second = [await Scene.enter(stack, process.directory, ram, index) for index in (0, 1)]
            await first.attach()
            await second.attach()

            completion = await second.accel.run(Op.FILL, dst=TARGET_IOVA, nbytes=MIB)

            assert completion.status == CompletionStatus.TRANSLATION_FAULT
            (fault,) = await second.unit.next_faults()
            assert (fault.endpoint, fault.address) == (second.endpoint, TARGET_IOVA)
            assert not first.unit.events.has_used()
            assert process.unit("iommu0")["counters"]["faults"] == {}
            assert process.unit("iommu1")["counters"]["faults"] == {"not-mapped": 1}
