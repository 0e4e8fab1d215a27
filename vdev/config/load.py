"""The user's YAML, parsed once into frozen typed objects; errors name the key path, the rule and the cure.

`load_config` checks a file against itself, not against the host: whether a QEMU or a kernel exists is known to
`vdev.parts` alone, and which options a model takes to the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from vdev.config.checks import check_config
from vdev.config.faults import check_plan
from vdev.config.pasids import pasid_warnings
from vdev.config.schema import Config, FaultsConfig
from vdev.config.text import convert, parse_size, parse_yaml
from vdev.errors import ConfigError

GUEST_PAGE_SIZE = 4096
EXAMPLES = {  # cures for values of the wrong type, by key
    "units": "give a list such as - name: iommu0", "endpoints": "give a list such as - name: accel0",
    "slots": "give a list such as - bdf: 02:00.0",
    "name": "such as name: accel0", "bdf": "write BUS:SLOT.FUNCTION in hexadecimal, such as 01:00.0",
    "memory": "such as 512M", "granule": "such as 4K", "input_range": "such as [0, 0x7fffffffff], both inclusive",
    "domain_range": "such as [0, 0xffff], both inclusive", "extra_args": "such as [-device, virtio-rng-pci]",
    "reserved": "give a list such as - {start: 0x1000, end: 0x1fff}", "options": "such as devmem: 1M",
    "owner": "a user, such as libvirt-qemu or 64055", "group": "a group, such as kvm or 104",
    "pasids": "such as pasids: {}, which takes what is usual", "reserved_pasids": 'give a list such as ["0x1..0xf"]',
    "mode": 'of the directory, such as "0750"', "start": "the first address", "end": "the last address, inclusive",
    "faults": "give rules, such as {rules: [{at: request, do: drop}]}", "seed": "a number, such as 7",
    "rules": "give a list such as - {at: request, do: drop}",
}  # fmt: skip


def load_config(path: Path) -> Config:
    """The checked configuration in the file `path`; raises ConfigError, whose key begins with the file's name."""
    return parse_config(read_text(path), path.name)


def read_text(path: Path) -> str:
    """What the file `path` holds; ConfigError with the path where it cannot be read or is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}", "give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"is not text: {error.reason} at byte {error.start}", "save it as UTF-8") from None


def parse_config(text: str, name: str) -> Config:
    """The checked configuration in `text`; `name` is what errors call it. Raises ConfigError."""
    with named(name):
        return _checked(parse_yaml(text))


def config_from(data: object, name: str) -> Config:
    """The checked configuration that plain `data` says, such as a part of another file. Raises ConfigError."""
    with named(name):
        return _checked(data)


def load_plan(path: Path) -> FaultsConfig:
    """The fault plan in the file `path`, its shape checked; raises ConfigError, whose key begins with the file's name.

    What its rules mean is checked by whoever carries them out.
    """
    with named(path.name):
        plan = convert(parse_yaml(read_text(path)), FaultsConfig, EXAMPLES)
        check_plan(plan)
        return plan


def with_plan(config: Config, path: Path | None) -> Config:
    """`config` with the plan in the file `path` behind its own, whose seed wins; None leaves it. Raises ConfigError."""
    if path is None:
        return config
    own, more = config.faults or FaultsConfig(), load_plan(path)
    seed = own.seed if more.seed is None else more.seed
    return msgspec.structs.replace(config, faults=FaultsConfig(seed=seed, rules=own.rules + more.rules))


@contextmanager
def named(name: str) -> Iterator[None]:
    """Errors of the block begin with `name`, which is a file's."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error.key}", error.problem, error.cure) from None


def _checked(data: object) -> Config:
    config = convert(data, Config, EXAMPLES)
    check_config(config)
    return config


def override_vm(config: Config, changes: Mapping[str, object]) -> Config:
    """`config` with other values for keys of `vm`, checked anew. Raises ConfigError."""
    if not changes:
        return config
    vm = convert({"vm": {**msgspec.to_builtins(config.vm), **changes}, "units": [{"name": "any"}]}, Config, EXAMPLES).vm
    config = msgspec.structs.replace(config, vm=vm)
    check_config(config)
    return config


def config_warnings(config: Config) -> list[str]:
    """What is legal and yet will surprise a stock Linux guest, or the user, one line each."""
    warnings: list[str] = []
    if config.vm.unsealed_ram == "allow":
        warnings.append(
            "vm.unsealed_ram: allow: a RAM file that shrinks while it is mapped kills this process (SIGBUS)"
        )
    if config.vm.isolation == "off":
        warnings.append(
            "vm.isolation: off: every endpoint reaches all of guest memory until the guest's driver stops it"
        )
    warnings += pasid_warnings(config)
    if config.vm.isolation == "required" and any(word.lstrip("-") == "device" for word in config.vm.extra_args):
        warnings.append(
            "vm.extra_args: devices of QEMU's own are behind no unit: isolation: required is not about them"
        )
    for unit in config.units:
        key = f"units[{unit.name}]"
        if parse_size(unit.granule) > GUEST_PAGE_SIZE:
            warnings.append(
                f"{key}.granule: {unit.granule} is above the guest's page of 4K: Linux will refuse to attach"
            )
        if unit.domain_range[0] != 0:
            warnings.append(f"{key}.domain_range: Linux 7 detaches from domain 0 whatever the range starts with")
        if not any(region.kind == "msi" for region in unit.reserved):
            warnings.append(f"{key}.reserved: without the MSI region at 0xfee00000 interrupts of x86 endpoints fault")
    return warnings
