"""`vdev`: serve a configuration, print QEMU's side of it, or say whether this machine can run one."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from vdev import __version__
from vdev.app import serve
from vdev.authority import command as authority
from vdev.config import config_warnings, load_config, with_plan
from vdev.ctl.run import run as ctl
from vdev.errors import ConfigError, PartsError, VdevError
from vdev.parts.doctor import doctor
from vdev.parts.doctor_qemu import doctor_file, doctor_process, report
from vdev.qemu.args import FORMATS, launcher_arguments, memory_advice
from vdev.qemu.machine import MachinePaths, qemu_arguments
from vdev.qemu.options import parse_command
from vdev.qemu.rules import check_command
from vdev.trace import cli as trace_cli
from vdev.tracing import with_trace

_DOCTOR_STATUS = "exit status: 0 nothing is wrong, 1 something is missing or warned of, 2 the input cannot be read"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vdev", description=__doc__)
    parser.add_argument("--version", action="version", version=f"vdev {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve", help="serve the IOMMU and the endpoints of one VM until stopped")
    serving.add_argument("config", type=Path, help="the YAML file")
    _add_runtime_dir(serving, "directory (0700, or as the config's sockets say) the sockets are made in")
    serving.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    serving.add_argument(
        "--exit-with-vm",
        action="store_true",
        help="stop when the VM's process has ended (launchers that may be killed)",
    )
    serving.add_argument("--trace", metavar="FILE", help="record the decoded trace; the word memory: in memory only")
    serving.add_argument("--faults", type=Path, metavar="PLAN", help="a fault plan, behind the configuration's own")
    tracing = commands.add_parser("trace", help="show a running VM's decoded trace, or one from a file")
    trace_cli.add_arguments(tracing)
    authority.add_arguments(
        commands.add_parser("authority", help="serve this host's PASIDs to its VMs' backends until stopped")
    )
    commands.add_parser("ctl", help="ask and steer a running VM: the monitor's commands", add_help=False)
    arguments = commands.add_parser("qemu-args", help="print the QEMU arguments to add to an own command line")
    arguments.add_argument("config", type=Path, help="the YAML file")
    _add_runtime_dir(arguments, "the runtime directory of `vdev serve`")
    arguments.add_argument("--format", default="shell", choices=list(FORMATS), help="default: %(default)s")
    arguments.add_argument("--no-memory", action="store_true", help="leave RAM out: the launcher makes it, shared")
    arguments.add_argument("--only", choices=["devices"], help="leave out the machine, too")
    checking = commands.add_parser(
        "doctor", help="print what was found, what is missing and what to do", epilog=_DOCTOR_STATUS
    )
    what = checking.add_mutually_exclusive_group()
    what.add_argument("config", type=Path, nargs="?", help="look at this configuration, too")
    what.add_argument("--qemu", type=int, metavar="PID", help="look at the command line of a running QEMU instead")
    what.add_argument(
        "--command", dest="file", metavar="FILE", help="the same for one in a file or libvirt log; - is stdin"
    )
    return parser


def _add_runtime_dir(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--runtime-dir", type=Path, help=f"{text}; default: $RUNTIME_DIRECTORY, which systemd sets")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _announce(line: str) -> None:
    print(line, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 for a failure, 2 for wrong input."""
    given = sys.argv[1:] if argv is None else argv
    try:
        if given[:1] == ["ctl"]:
            return ctl(given[1:])
        arguments = _parser().parse_args(given)
        return COMMANDS[arguments.command](arguments)
    except (ConfigError, PartsError) as error:
        _say(f"vdev: {error}")
        return 2
    except VdevError as error:
        _say(f"vdev: {error}")
        return 1


def _serve(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=arguments.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    faulthandler.enable(file=sys.__stderr__ or 2)  # a line for SIGBUS: see vm.unsealed_ram
    config = with_trace(with_plan(load_config(arguments.config), arguments.faults), arguments.trace)
    directory = _runtime_dir(arguments.runtime_dir)
    return asyncio.run(serve(config, directory, announce=_announce, exit_with_vm=arguments.exit_with_vm))


def _qemu_args(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config)
    directory = str(_runtime_dir(arguments.runtime_dir).absolute())
    # libvirt makes machine and RAM from the rest of the domain.
    machine = arguments.only is None and arguments.format != "libvirt"
    memory = machine and not arguments.no_memory
    print(FORMATS[arguments.format](launcher_arguments(config, directory, memory=memory, machine=machine)))
    if not memory:
        for line in memory_advice(config):
            _say(f"vdev: {line}")
    return 0


def _runtime_dir(given: Path | None) -> Path:
    if given is not None:
        return given
    directory = os.environ.get("RUNTIME_DIRECTORY", "")
    if not directory:
        raise ConfigError(
            "--runtime-dir", "is missing, and RUNTIME_DIRECTORY is not set", "give a directory, such as /tmp/vm1"
        )
    if ":" in directory:
        raise ConfigError("RUNTIME_DIRECTORY", f"{directory} is more than one directory", "give one with --runtime-dir")
    return Path(directory)


def _doctor(arguments: argparse.Namespace) -> int:
    if arguments.qemu is not None:
        return doctor_process(arguments.qemu, _say)
    if arguments.file is not None:
        return doctor_file(arguments.file, _say)
    if arguments.config is None:
        return doctor(_say)
    config = load_config(arguments.config)
    for warning in config_warnings(config):
        _say(f"   note  {warning}")
    command = qemu_arguments(config, MachinePaths.in_directory("/run/vdev", "kernel", None), "tcg")
    broken = report(check_command(parse_command(["qemu", *command])), str(arguments.config), _say)
    return max(broken, doctor(_say))


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "serve": _serve,
    "authority": authority.run,
    "trace": trace_cli.run,
    "qemu-args": _qemu_args,
    "doctor": _doctor,
}


if __name__ == "__main__":
    sys.exit(main())
