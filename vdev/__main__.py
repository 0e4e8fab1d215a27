"""`vdev`: serve a configuration, or say whether this machine can run one."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import sys
from pathlib import Path

from vdev import __version__
from vdev.app import serve
from vdev.config import load_config
from vdev.control import trace_cli
from vdev.errors import ConfigError, PartsError, VdevError
from vdev.parts.doctor import doctor
from vdev.tracing import with_trace


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vdev", description=__doc__)
    parser.add_argument("--version", action="version", version=f"vdev {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve", help="serve the IOMMU and the endpoints of one VM until stopped")
    serving.add_argument("config", type=Path, help="the YAML file")
    serving.add_argument("--runtime-dir", type=Path, required=True, help="directory (0700) the sockets are made in")
    serving.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    serving.add_argument(
        "--exit-with-vm",
        action="store_true",
        help="stop when the VM's process has ended (launchers that may be killed)",
    )
    serving.add_argument("--trace", metavar="FILE", help="record the decoded trace; the word memory: in memory only")
    tracing = commands.add_parser("trace", help="show a running VM's decoded trace, or one from a file")
    trace_cli.add_arguments(tracing)
    commands.add_parser("doctor", help="print what was found, what is missing and what to do")
    return parser


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _announce(line: str) -> None:
    print(line, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 for a failure, 2 for wrong input."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "doctor":
            return doctor(_say)
        if arguments.command == "trace":
            return trace_cli.run(arguments)
        logging.basicConfig(
            level=arguments.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
        )
        faulthandler.enable(file=sys.__stderr__ or 2)  # a line for SIGBUS: see vm.unsealed_ram
        config = with_trace(load_config(arguments.config), arguments.trace)
        return asyncio.run(
            serve(config, arguments.runtime_dir, announce=_announce, exit_with_vm=arguments.exit_with_vm)
        )
    except (ConfigError, PartsError) as error:
        _say(f"vdev: {error}")
        return 2
    except VdevError as error:
        _say(f"vdev: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
