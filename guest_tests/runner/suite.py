"""What guest-suite.yaml says: on which machines the tests of its directory run. Pure but for reading the files.

The file marks its directory, and all below it, as tests that run in a guest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from vdev.config import ATTACHMENTS, Attach, Config, config_from, load_config
from vdev.config.text import convert, parse_yaml
from vdev.errors import ConfigError

FILE = "guest-suite.yaml"
Driver = Literal["none", "stock"]
Tier = Literal["normal", "soak"]
MIN_TIMEOUT_S = 1.0
_EXAMPLES = {
    "machines": "give a list such as - config: machine.yaml",
    "config": "the path of a vdev configuration, or a configuration itself",
    "attach": "give a list such as [vfio-user, vhost-user]",
    "kernels": "give a list such as [cloud, cloud-backports]",
    "timeout": "seconds, such as 30",
}


class MachineEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One item of `machines`; with several attachments or kernels it stands for several machines."""

    config: str | dict[str, Any]  # a path relative to the file, or the configuration itself
    name: str = ""  # told apart by it in the tests' ids
    attach: tuple[Attach, ...] = ()  # instead of what the configuration says
    kernels: tuple[str, ...] = ()  # instead of vm.kernel
    append: str = ""  # after vm.append
    # none: no driver of ours is loaded, tests drive the functions; stock: booted with VIOT, virtio_iommu and VFIO
    driver: Driver = "none"
    modules: tuple[str, ...] = ()  # loaded as well
    tier: Tier = "normal"  # soak: this machine is there under VDEV_TIER=soak only


class SuiteFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    machines: tuple[MachineEntry, ...]
    timeout: float = 60.0  # seconds one test may take


@dataclass(frozen=True)
class Machine:
    """One machine tests run on. `id` tells it from the others of its suite."""

    id: str
    suite: Path  # the directory
    config: Config
    driver: Driver
    attach: Attach | None
    kernel: str | None
    append: str
    modules: tuple[str, ...]
    tier: Tier  # what this session runs, not what the file says

    @property
    def key(self) -> tuple[Path, str]:
        """What it is found by among running guests."""
        return self.suite, self.id

    def facts(self) -> dict[str, Any]:
        """What the guest's fixture `machine` tells the tests."""
        units = [msgspec.structs.replace(unit, attach=self.attach or unit.attach) for unit in self.config.units]
        return {
            "name": self.id,
            "driver": self.driver,
            "append": self.append,
            "tier": self.tier,
            "attach": units[0].attach,
            "units": msgspec.to_builtins(units),
            "endpoints": msgspec.to_builtins(self.config.endpoints),
        }


@dataclass(frozen=True)
class Suite:
    """A directory of guest tests."""

    root: Path
    machines: tuple[Machine, ...]
    timeout: float


def load_suite(root: Path, kernels: tuple[str, ...] = (), tier: Tier = "normal") -> Suite:
    """The suite of the directory `root`; `kernels` replace those it names, and machines that then are the same are one.

    Raises ConfigError, naming the file.
    """
    path = root / FILE
    try:
        file = convert(parse_yaml(path.read_text(encoding="utf-8")), SuiteFile, _EXAMPLES)
        machines: list[Machine] = []
        for entry in file.machines:
            if tier in (entry.tier, "soak"):
                found = _machines(root, entry, kernels, tier)
                machines += [machine for machine in found if not kernels or machine not in machines]
        _check(file, machines)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}", "make it readable UTF-8") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.key}", error.problem, error.cure) from None
    return Suite(root, tuple(machines), file.timeout)


def _check(file: SuiteFile, machines: list[Machine]) -> None:
    if not machines:
        raise ConfigError("machines", "the list is empty", _EXAMPLES["machines"])
    if not file.timeout >= MIN_TIMEOUT_S:
        raise ConfigError("timeout", f"{file.timeout} is below {MIN_TIMEOUT_S:.0f} s", _EXAMPLES["timeout"])
    ids = [machine.id for machine in machines]
    twice = next((name for name in ids if ids.count(name) > 1), None)
    if twice is not None:
        raise ConfigError("machines", f"two machines are called {twice!r}", "give each a name of its own")


def _machines(root: Path, entry: MachineEntry, kernels: tuple[str, ...], tier: Tier) -> Iterator[Machine]:
    config = _config(root, entry.config)
    for attach in dict.fromkeys(entry.attach) or (None,):
        for kernel in kernels or entry.kernels or (None,):
            words = [entry.name, attach or _attachment(config), kernel if kernel != "cloud" else None]
            yield Machine(
                id="-".join(Path(word).name for word in words if word),
                suite=root,
                config=config,
                driver=entry.driver,
                attach=attach,
                kernel=kernel,
                append=entry.append,
                modules=entry.modules,
                tier=tier,
            )


def _attachment(config: Config) -> str:
    ways = {unit.attach for unit in config.units}
    return next(iter(ways)) if len(ways) == 1 else "-and-".join(way for way in ATTACHMENTS if way in ways)


def _config(root: Path, given: str | dict[str, Any]) -> Config:
    if isinstance(given, str):
        return load_config(root / given)
    return config_from(given, "config")
