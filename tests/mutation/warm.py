"""Sessions of pytest that have collected all their tests and wait: they fork for each mutation they are asked to make.

One process for each kind of session. The request is a line of JSON with the write end of a pipe, sent over a socket;
what becomes of the tests is told there, as `child` does it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.mutation import patch
from tests.mutation.child import Channel, Groups, limit_memory, print_to, use_same_examples
from tests.mutation.sessions import Session
from tests.mutation.table import Mutation

_MESSAGE_NBYTES = 1 << 16


class Server(Groups):
    """In place of pytest's loop: requests, each in a fork."""

    def __init__(self, session: Session, asked: socket.socket) -> None:
        super().__init__(Mutation(id="", old="", new="", what=""), session, Channel(2))
        self._asked = asked

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Say whether all is collected, then serve until the other end is closed."""
        self._asked.sendall(json.dumps({"collected": 0 if self.is_broken else len(session.items)}).encode())
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for forks: who reads their pipe knows
        while not self.is_broken:
            data, fds, _, _ = socket.recv_fds(self._asked, _MESSAGE_NBYTES, 1)
            if not data:
                break
            if not os.fork():
                try:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    self._asked.close()
                    self._make(session, json.loads(data), fds[0])
                finally:
                    os._exit(0)
            os.close(fds[0])
        return True

    def _make(self, session: pytest.Session, request: dict[str, Any], fd: int) -> None:
        os.setpgid(0, 0)
        self._channel = Channel(fd)
        self._channel.say(pid=os.getpid())
        factory: Any = session.config._tmp_path_factory  # type: ignore[attr-defined]
        factory._given_basetemp = factory._given_basetemp.with_name(f"tmp{os.getpid()}")  # not that of other forks
        self._mutation = msgspec.convert(request["mutation"], Mutation)
        if not self._mutation.file or patch.apply(self._mutation):
            self.run_groups(session.items, request["named"], is_quick=request["is_quick"])
        self._channel.say(done=True)


@dataclass(slots=True)
class WarmSession:
    """The other end of one: started at its first use."""

    session: Session
    asks: socket.socket = field(init=False)
    pid: int = field(init=False)
    scratch: tempfile.TemporaryDirectory[str] = field(init=False)

    def __post_init__(self) -> None:
        """Start it, and wait until it has collected. RuntimeError where it cannot."""
        self.scratch = tempfile.TemporaryDirectory(prefix="vdev-mutation-", dir="/tmp")
        self.asks, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if not self.pid:
            try:
                self.asks.close()
                _serve(self.session, theirs, Path(self.scratch.name))
            finally:
                os._exit(0)
        theirs.close()
        told = self.asks.recv(_MESSAGE_NBYTES)
        if not told or not json.loads(told)["collected"]:
            raise RuntimeError(Path(self.scratch.name, "output").read_text()[-4000:])

    def ask(self, mutation: Mutation, named: list[str], fd: int, *, is_quick: bool = False) -> None:
        """Have the mutation made; what becomes of it is written to `fd`."""
        request = {"mutation": mutation, "named": named, "is_quick": is_quick}
        socket.send_fds(self.asks, [msgspec.json.encode(request)], [fd])

    def close(self) -> None:
        """End it."""
        self.asks.shutdown(socket.SHUT_RDWR)  # forks have copies
        self.asks.close()
        os.waitpid(self.pid, 0)
        self.scratch.cleanup()


def _serve(session: Session, asked: socket.socket, scratch: Path) -> None:
    print_to(scratch / "output")
    limit_memory()
    use_same_examples()
    os.environ.update(session.environment)
    pytest.main(session.arguments(scratch / "tmp"), plugins=[Server(session, asked)])
