"""The socket, who may connect, what ends a connection, and that nothing is left open."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from tests.support import vfio_scene
from tests.support.vfio_client import VfioClient
from tests.support.vfio_scene import PAGE, FakeFunction, GuestRam, Served, eventfds, open_fds, served, until
from vdev.errors import ConfigError, PeerError
from vdev.limited_log import LINES
from vdev.transports import identity
from vdev.transports.identity import VmIdentity
from vdev.transports.listener import Listener
from vdev.transports.vfio_user import VfioUserServer, VmContext
from vdev.wire import vfio_user as wire
from vdev.wire.vfio_user import Command

every_fd_is_closed = vfio_scene.every_fd_is_closed

CONNECT_AND_WAIT = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
print("connected", flush=True)
print(len(s.recv(1)) if sys.argv[2] == "until-eof" else sys.stdin.readline(), flush=True)
"""


async def other_process(path: Path, mode: str = "until-told") -> asyncio.subprocess.Process:
    """Another process that has connected to `path` and stays until it sees the end, or is told."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CONNECT_AND_WAIT, str(path), mode,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"connected\n"
    return process


# The socket


async def test_the_socket_is_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        async with served(tmp_path) as scene:
            socket_mode = stat.S_IMODE(os.lstat(scene.path).st_mode)
            directory_mode = stat.S_IMODE(os.lstat(scene.path.parent).st_mode)
    finally:
        os.umask(old)

    assert (socket_mode, directory_mode) == (0o600, 0o700)
    assert not scene.path.exists()


def test_a_directory_others_can_enter_is_refused_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        Listener(tmp_path / "run" / "s")


def test_a_path_too_long_for_a_socket_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 107"):
        Listener(tmp_path / "run" / ("x" * 108))


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    path = tmp_path / "run" / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    listener = Listener(path)

    assert path.is_socket()
    listener.close()
    listener.close()
    assert not path.exists()


def test_a_socket_somebody_listens_on_is_left_alone_and_not_even_connected_to(tmp_path: Path) -> None:
    first = Listener(tmp_path / "run" / "s")
    with pytest.raises(ConfigError, match="in use"):
        Listener(tmp_path / "run" / "s")
    with pytest.raises(BlockingIOError):
        first.socket.accept()
    first.close()


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run" / "s").write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        Listener(tmp_path / "run" / "s")


def test_a_socket_that_took_our_place_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "run" / "s"
    first = Listener(path)
    path.rename(tmp_path / "run" / "moved")
    second = Listener(path)
    first.close()

    assert path.is_socket()
    second.close()


async def test_a_server_that_is_closed_before_it_serves_leaves_nothing(tmp_path: Path) -> None:
    server = VfioUserServer(FakeFunction(), tmp_path / "run" / "s", VmContext())
    server.listen()
    server.close()

    assert not server.path.exists()


async def test_a_cancelled_server_cleans_up(tmp_path: Path) -> None:
    function = FakeFunction()
    server = VfioUserServer(function, tmp_path / "run" / "s", vm := VmContext())
    server.listen()
    task = asyncio.ensure_future(server.serve())
    client = await VfioClient.connect(server.path)
    await client.negotiate()
    task.cancel()
    await asyncio.wait([task])

    assert function.calls == ["disconnected", "memory"]
    assert not server.path.exists()
    client.close()
    vm.close()


# Who may connect


async def test_a_second_connection_is_refused_and_the_first_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path) as scene:
        first = await scene.negotiated()
        second = await scene.connect()
        await asyncio.wait_for(second.dead.wait(), 5)

        assert second.death == "EOF"
        assert "connected already" in caplog.text
        assert (await first.device_info()).num_regions == 9


async def _refusals(scene: Served, count: int) -> None:
    await until(lambda: scene.server.refused >= count)


async def test_a_thousand_connects_make_a_handful_of_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with served(tmp_path) as scene:
        first = await scene.negotiated()
        with caplog.at_level(logging.INFO):
            for batch in range(250):
                with contextlib.ExitStack() as peers:
                    for _ in range(4):  # what the backlog takes
                        peers.enter_context(socket.socket(socket.AF_UNIX)).connect(str(scene.path))
                    await _refusals(scene, 4 * (batch + 1))

        assert scene.server.describe()["refused-connections"] == 1000
        assert (await first.device_info()).num_regions == 9
        assert len(caplog.records) == LINES
        assert f"fake0: connection refused: pid {os.getpid()} is connected already" in caplog.text
        scene.vm.close()
        assert caplog.messages[-1] == f"fake0: {1000 - LINES} more lines like it: connections refused"


async def test_all_functions_of_a_vm_belong_to_the_process_that_came_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vm = VmContext()
    other_function = FakeFunction()
    other_function.name = "fake1"
    async with served(tmp_path, vm=vm) as first, served(tmp_path, other_function, vm) as second:
        await first.negotiated()
        stranger = await other_process(second.path, "until-eof")
        out, _ = await asyncio.wait_for(stranger.communicate(), 5)
        assert out == b"0\n"
        assert f"pid {stranger.pid} is not the QEMU of this VM, which is pid {os.getpid()}" in caplog.text

        client = await second.negotiated()
        assert (await client.device_info()).num_regions == 9
        assert vm.describe()["connections"] == 2
    vm.close()


async def test_a_new_qemu_may_come_when_the_old_one_has_died(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        old = await other_process(scene.path)
        await until(lambda: scene.vm.identity.pid == old.pid)
        assert scene.vm.describe()["start_time"] == identity.start_time_of(old.pid)
        old.kill()
        await old.wait()

        client = await scene.negotiated()

        assert scene.vm.describe()["pid"] == os.getpid()
        assert (await client.device_info()).num_regions == 9


async def test_an_unchecked_vm_accepts_any_process_of_ours_and_says_so(tmp_path: Path) -> None:
    vm = VmContext(identity_checked=False)
    async with served(tmp_path, vm=vm) as scene:
        first = await other_process(scene.path)
        first.kill()
        await first.wait()
        await until(lambda: scene.function.calls == ["disconnected", "memory"])
        await scene.negotiated()

        assert vm.describe()["identity"] == "unchecked"
        assert vm.describe()["pid"] is None
    vm.close()


@pytest.mark.parametrize(
    ("peer", "words"),
    [
        (identity.Peer(4711, 12345, 0), "belongs to user 12345"),
        (identity.Peer(0, os.geteuid(), 0), "identity: unchecked"),
    ],
)
def test_a_stranger_or_an_invisible_process_is_refused(
    monkeypatch: pytest.MonkeyPatch, peer: identity.Peer, words: str
) -> None:
    monkeypatch.setattr(identity, "peer_of", lambda sock: peer)
    here, there = socket.socketpair()
    with here, there, pytest.raises(PeerError, match=words):
        VmIdentity().admit(here)


# What ends a connection


async def test_after_the_end_the_function_is_told_and_the_next_connection_starts_afresh(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        for _ in range(3):
            scene.function.calls.clear()
            client = await scene.negotiated()
            with GuestRam(PAGE) as guest:
                await client.dma_map(0, PAGE, guest.fd)
            client.close()
            await until(lambda: scene.server.connection is None)

            assert scene.function.calls == ["memory", "disconnected", "memory"]
            assert len(scene.function.memory) == 0
            assert len(scene.vm.ram) == 0


async def test_a_client_may_reconnect_at_once(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        for _ in range(20):
            client = await scene.negotiated()
            client.close()


@pytest.mark.parametrize("size", [0, 15, wire.MAX_MESSAGE_NBYTES + 1, 0xFFFFFFFF])
async def test_an_impossible_message_size_ends_only_that_connection(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        client.send_raw(wire.Header(1, Command.DEVICE_RESET, size, 0, 0).pack())
        await asyncio.wait_for(client.dead.wait(), 5)
        await until(lambda: scene.server.connection is None)

        assert "dropped" in caplog.text
        assert (await (await scene.negotiated()).device_info()).num_regions == 9


async def test_the_largest_message_is_taken(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        body = bytes(wire.MAX_MESSAGE_NBYTES - 16)
        header = wire.Header(9, Command.DEVICE_RESET, wire.MAX_MESSAGE_NBYTES, 0x10, 0).pack()
        client._sock.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(client._sock, header + body)

        assert (await client.device_info()).num_regions == 9
        assert scene.function.calls == ["reset"]


async def test_a_message_may_come_byte_by_byte(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        raw = wire.message(5, Command.REGION_WRITE, wire.RegionAccess(0, 0, 4).pack() + b"slow", wire.NO_REPLY)
        for position in range(len(raw)):
            client.send_raw(raw[position : position + 1])
            await asyncio.sleep(0)

        assert await client.region_read(0, 0, 4) == b"slow"


@pytest.mark.parametrize("cut", [1, 15, 17, 40])
async def test_an_end_inside_a_message_is_logged_and_its_fd_closed(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with eventfds(1) as fds:
            before = open_fds()
            client.send_raw(wire.message(5, Command.DMA_MAP, bytes(32))[:cut], fds)
            await asyncio.sleep(0.01)
            client.close()
            await until(lambda: scene.server.connection is None)

            assert "inside a message" in caplog.text
            assert len(open_fds()) == len(before) - 2  # both ends of the connection
            assert [name for name in open_fds() if "eventfd" in name] == [name for name in before if "eventfd" in name]
