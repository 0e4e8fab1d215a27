"""A machine whose guest is booted and saved without our functions, and restored with them.

QEMU cannot save our functions, but a guest that never saw them can be saved, and looks for them anew once restored. A
function over vfio-user is on the restored QEMU's command line. One over vhost-user is plugged in afterwards, because
QEMU refuses incoming state while that device is there; so each unit has a spare root port, whichever way it attaches:
one saved guest serves both. There is no VIOT: the guest's drivers read it at boot only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from vdev.config import Config, UnitConfig
from vdev.qemu.machine import (
    MachinePaths,
    base_arguments,
    boot_arguments,
    expected_functions,
    functions_of,
    own_buses,
    root_port,
    socket_path,
    vfio_user_function,
    vhost_user_unit,
)

# Else the kernel's own hot-plug driver powers empty ports down and waits for buttons.
APPEND = "pcie_ports=compat"


@dataclass(frozen=True, slots=True)
class LateUnit:
    """The arguments of `chardev-add` and of `device_add` for a unit over vhost-user."""

    chardev: dict[str, object]
    device: dict[str, object]


def source_arguments(config: Config, paths: MachinePaths, accel: str) -> list[str]:
    """QEMU's arguments for the machine that is booted and saved: no function of ours, and no socket of one."""
    return _arguments(config, paths, accel, [])


def restored_arguments(config: Config, paths: MachinePaths, accel: str) -> list[str]:
    """QEMU's arguments for the machine that takes in the saved state, by `migrate-incoming`. Raises ConfigError."""
    late = [unit for unit in config.units if unit.attach == "vhost-user"]
    functions: list[str] = []
    for item in functions_of(config):
        if item not in late:
            functions += ["-device", vfio_user_function(item, paths.socket_dir)]
    return [*_arguments(config, paths, accel, functions), "-incoming", "defer"]


def late_units(config: Config, socket_dir: str) -> Iterator[LateUnit]:
    """The units that are plugged in after the state has come in. Raises ConfigError for a path too long."""
    for bus, unit in _spare_buses(config):
        if unit.attach == "vhost-user":
            address = {"type": "unix", "data": {"path": socket_path(socket_dir, unit.name)}}
            backend = {"type": "socket", "data": {"addr": address, "server": False}}
            device = vhost_user_unit(unit) | {"bus": f"vdev.port{bus}", "addr": "0"}
            yield LateUnit({"id": f"vdev.{unit.name}", "backend": backend}, device)


def restored_functions(config: Config) -> dict[str, int]:
    """Name -> PCI address of every function in the restored machine: endpoints keep theirs, so their ids hold."""
    moved = {unit.name: bus << 8 for bus, unit in _spare_buses(config) if unit.attach == "vhost-user"}
    return expected_functions(config) | moved


def _spare_buses(config: Config) -> Iterator[tuple[int, UnitConfig]]:
    yield from enumerate(config.units, own_buses(config) + 1)


def _arguments(config: Config, paths: MachinePaths, accel: str, functions: list[str]) -> list[str]:
    config = msgspec.structs.replace(
        config, vm=msgspec.structs.replace(config.vm, append=f"{APPEND} {config.vm.append}")
    )
    count = own_buses(config) + len(config.units)
    ports = [word for bus in range(1, count + 1) for word in ("-device", root_port(bus, count))]
    base = base_arguments(config, paths, accel)
    return [*base, *ports, *functions, *boot_arguments(config, paths), *config.vm.extra_args]
