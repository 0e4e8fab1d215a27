"""Starting an authority where there is none: by whoever needs it first, once, and detached from it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from vdev.authority.messages import LEASE_SOCKET
from vdev.errors import ConfigError, VdevError
from vdev.transports.listener import MAX_PATH_NBYTES, make_directory

LOCK = "lock"  # held by the authority as long as it lives
_START_LOCK = "start.lock"  # held by the one that starts it
LOG = "authority.log"
IDLE_S = 60.0  # without a VM and without a lease, before one that was started on demand ends
START_S = 15.0  # from a start to its socket, on a machine that is busy
_LOOK_S = 0.03
_NOBODY = (errno.ENOENT, errno.ECONNREFUSED)


def default_directory() -> Path:
    """Where a host's authority is unless a configuration says otherwise: one per user, one of root's."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(runtime if runtime and os.geteuid() else "/run") / "vdev-authority"


async def connect(directory: Path, config: Path | None, *, start: bool = True) -> socket.socket:
    """A connection to the authority of `directory`, started if there is none. VdevError says what is in the way."""
    sock = _try_connect(directory)
    if sock is not None:
        return sock
    if not start:
        raise VdevError(f"no PASID authority answers in {directory}")
    if not directory.is_dir():  # noqa: ASYNC240 # a look at a runtime directory
        make_directory(directory)
    try:
        async with asyncio.timeout(START_S):
            return await _start_and_connect(directory, config)
    except TimeoutError:
        problem = f"did not answer within {START_S:g} s: see {directory / LOG}"
        raise VdevError(f"the PASID authority in {directory} {problem}") from None


async def _start_and_connect(directory: Path, config: Path | None) -> socket.socket:
    while True:
        with _locked(directory / _START_LOCK) as is_ours:
            sock = _try_connect(directory)
            if sock is not None:
                return sock
            if is_ours:
                problem = await _start(directory, config)
                if problem:
                    raise VdevError(f"the PASID authority in {directory} did not start: {problem}")
        await asyncio.sleep(_LOOK_S)


def _try_connect(directory: Path) -> socket.socket | None:
    """None when nobody listens."""
    path = directory / LEASE_SOCKET
    if len(os.fsencode(path)) > MAX_PATH_NBYTES:
        problem = f"{path} has {len(os.fsencode(path))} bytes, a UNIX socket's path has at most {MAX_PATH_NBYTES}"
        raise ConfigError("vm.pasids.authority", problem, "use a shorter directory")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    try:
        sock.connect(str(path))
    except BlockingIOError:  # its backlog is full: it is there, and busy
        sock.close()
        return None
    except OSError as error:
        sock.close()
        if error.errno in _NOBODY:
            return None
        raise VdevError(f"the PASID authority in {directory} cannot be reached: {error.strerror}") from None
    return sock


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether we are the one that starts it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise VdevError(
            f"no PASID authority answers, and {path.parent} is not ours to start one: {error.strerror}"
        ) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


async def _start(directory: Path, config: Path | None) -> str:
    """Start one, and wait until it serves or has ended; what is wrong where it says so.

    The process we start forks at once and ends: what goes on is nobody's child, and outlives us.
    """
    read, write = os.pipe()
    words = ["--on-demand", "--runtime-dir", str(directory), "--idle", str(IDLE_S), "--tell", str(write)]
    if config is not None:
        words += ["--config", str(config)]
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "vdev.authority", *words, pass_fds=(write,),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    reader = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb")
    )
    try:
        said = await reader.read()
        await process.wait()
    finally:
        pipe.close()
    return said.decode(errors="replace")
