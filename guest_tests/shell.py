"""`make shell`: the guest's shell on this terminal, with what vdev does beside it. Ctrl-] leaves.

Inside tmux a second pane follows vdev's log. Elsewhere faults, attaches and resets appear between the shell's lines,
dimmed, and the command that follows the whole log is printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import stat
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from guest_tests.boot import Control
from guest_tests.demo import ENVIRONMENT, command_line
from guest_tests.report import event_line
from qmp_bridge.plan import Options, find_parts
from qmp_bridge.up import RunningVm, bring_up
from qmp_bridge.vm_options import apply_vm_options, file_for_backend
from vdev.config import Config, boot_kernel, load_config
from vdev.errors import ConfigError, VdevError

QUIT = b"\x1d"  # Ctrl-], as telnet has it
EVENT_KINDS = ["FaultRaised", "FaultsDropped", "EndpointAttached", "EndpointDetached", "UnitReset"]
EVENT_PERIOD_S = 0.3
CHUNK = 4096
USABLE = b"\x1b[0m\x1b[?7h\x1b[?25h"  # colours off, lines wrap, a cursor: a firmware leaves it otherwise


def write(data: bytes) -> None:
    """Bytes to the terminal at once."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def say(line: str) -> None:
    """A line of ours; the carriage return is for a terminal in raw mode."""
    write(f"{line}\r\n".encode())


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Every key goes to the guest, Ctrl-C included, for the length of the block."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        write(USABLE)


def check_input() -> None:
    """Raise ConfigError unless the event loop can wait for standard input: a terminal, a pipe or a socket."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        mode = 0
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(0)):
        cure = "run it in a terminal; to follow a guest without one use qmp-bridge up"
        raise ConfigError("standard input", "nobody can type there", cure)


async def type_into(vm: RunningVm) -> None:
    """Send the person's keys to the guest until Ctrl-] or the end of input."""
    keys: asyncio.Queue[bytes] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    loop.add_reader(0, lambda: keys.put_nowait(os.read(0, CHUNK)))
    try:
        while (typed := await keys.get()) and QUIT not in typed:
            await vm.console.write(typed)
    finally:
        loop.remove_reader(0)


async def show_events(control_path: str) -> None:
    """Print what happens in vdev, as it happens."""
    since = 0
    async with Control.connected(control_path) as control:
        while True:
            events = await control.execute("query-events", since=since, kinds=EVENT_KINDS)
            for event in events:
                since = event["seq"] + 1
                say(f"\x1b[2m[vdev] {event_line(event)}\x1b[0m")
            await asyncio.sleep(EVENT_PERIOD_S)


async def open_pane(log: Path) -> bool:
    """Follow `log` in a second pane when we are inside tmux; whether that worked."""
    tmux = shutil.which("tmux") if os.environ.get("TMUX") else None
    if tmux is None:
        return False
    follow = f"tail -n +1 -F {shlex.quote(str(log))}"
    process = await asyncio.create_subprocess_exec(tmux, "split-window", "-d", "-h", follow)
    return await process.wait() == 0


async def session(config: Config, options: Options) -> None:
    """One guest, until the person or the guest ends it. Raises VdevError."""
    async with bring_up(config, options) as vm:
        log = vm.logs / "backend.log"
        beside = await open_pane(log)
        say("vdev's log is in the pane beside this one" if beside else f"vdev's whole log: tail -n +1 -F {log}")
        power_off = "`exit`" if boot_kernel(config.vm) is not None else "its own `poweroff`"
        say(f"the guest boots; Ctrl-] leaves, {power_off} powers it off")
        with raw_terminal():
            jobs = [asyncio.ensure_future(type_into(vm)), asyncio.ensure_future(vm.wait_exit())]
            if not beside:
                jobs.append(asyncio.ensure_future(show_events(vm.control_path)))
            try:
                done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for job in jobs:
                    job.cancel()
                await asyncio.gather(*jobs, return_exceptions=True)
        for job in done:
            job.result()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the shell; exit status 0, 1 for a failure, 2 for a wrong configuration."""
    keys = (*ENVIRONMENT, "disk", "firmware")
    arguments = command_line("guest_tests.shell", __doc__ or "", keys).parse_args(argv)
    options = Options(
        attach=arguments.attach,
        trace=arguments.trace and str(Path(arguments.trace).absolute()),
        config_path=file_for_backend(arguments),
        payload=None,
        follow=write,
        say=say,
    )
    try:
        check_input()
        config = apply_vm_options(load_config(arguments.config), arguments)
        if boot_kernel(config.vm) is not None:
            options = replace(options, append="vdev.shell")
        options = replace(options, parts=find_parts(config, options))
        asyncio.run(session(config, options))
    except (VdevError, KeyboardInterrupt) as error:
        say(str(error) or "stopped")
        return 2 if isinstance(error, ConfigError) else 1
    say("")
    return 0


if __name__ == "__main__":
    sys.exit(main())
