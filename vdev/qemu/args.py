"""QEMU's arguments for a person's own launcher: the machine, its RAM, our functions and the VIOT table, and no more.

Kernel, disks, console, monitors, CPUs and accelerator are the launcher's. Pure; `vdev qemu-args` prints it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from xml.sax.saxutils import quoteattr

from vdev.config import Config, parse_size
from vdev.errors import ConfigError
from vdev.qemu.machine import VIOT_NAME, device_arguments, machine_arguments

LIBVIRT_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
LIBVIRT_MEMORY = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"


def launcher_arguments(config: Config, runtime_dir: str, *, memory: bool = True, machine: bool = True) -> list[str]:
    """The arguments to add to an own command line; `runtime_dir` is where `vdev serve` has its sockets.

    `memory` False leaves the RAM out, `machine` False the RAM and the machine. Raises ConfigError for a path too long.
    """
    if not runtime_dir.isprintable():
        raise ConfigError("runtime directory", f"{runtime_dir!r} has characters that do not print", "use another one")
    devices = device_arguments(config, runtime_dir, f"{runtime_dir}/{VIOT_NAME}")
    if not machine:
        return devices
    return [*(machine_arguments(config) if memory else ["-machine", "q35"]), *devices]


def memory_advice(config: Config) -> list[str]:
    """What a launcher that makes the RAM itself has to do, for people."""
    size = f"{parse_size(config.vm.memory) >> 20}M"
    return [
        "the machine must be q35, and guest RAM a shared memfd, or DMA reads zeros:",
        f"  -m {size} -object memory-backend-memfd,id=ram0,size={size},share=on -machine q35,memory-backend=ram0",
        f"  libvirt: {LIBVIRT_MEMORY}",
        "vdev doctor --qemu PID looks at what came of it",
    ]


def _shell(arguments: Sequence[str]) -> str:
    return shlex.join(arguments)


def _lines(arguments: Sequence[str]) -> str:
    return "\n".join(arguments)


def _json(arguments: Sequence[str]) -> str:
    return json.dumps(arguments, indent=2)


def _libvirt(arguments: Sequence[str]) -> str:
    rows = [f"  <qemu:arg value={quoteattr(argument)}/>" for argument in arguments]
    return "\n".join([f'<qemu:commandline xmlns:qemu="{LIBVIRT_NAMESPACE}">', *rows, "</qemu:commandline>"])


# Each inverse is in the documentation: eval "set -- $(...)", mapfile -t, a JSON reader, a domain's XML.
FORMATS: dict[str, Callable[[Sequence[str]], str]] = {
    "shell": _shell, "lines": _lines, "json": _json, "libvirt": _libvirt,
}  # fmt: skip
