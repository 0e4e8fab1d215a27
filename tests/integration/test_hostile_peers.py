"""Every act of `tests.support.hostile_peers` against a real `vdev serve`, beside a guest at work in it."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.hostile_peers import ACTS, STORM, Act, Where, whatever_comes
from tests.support.hostile_watch import Watch, served_again, working
from tests.support.serve_process import ATTACKED, serving
from vdev.limited_log import LINES

TARGETS = {Where.CONTROL: "control.sock", Where.VHOST: "iommu2.sock"}  # the others are for accel0
ROOM_NBYTES = 32 << 20
LOGIN_NFDS = 1024  # what a login is given; whoever runs CI may have more


@pytest.fixture(autouse=True)
def _a_logins_fds() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(LOGIN_NFDS, soft), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.name)
async def test_others_keep_working_nothing_leaks_and_the_log_says_it_once(act: Act, tmp_path: Path) -> None:
    with serving(ATTACKED, tmp_path / "run") as process:
        async with working(process) as worker:
            watch = Watch(process.popen.pid, process.log)
            path = process.directory / TARGETS.get(act.where, "accel0.sock")
            copies = worker.copies

            await asyncio.to_thread(act.do, path)

            await worker.more_than(copies)
            await watch.settled()
            assert watch.open_fds() == watch.fds
            assert watch.ram_maps() == watch.maps
            assert watch.grown_nbytes() < ROOM_NBYTES
            _check_log(watch.lines(), act)


def _check_log(lines: list[str], act: Act) -> None:
    """One clear line, or a limited number; nothing unexpected."""
    assert not [line for line in lines if "Traceback" in line or "never retrieved" in line]
    if act.words:
        found = [line for line in lines if act.words in line]
        assert 1 <= len(found) <= LINES, lines
        assert all("pid " in line or "guest RAM" in line or " INFO " in line for line in found)
    else:
        assert [line for line in lines if " INFO " not in line] == []
    assert len(lines) <= 4 * LINES + 1  # connections begun, ended, refused and dropped


@pytest.mark.parametrize("name", ["accel0", "control"])
async def test_out_of_fds_it_waits_and_then_accepts_again(name: str, tmp_path: Path) -> None:
    with serving(ATTACKED, tmp_path / "run") as process:
        async with working(process) as worker:
            watch = Watch(process.popen.pid, process.log)
            pid, (_, hard) = process.popen.pid, resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (sum(watch.fds.values()), hard))
            with ExitStack() as peers:
                for _ in range(4):
                    peers.enter_context(socket.socket(socket.AF_UNIX)).connect(str(process.directory / f"{name}.sock"))
                copies = worker.copies
                await worker.more_than(copies)
                await watch.said(f"{name}: cannot accept: Too many open files")
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
                await served_again(process.directory / f"{name}.sock")

            await watch.settled()
            assert watch.open_fds() == watch.fds
            assert len([line for line in watch.lines() if "cannot accept" in line]) <= LINES


async def test_every_storm_at_once_leaves_the_worker_its_turns(tmp_path: Path) -> None:
    names = ("storm", "many-refusals", "never-reads", "control-storm", "control-never-reads")
    acts = [act for act in ACTS if act.name in names]
    with serving(ATTACKED, tmp_path / "run") as process:
        async with working(process) as worker:
            watch = Watch(process.popen.pid, process.log)
            copies = worker.copies
            sockets = {"storm": "iommu0", "many-refusals": "accel0", "never-reads": "accel0"}
            paths = [process.directory / f"{sockets.get(act.name, 'control')}.sock" for act in acts]
            acting = [asyncio.to_thread(whatever_comes, act, path) for act, path in zip(acts, paths, strict=True)]
            await asyncio.gather(*acting)

            await worker.more_than(copies)
            await watch.settled()
            assert len(acts) == len(names)
            assert watch.open_fds() == watch.fds
            assert len(watch.lines()) < STORM / 10


def test_the_table_names_each_act_once_and_says_what_it_is() -> None:
    assert len({act.name for act in ACTS}) == len(ACTS)
    assert all(act.sentence for act in ACTS)


def test_the_documentation_has_every_act() -> None:
    text = (Path(__file__).parents[2] / "docs" / "hostile-peers.md").read_text()

    assert [act.name for act in ACTS if f"`{act.name}`" not in text] == []
