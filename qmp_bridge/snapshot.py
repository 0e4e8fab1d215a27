"""A guest saved once its payload has said hello, and restored in a fraction of a second.

QEMU cannot save vdev's functions: the guest is booted and saved without them (`vdev.qemu.restorable`). Which guest fits
which machine is the caller's to know: a saved one belongs to one QEMU, kernel, initrd, command line and size of RAM.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qemu.qmp import QMPError

from qmp_bridge.channel import Channel
from qmp_bridge.child import Child
from qmp_bridge.console import Console, connect
from qmp_bridge.errors import VmDied, the_cause
from qmp_bridge.monitor import LoggedQmp, connect_monitor
from qmp_bridge.plan import Options, Parts, paths_in, qemu_command, with_append
from qmp_bridge.qemu_process import NOTICE_SECONDS, death_of_qemu, start_qemu, stop_qemu
from qmp_bridge.run_directory import RunDirectory
from vdev.config import Config
from vdev.qemu.machine import MachinePaths
from vdev.qemu.restorable import LateUnit, source_arguments

CONNECT_SECONDS = 30.0
MOVE_SECONDS = 120.0  # to save or to restore; half a second each where nothing else runs
POLL_SECONDS = 0.005
TAIL_LINES = 40
FULL_NBYTES = 1 << 20  # a file system with less left has no room
# The file has a fixed place for each page, so that a restore reads it in parallel and zero pages cost nothing.
_CAPABILITIES = [{"capability": name, "state": True} for name in ("mapped-ram", "multifd")]

_DEATHS = (VmDied, QMPError, EOFError, ConnectionError)  # of QEMU; all of them when it ends while it is talked to


async def save_guest(config: Config, parts: Parts, options: Options, target: Path) -> None:
    """Boot the machine without our functions until its payload says hello, and save it as the file `target`.

    `target` appears complete or not at all. Raises VmDied when the guest does not come up or QEMU cannot save it, and
    OSError when there is no room.
    """
    with _staged(target) as path:  # before the boot: it would be in vain
        run = RunDirectory()
        try:
            paths = paths_in(run.path, parts)
            command = qemu_command(parts, source_arguments(with_append(config, options), paths, parts.accel))
            await _boot_and_save(command, parts, paths, config, path)
        finally:
            run.remove()


async def _boot_and_save(command: list[str], parts: Parts, paths: MachinePaths, config: Config, target: Path) -> None:
    logs = Path(paths.console_log).parent
    console, channel = Console(), Channel()
    qmp: LoggedQmp | None = None
    qemu = start_qemu(command, parts.env, logs / "qemu.stderr")
    try:
        async with asyncio.TaskGroup() as tasks:
            followers = [
                tasks.create_task(_until_gone(qemu)),
                tasks.create_task(console.run(*await connect(paths.console, CONNECT_SECONDS))),
                tasks.create_task(channel.run(*await connect(paths.channel, CONNECT_SECONDS))),
            ]
            qmp = await connect_monitor(config.vm.name, paths.qmp, logs / "qmp.log", CONNECT_SECONDS)
            await _greeted(channel, config.vm.boot_timeout)
            await _save(qmp, target)
            for follower in followers:
                follower.cancel()
    except ExceptionGroup as group:  # not except*: in Python 3.11.2 what it raises comes wrapped
        if group.split((*_DEATHS, OSError))[1] is not None:
            raise
        deaths = group.subgroup(_DEATHS)
        if deaths is None:
            raise the_cause(group) from None
        has_ended = await qemu.ended_within(NOTICE_SECONDS)  # whoever talks to QEMU sees its end first
        reason = death_of_qemu(qemu, logs / "qemu.stderr", _shortage(target)) if has_ended else str(the_cause(deaths))
        problem = f"no guest to restore could be made: {console.panic() or reason}"
        raise VmDied(problem, console.tail(TAIL_LINES)) from None
    finally:
        await stop_qemu(qemu, qmp)
        if qmp is not None:
            await qmp.close()


async def _until_gone(qemu: Child) -> None:
    """Raise VmDied when QEMU ends: nobody need wait for its sockets or its guest any more."""
    await asyncio.shield(qemu.exited)
    raise VmDied("QEMU ended")


async def _greeted(channel: Channel, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await channel.greeted.wait()
    except TimeoutError:
        raise VmDied(f"the guest's payload did not report within {seconds:.0f} s") from None


async def _save(qmp: LoggedQmp, target: Path) -> None:
    await qmp.execute("stop")
    await qmp.execute("migrate-set-capabilities", {"capabilities": _CAPABILITIES})
    await qmp.unguarded("migrate", {"uri": f"file:{target}"})
    await _moved(qmp, "saved")


def _shortage(target: Path) -> str:
    """What a QEMU that ended need not have said: with no room left for `target`, 11.1 now and then dies of SIGSEGV."""
    return os.strerror(errno.ENOSPC) if shutil.disk_usage(target.parent).free < FULL_NBYTES else ""


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A file beside `target` that becomes it when the block succeeds, and is gone when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".saving-")
    os.close(handle)
    try:
        yield Path(name)
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)


async def restore(qmp: LoggedQmp, saved: Path, units: Iterable[LateUnit]) -> None:
    """Let a QEMU that waits for state (`-incoming defer`) take in `saved`, plug `units` in, and let the guest run.

    Raises VmDied when QEMU refuses the state, such as that of another machine.
    """
    await qmp.execute("migrate-set-capabilities", {"capabilities": _CAPABILITIES})
    await qmp.unguarded("migrate-incoming", {"uri": f"file:{saved}"})
    await _moved(qmp, "restored")
    for unit in units:
        await qmp.execute("chardev-add", unit.chardev)
        await qmp.execute("device_add", unit.device)
    await qmp.execute("cont")


async def _moved(qmp: LoggedQmp, what: str) -> None:
    """Wait until QEMU says that its state has moved. Raises VmDied."""
    try:
        async with asyncio.timeout(MOVE_SECONDS):
            while True:
                answer: Any = await qmp.execute("query-migrate")
                match answer:
                    case {"status": "completed"}:
                        return
                    case {"status": "failed" | "cancelled"}:
                        raise VmDied(
                            f"the guest could not be {what}: {answer.get('error-desc', 'QEMU does not say why')}"
                        )
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise VmDied(f"the guest was not {what} within {MOVE_SECONDS:.0f} s") from None
