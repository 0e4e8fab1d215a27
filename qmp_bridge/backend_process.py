"""The backend process: `vdev serve`, from its start to the line that says its sockets listen."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from qmp_bridge.child import Child, last_lines
from qmp_bridge.errors import VmDied
from vdev.control.messages import Ready
from vdev.errors import ConfigError
from vdev.qemu.machine import socket_path

READY_SECONDS = 30.0
STOP_SECONDS = 5.0
WRONG_INPUT = 2  # the backend's exit status for a ConfigError or PartsError


async def start_backend(command: Sequence[str], log: Path, config_name: str) -> tuple[Child, Ready]:
    """Start the backend and wait until it listens; `config_name` is what errors call its configuration.

    Raises ConfigError when it refuses its input, VmDied when it dies, says nothing for 30 s or says something else.
    The caller owns the process once this returns; until then it is ended here.
    """
    # A pipe makes Python buffer its output; the line must come when it is true.
    child = Child("the backend", command, env={"PYTHONUNBUFFERED": "1"}, stderr=log, pipe_stdout=True)
    try:
        stdout = await child.stdout()
        async with asyncio.timeout(READY_SECONDS):
            line = await stdout.readline()
            if not line:
                await child.exited
                raise _refusal(child, log, config_name)
        return child, msgspec.json.decode(line, type=Ready)
    except TimeoutError:
        child.kill()
        raise VmDied(f"the backend said nothing for {READY_SECONDS:.0f} s{_last_words(log)}") from None
    except (msgspec.DecodeError, ValueError) as error:
        child.kill()
        raise VmDied(f"the backend's first line is not its readiness: {error}") from None
    except BaseException:
        child.kill()
        raise


def check_sockets(ready: Ready, names: Iterable[str], directory: str) -> None:
    """VmDied when the backend listens elsewhere than QEMU is told to connect to."""
    for name in names:
        path = socket_path(directory, name)
        if ready.sockets.get(name) != path:
            raise VmDied(f"the backend serves {name} at {ready.sockets.get(name)}, QEMU expects it at {path}")


def death_of_backend(child: Child, log: Path) -> str:
    """One line that says how the backend ended, with its last words."""
    return f"{child.describe_exit()}; QEMU was stopped at once, as it would have aborted{_last_words(log)}"


def _refusal(child: Child, log: Path, config_name: str) -> Exception:
    words = [line for line in last_lines(log, 20) if line.strip()]
    if child.exited.result() == WRONG_INPUT and words:
        key, colon, problem = words[-1].removeprefix("vdev: ").rpartition(": ")
        # What only the device's cores can judge comes without the file's name.
        where = f"{config_name}: " if key.startswith(("units[", "endpoints[", "faults")) else ""
        return ConfigError(where + key if colon else "backend", problem)
    return VmDied(f"{child.describe_exit()} before it listened{_last_words(log)}")


def _last_words(log: Path) -> str:
    # Its news of ordinary events are no cause.
    words = [line for line in last_lines(log, 5) if line.strip() and " INFO " not in line]
    return f"; it last said: {words[-1]}" if words else ""
