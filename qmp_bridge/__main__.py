"""`qmp-bridge up CONFIG`: one VM from one file, until its guest is done. `run SCENARIO`: a VM to which things are done,
and a report. `attach`: a monitor for another's QEMU."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from qmp_bridge.attach import Attachment, attach
from qmp_bridge.errors import VmDied
from qmp_bridge.narrate import narrate
from qmp_bridge.plan import Options, find_parts, make_plan
from qmp_bridge.run_directory import PREFIX, runtime_base
from qmp_bridge.up import RunningVm, bring_up
from qmp_bridge.vm_options import add_vm_options, apply_vm_options, file_for_backend
from vdev.config import Config, boot_kernel, config_warnings, isolation_line, load_config, with_plan
from vdev.config.schema import ATTACHMENTS
from vdev.errors import ConfigError, PartsError, VdevError

POWER_OFF_SECONDS = 15.0  # from `done` to QEMU's end
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_FAILURE, EXIT_WRONG_INPUT, EXIT_SIGNAL = 1, 2, 128


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qmp-bridge", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start the backend and QEMU, run the payload, take everything down")
    up.add_argument("config", type=Path, metavar="CONFIG", help="the YAML file")
    up.add_argument("--print-command", action="store_true", help="show what would run, and stop")
    up.add_argument("--attach", choices=ATTACHMENTS, help="instead of every unit's attach")
    up.add_argument("--append", default="", metavar="WORDS", help="added to the guest kernel's command line")
    up.add_argument(
        "--payload", metavar="NAME,...", help="checks to run in the guest (default: all, with a disk that boots none)"
    )
    up.add_argument("--timeout", type=float, metavar="SECONDS", help="how long the VM may live")
    up.add_argument("--logs", type=Path, default=Path("logs"), metavar="DIR", help="where logs go after a failure")
    up.add_argument("--trace", metavar="FILE", help="the decoded trace to FILE; memory, or logs: among the logs")
    up.add_argument("--faults", type=Path, metavar="PLAN", help="a fault plan: docs/faults.md")
    up.add_argument("--quiet", action="store_true", help="do not follow the console")
    add_vm_options(up)
    _add_run(commands.add_parser("run", help="play a scenario: do things to a VM and its guest, and report"))
    other = commands.add_parser("attach", help="one monitor for a QEMU that somebody else started and a `vdev serve`")
    other.add_argument("--qmp", type=Path, required=True, metavar="SOCKET", help="a QMP monitor of that QEMU")
    other.add_argument("--vdev", type=Path, required=True, metavar="SOCKET", help="the control socket of vdev")
    other.add_argument(
        "--listen", type=Path, metavar="SOCKET", help="for clients (default: monitor.sock beside vdev's socket)"
    )
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", type=Path, metavar="SCENARIO", help="the YAML file: docs/scenarios.md")
    parser.add_argument("--attach", choices=ATTACHMENTS, help="instead of what the file says")
    parser.add_argument("--seed", type=int, metavar="N", help="of the faults, instead of the file's")
    parser.add_argument(
        "--var", action="append", default=[], metavar="NAME=VALUE", help="instead of the file's; may be repeated"
    )
    parser.add_argument("--driver", metavar="NAME", help="short for --var driver=NAME")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report there as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it as JSON")
    parser.add_argument("--quiet", action="store_true", help="no line for each step")
    parser.add_argument("--cold", action="store_true", help="boot the guest, though a saved one could be restored")
    parser.add_argument("--logs", type=Path, default=Path("logs"), metavar="DIR", help="where a lost VM's logs go")
    add_vm_options(parser)


def _run(arguments: argparse.Namespace) -> int:
    from guest_tests.scenario.run import run  # needed for this command alone, and it imports us

    with _signals_raise():  # the machine's loop is in a thread of its own
        return run(arguments, _say, _show)


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _follow(chunk: bytes) -> None:
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def _options(arguments: argparse.Namespace, config: Config) -> Options:
    payload = arguments.payload or ("all" if boot_kernel(config.vm) is not None else "none")
    return Options(
        attach=arguments.attach,
        append=arguments.append,
        payload=None if payload == "none" else payload,
        config_path=file_for_backend(arguments),
        timeout=arguments.timeout,
        trace=arguments.trace,
        faults=arguments.faults,
        logs=arguments.logs,
        follow=None if arguments.quiet else _follow,
        say=_say,
    )


async def _converse(vm: RunningVm) -> None:
    """Show what the payload says; VmDied unless it ends with a good verdict about at least one check."""
    if vm.options.payload is None:
        if await vm.wait_exit() != 0:
            raise vm.died("QEMU ended with an error")
        if panic := vm.console.panic():
            raise vm.died(f"the guest died of a {panic}")
        return
    done: dict[str, Any] = {}
    failed = ""  # the first check that did; those after it often only follow
    async with aclosing(vm.messages()) as messages:
        async for message in messages:
            _say(f"guest: {narrate(message)}")
            failed = failed or (narrate(message).strip() if message.get("ok") is False else "")
            done = message
    if reason := done.get("reason"):
        raise vm.died(f"the guest cannot run the payload: {reason}")
    if done.get("checks", 1) == 0:
        raise vm.died(f"no check of the payload is called {vm.options.payload} (`--payload all` runs every one)")
    if done.get("ok") is not True:
        raise vm.died(f"the guest's payload reports failure: {failed or narrate(done)}")
    try:
        await vm.send({"bye": True})  # the payload waits for this, so that we could have looked around
        async with asyncio.timeout(POWER_OFF_SECONDS):
            await vm.wait_exit()
    except TimeoutError:
        _say("the guest is done but does not power off; QEMU is stopped")


class _Stopped(KeyboardInterrupt):
    """A signal asked us to end; `number` is which."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__()


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Raise _Stopped for a signal: outside an event loop, which looks at signals only between its callbacks."""

    def stop(number: int, _: object) -> None:
        raise _Stopped(number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _until_signal(job: Coroutine[Any, Any, int]) -> int:
    """Run `job`; a signal cancels it, and what it has is torn down like after anything else."""
    loop, caught = asyncio.get_running_loop(), list[int]()
    task = asyncio.current_task()
    assert task is not None

    def stop(number: int) -> None:
        caught.append(number)
        task.cancel()

    for number in SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        return await job
    except asyncio.CancelledError:
        if not caught:
            raise
        _say(f"stopped by {signal.Signals(caught[0]).name}")
        return EXIT_SIGNAL + caught[0]


async def _up(config: Config, options: Options) -> int:
    async with bring_up(config, options) as vm:
        _say("the guest boots" + ("" if options.follow else " (its console is not shown: --quiet)"))
        await _converse(vm)
    _say("the VM has ended as it should; nothing of it is left")
    return 0


async def _attach(arguments: argparse.Namespace) -> int:
    await attach(Attachment(arguments.qmp, arguments.vdev, arguments.listen), _say)
    return 0


def _report(death: VmDied) -> None:
    for line in death.tail:
        _say(f"console: {line}")
    _say(f"qmp-bridge: {death.reason}")
    if death.logs is not None:
        _say(f"qmp-bridge: logs are in {death.logs}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 for a VM that failed, 2 for wrong input, 128 + a signal."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "attach":
            return asyncio.run(_until_signal(_attach(arguments)))
        if arguments.command == "run":
            return _run(arguments)
        config = apply_vm_options(load_config(arguments.config), arguments)
        with_plan(config, arguments.faults)  # the backend reads it; what is wrong with the file is known now
        options = _options(arguments, config)
        for line in config_warnings(config):
            _say(f"qmp-bridge: warning: {line}")
        with _signals_raise():
            parts = find_parts(config, options)  # may download for minutes
        if arguments.print_command:
            directory = runtime_base() / f"{PREFIX}RUN"
            print(make_plan(config, parts, options, directory).shown(), end="")
            return 0
        _say(f"qmp-bridge: {isolation_line(config)}")
        return asyncio.run(_until_signal(_up(config, replace(options, parts=parts))))
    except _Stopped as stopped:
        _say(f"stopped by {signal.Signals(stopped.number).name}")
        return EXIT_SIGNAL + stopped.number
    except VmDied as death:
        _report(death)
        return EXIT_FAILURE
    except (ConfigError, PartsError) as error:
        _say(f"qmp-bridge: {error}")
        return EXIT_WRONG_INPUT
    except VdevError as error:
        _say(f"qmp-bridge: {error}")
        return EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
