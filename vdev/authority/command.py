"""`vdev authority`, and the same as a backend starts it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys
from pathlib import Path

from vdev.authority.server import LOCK_S, LockedError, locked, serve
from vdev.authority.settings import load_host_config
from vdev.authority.start import IDLE_S, LOG, default_directory
from vdev.errors import VdevError
from vdev.transports.listener import make_directory

MAX_LOG_NBYTES = 1 << 20
MAX_PROBLEM = 1000  # characters, so that a pipe takes them without a reader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of both."""
    parser.add_argument("--config", type=Path, metavar="HOST.YAML", help="the rules: docs/pasid-authority.md")
    parser.add_argument(
        "--runtime-dir",
        type=Path,
        default=None,
        help=f"where its sockets and ledger are; default: {default_directory()}",
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])


def run(arguments: argparse.Namespace) -> int:
    """Serve in the foreground until stopped. ConfigError."""
    logging.basicConfig(level=arguments.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    config = load_host_config(arguments.config)
    directory = arguments.runtime_dir or default_directory()
    _make(directory)
    with locked(directory):
        asyncio.run(serve(directory, config, _announce))
    return 0


def _announce(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _make(directory: Path) -> None:
    """Whether one that is there is fit is for the listeners to say: they know who may enter."""
    if not directory.is_dir():
        make_directory(directory)


def run_on_demand(words: list[str]) -> int:
    """Serve without a terminal, as started by a backend; what goes wrong before that is left in the directory."""
    parser = argparse.ArgumentParser(prog="python -m vdev.authority")
    add_arguments(parser)
    parser.add_argument("--on-demand", action="store_true")
    parser.add_argument("--idle", type=float, default=IDLE_S)
    parser.add_argument("--tell", type=int, metavar="FD", help="hears what is wrong, or nothing; closed when it serves")
    arguments = parser.parse_args(words)
    directory: Path = arguments.runtime_dir or default_directory()
    tell = os.dup(2) if arguments.tell is None else arguments.tell
    os.set_inheritable(tell, False)
    try:
        _make(directory)
        _log_into(directory / LOG, arguments.log_level)
        with locked(directory, wait_s=LOCK_S):
            config = None if arguments.config is None else load_host_config(arguments.config)
            asyncio.run(serve(directory, config, lambda _: os.close(tell), on_demand=True, idle_s=arguments.idle))
    except LockedError:
        return 0  # somebody else was faster, and serves
    except VdevError as error:
        logging.getLogger(__name__).error("%s", error)
        with contextlib.suppress(OSError):
            os.write(tell, str(error)[:MAX_PROBLEM].encode())
        return 2
    return 0


def _log_into(path: Path, level: str) -> None:
    with contextlib.suppress(OSError):
        if path.stat().st_size > MAX_LOG_NBYTES:
            path.replace(path.with_suffix(".old"))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(fd, 2)
    os.close(fd)
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
