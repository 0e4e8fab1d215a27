"""`make demo`: a stock guest's DMA through vdev, step by step in plain words, and a verdict.

Exit status: 0 everything passed, 1 something failed (the cause is shown), 2 the configuration is wrong, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from guest_tests import report
from guest_tests.boot import boot
from guest_tests.report import Painter, Run
from qmp_bridge.plan import Options, find_parts
from qmp_bridge.vm_options import add_vm_options, apply_vm_options, file_for_backend
from vdev.config import boot_kernel, load_config
from vdev.config.schema import ATTACHMENTS
from vdev.errors import ConfigError, VdevError

DEFAULT_CONFIG = Path(__file__).parent.parent / "configs" / "first-light.yaml"
ENVIRONMENT = ("attach", "kernel", "initrd", "memory", "cpus")  # options that make passes on, in capitals
INTRODUCTION = """\
A stock Linux guest boots on an unmodified QEMU. Its IOMMU and the accelerator behind it are Python: the vdev process
on this machine. Inside the guest the stock virtio_iommu driver and VFIO decide what the accelerator may reach.
"""


class Screen:
    """Writes lines at once, and shows messages of the guest as they come."""

    def __init__(self, painter: Painter) -> None:
        self.painter = painter
        self._started = time.monotonic()

    def say(self, line: str) -> None:
        """One line of what is going on on this side, with the seconds since the start."""
        seconds = time.monotonic() - self._started
        self.write([self.painter.paint(f"[{seconds:5.1f} s] {line}", report.DIM)])

    def write(self, lines: Sequence[str]) -> None:
        """Whole lines, flushed."""
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()

    def show(self, message: dict[str, Any], faults: list[dict[str, Any]]) -> None:
        """What a message of the guest looks like."""
        if "hello" in message:
            self.say(f"the guest is up: Linux {message['kernel']}, {len(message['checks'])} checks to do")
            self.write([""])
        elif "starting" in message:
            self.write([report.started(message)])
        elif "check" in message:
            self.write(report.finished(message, faults, self.painter))


def command_line(module: str, about: str, keys: Sequence[str] = ENVIRONMENT) -> argparse.ArgumentParser:
    """The options demo and shell share; KERNEL in the environment is the default of --kernel, and so on for `keys`."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about.splitlines()[0])
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help="YAML file of the VM (default: %(default)s)"
    )
    parser.add_argument("--attach", choices=ATTACHMENTS, help="how the IOMMU reaches QEMU, instead of the config's")
    parser.add_argument(
        "--trace", metavar="FILE", help="write vdev's decoded trace there (read it with `vdev trace FILE`)"
    )
    add_vm_options(parser, {key: value for key in keys if (value := os.environ.get(key.upper()))})
    return parser


def demonstrate(arguments: argparse.Namespace, screen: Screen) -> Run:
    """Find the parts, boot, show, and hand back what happened. Raises ConfigError and PartsError."""
    started = time.monotonic()
    config = apply_vm_options(load_config(arguments.config), arguments)
    if boot_kernel(config.vm) is None:
        raise ConfigError("vm.kernel", "the demo needs a kernel of QEMU's loading", "use make shell for a disk")
    options = Options(
        attach=arguments.attach,
        trace=arguments.trace and str(Path(arguments.trace).absolute()),
        config_path=file_for_backend(arguments),
        say=screen.say,
    )
    # Before the event loop starts: this may download for minutes, and Ctrl-C must end it at once.
    options = replace(options, parts=find_parts(config, options))
    screen.say("starting vdev and QEMU")
    run = asyncio.run(boot(config, options, screen.show))
    run.seconds = time.monotonic() - started
    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo."""
    arguments = command_line("guest_tests.demo", __doc__ or "").parse_args(argv)
    screen = Screen(Painter(sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    screen.write([INTRODUCTION])
    try:
        run = demonstrate(arguments, screen)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except VdevError as error:
        screen.write(["", f"FAILED: {error}"])
        return 1
    except KeyboardInterrupt:
        screen.write(["", "stopped"])
        return 130
    screen.write(report.summary(run, screen.painter))
    if not run.ok:
        screen.write(report.failure(run))
    return 0 if run.ok else 1


if __name__ == "__main__":
    sys.exit(main())
