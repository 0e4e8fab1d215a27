"""lease.sock and admin.sock against peers that break every rule: they are refused, the others notice nothing."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support import authority
from tests.support.authority import (
    WAIT_S,
    Vm,
    authority_pid,
    give_back,
    granted,
    held_lease,
    rows,
    until,
)
from vdev.authority import lease_server
from vdev.authority.lease import join
from vdev.authority.lease_server import MAX_OF_ONE_PROCESS
from vdev.authority.messages import MAX_PACKET_NBYTES
from vdev.authority.processes import PIDFD_THREAD
from vdev.authority.server import Authority

NOBODY = 65534
HELLO = {"op": "hello", "version": 1, "name": "rude"}


directory = authority.directory


class Rude:
    """A backend by hand."""

    def __init__(self, directory: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(str(directory / "lease.sock"))

    def send(self, message: object, *fds: int) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        socket.send_fds(self.sock, [data], list(fds))

    def receive(self) -> dict[str, Any]:
        """The next packet; empty where the authority hung up."""
        try:
            data = self.sock.recv(1 << 17)
        except ConnectionError:
            return {}
        return json.loads(data) if data else {}

    def hello(self) -> Rude:
        self.send(HELLO)
        assert self.receive()["op"] == "welcome"
        return self

    def is_dropped(self) -> bool:
        """Whether nothing more comes but the end."""
        ops = []
        while said := self.receive():
            ops.append(said["op"])
        return not ops or ops == ["welcome"]

    def close(self) -> None:
        self.sock.close()


def nfds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize(
    "data",
    [
        b"{", b"[]", b"null", b"\xff\xfe", b'{"op":"nothing"}', b"{}", b"[" * 50_000, b" " * (MAX_PACKET_NBYTES + 1),
        b'{"op":"hello","version":1}', b'{"op":"hello","version":1,"name":""}',
        b'{"op":"hello","version":1,"name":"a b"}',
        b'{"op":"hello","version":1,"name":"\\ud800"}', b'{"op":"hello","version":1,"name":"' + b"x" * 65 + b'"}',
        b'{"op":"hello","version":1,"name":"a","quota":-1}', b'{"op":"hello","version":1,"name":"a","quota":1e99}',
        b'{"op":"hello","version":1,"name":"a","more":1}', b'{"op":"allocate","id":1,"first":1,"stop":2}',
        b'{"op":"release","pasids":[1]}', b'{"op":"open"}',
    ],
)  # fmt: skip
async def test_what_is_no_request_or_out_of_turn_ends_the_connection_and_nothing_else(
    directory: Path, data: bytes
) -> None:
    lease = await join(directory, "other")

    with closing(Rude(directory)) as rude:
        rude.send(data)
        assert rude.is_dropped()

    assert lease.state == "unbound"
    assert rows(directory, "SELECT count(*) FROM sets") == [(0,)]
    await lease.close()


@pytest.mark.parametrize(
    "request_",
    [
        {"op": "allocate", "id": -1, "first": 1, "stop": 2},
        {"op": "allocate", "id": 1, "first": 1, "stop": 1 << 21},
        {"op": "allocate", "id": 1 << 63, "first": 1, "stop": 2},
        {"op": "release", "pasids": [1 << 20]},
        {"op": "release", "pasids": ["1"]},
        {"op": "release", "pasids": [1] * 4097},
        {"op": "tell", "state": "quarantined", "pasids": []},
        {"op": "hello", "version": 1, "name": "rude"},
    ],
)
async def test_a_bad_request_costs_a_backend_its_connection_and_not_its_set(
    directory: Path, request_: dict[str, Any]
) -> None:
    lease = await join(directory, "other")
    with Vm() as vm, closing(Rude(directory).hello()) as rude:
        assert vm.identity.pidfd is not None
        rude.send({"op": "open"}, vm.identity.pidfd)
        rude.send({"op": "allocate", "id": 1, "first": 5, "stop": 6})
        while rude.receive()["op"] != "granted":
            pass

        rude.send(request_)

        assert rude.is_dropped()
        assert rows(directory, "SELECT guest FROM pasids") == [(5,)]
        await until(lambda: rows(directory, "SELECT state FROM sets") == [("quarantined",)])
    await lease.close()


@pytest.fixture
def odd_fds(tmp_path: Path) -> Iterator[dict[str, int]]:
    """What is no pidfd of a living process."""
    (tmp_path / "Pid").write_text("Pid:\t1\n")
    dead = Vm()
    dead.kill()
    assert dead.identity.pidfd is not None
    fds = {
        "memfd": os.memfd_create("pidfd:["),
        "eventfd": os.eventfd(0),
        "directory": os.open("/proc/self", os.O_RDONLY),
        "file": os.open(tmp_path / "Pid", os.O_RDONLY),
    }
    yield {**fds, "dead": dead.identity.pidfd}
    for fd in fds.values():
        os.close(fd)
    dead.close()


async def test_an_fd_that_is_no_pidfd_of_a_living_process_is_no_vm(directory: Path, odd_fds: dict[str, int]) -> None:
    lease = await join(directory, "other")
    before = nfds(authority_pid(directory))

    for what, fd in odd_fds.items():
        with closing(Rude(directory).hello()) as rude:
            rude.send({"op": "open"}, fd)
            said = rude.receive()
            expected = "the VM's process has ended" if what == "dead" else "the fd is no pidfd"
            assert said == {"op": "refused", "problem": f"VM rude: {expected}"}

    await until(lambda: nfds(authority_pid(directory)) == before)
    assert rows(directory, "SELECT count(*) FROM sets") == [(0,)]
    await lease.close()


async def test_a_pidfd_of_a_thread_is_refused_since_the_thread_may_end_alone(directory: Path) -> None:
    lease = await join(directory, "other")
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        try:
            fd = ctypes.CDLL(None, use_errno=True).syscall(434, thread.native_id, PIDFD_THREAD)
            if fd < 0:
                pytest.skip("this kernel has no pidfds of threads")
            with closing(Rude(directory).hello()) as rude:
                rude.send({"op": "open"}, fd)
                assert "of a thread" in rude.receive()["problem"]
            os.close(fd)
        finally:
            done.set()
    finally:
        thread.join()
        await lease.close()


async def test_fds_in_odd_numbers_and_places_are_closed(directory: Path) -> None:
    lease = await join(directory, "other")
    pid = authority_pid(directory)
    before = nfds(pid)
    with Vm() as vm:
        fd = vm.identity.pidfd
        assert fd is not None
        for fds, message in (
            ([fd], HELLO),
            ([fd, fd], {"op": "open"}),
            ([fd] * 200, {"op": "open"}),
            ([], {"op": "open"}),
        ):
            with closing(Rude(directory)) as rude:
                if message is not HELLO:
                    rude.hello()
                rude.send(message, *fds)
                assert rude.is_dropped()
    await until(lambda: nfds(pid) == before)
    await lease.close()


async def test_a_process_with_too_many_connections_is_refused_and_others_are_not(directory: Path) -> None:
    code = (
        "import socket, sys\n"
        "socks = []\n"
        f"for _ in range({MAX_OF_ONE_PROCESS + 20}):\n"
        "    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "    sock.connect(sys.argv[1]); socks.append(sock)\n"
        "last = socks[-1].recv(4096)\n"
        "print(last.decode(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    first = await join(directory, "first")
    flood = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", code, str(directory / "lease.sock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert flood.stdout is not None
        said = flood.stdout.readline().decode()
        with Vm() as vm:
            lease, _ = await held_lease(directory, vm)
            await granted(lease)
            await lease.close()
    finally:
        flood.communicate()
    assert f"a process may have {MAX_OF_ONE_PROCESS}" in said
    await first.close()


async def test_a_backend_that_asks_and_never_reads_stops_itself_alone(directory: Path) -> None:
    lease = await join(directory, "other")
    with Vm() as vm, Vm() as other, closing(Rude(directory).hello()) as rude:
        assert vm.identity.pidfd is not None
        rude.send({"op": "open"}, vm.identity.pidfd)
        rude.sock.setblocking(False)
        nsent = 0
        with suppress(BlockingIOError):
            for nsent in range(1_000_000):
                rude.send({"op": "allocate", "id": nsent, "first": 1, "stop": 2})

        lease.bind(other.identity)
        await until(lambda: lease.state == "held")
        give_back(lease, [await granted(lease)])

        assert nsent < 100_000  # it was not read any further
        assert rss_kib(authority_pid(directory)) < 150_000
    await lease.close()


def rss_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


async def test_a_backend_that_is_silent_is_dropped(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_server, "HELLO_S", 0.1)
    authority = Authority(directory, None)
    running = asyncio.ensure_future(authority.run(lambda _: None))
    await asyncio.sleep(0)

    with closing(Rude(directory)) as rude:
        rude.sock.setblocking(False)
        end = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(rude.sock, 1), WAIT_S)

    authority.stopping.set()
    await running
    authority.close()
    assert end == b""


def as_nobody(code: str, *words: str) -> str:
    """What a process of another user, in a group of ours, gets to hear."""
    drop = f"import os, socket, sys, array; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    done = subprocess.run(
        [sys.executable, "-c", drop + code, *words], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


def let_in(directory: Path) -> None:
    """As far as the way to it goes."""
    for parent in (directory.parent, directory.parent.parent):
        parent.chmod(0o711)


SAY = """
def receive():
    try:
        return sock.recv(4096).decode()
    except ConnectionResetError:  # it did not read all: what it said comes after that
        return sock.recv(4096).decode()
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
try:
    sock.send(b'{"op":"hello","version":1,"name":"rude"}')
except BrokenPipeError:
    pass
print(receive())
if len(sys.argv) > 2:
    pid = int(sys.argv[2]) or os.getpid()
    socket.send_fds(sock, [b'{"op":"open"}'], [os.pidfd_open(pid)])
    sock.shutdown(socket.SHUT_WR)
    while said := receive():
        print(said)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
async def test_other_users_are_refused_even_where_the_directory_lets_them_in(directory: Path) -> None:
    lease = await join(directory, "other")
    let_in(directory)
    os.chmod(directory, 0o711)
    for name in ("lease.sock", "admin.sock"):
        os.chmod(directory / name, 0o666)

    said = as_nobody(SAY, str(directory / "lease.sock"))
    admin = as_nobody(
        "sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1])\n"
        'sock.send(b\'{"execute": "query-pasid-host"}\\n\'); print(sock.recv(4096))',
        str(directory / "admin.sock"),
    )

    assert f"user {NOBODY} may not lease" in said
    assert "used" not in admin
    await lease.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
async def test_members_of_the_group_lease_for_their_own_processes_only_and_do_not_administer(directory: Path) -> None:
    config = directory / "host.yaml"
    config.write_text(f"sockets: {{group: {NOBODY}}}\n")
    lease = await join(directory, "other", config)
    let_in(directory)

    own = as_nobody(SAY, str(directory / "lease.sock"), "0")
    with Vm() as vm:
        other = as_nobody(SAY, str(directory / "lease.sock"), str(vm.process.pid))
        pid = vm.process.pid
    admin = as_nobody(
        "sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1])\n"
        'sock.send(b\'{"execute": "query-pasid-host"}\\n\'); print(sock.recv(4096))',
        str(directory / "admin.sock"),
    )

    assert '"op":"opened"' in own
    assert f"user {NOBODY} may not lease for pid {pid} of user 0" in other
    assert "used" not in admin
    await lease.close()
