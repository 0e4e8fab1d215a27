"""The user's YAML, parsed once into frozen typed objects; errors name the key path, the rule and the cure.

`load_config` checks a file against itself, not against the host: whether a QEMU or a kernel exists is known to
`vdev.parts` alone, and which options a model takes to the model.

Where things sit on bus 00: 00 and 1f are the chipset's, 01 is our virtio-serial's, 02-0f hold the root ports (one per
endpoint on a bus of its own), 10-1e are free for IOMMU units and for endpoints without a root port.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import msgspec

from vdev.config_text import WHOLE, closest, format_bdf, parse_bdf, parse_size, parse_yaml
from vdev.errors import ConfigError

__all__ = [
    "ROOT_PORT_SLOTS", "SERIAL_SLOT", "Config", "EndpointConfig", "Limits", "Reserved", "UnitConfig", "VmConfig",
    "config_warnings", "format_bdf", "load_config", "parse_bdf", "parse_config", "parse_size",
]  # fmt: skip

SERIAL_SLOT = 0x01
ROOT_PORT_SLOTS = range(0x02, 0x10)
FREE_SLOTS = range(0x10, 0x1F)
MAX_ROOT_PORTS = len(ROOT_PORT_SLOTS) * 8
RESV_MEM_NBYTES = 24  # of one RESV_MEM property in the answer to PROBE
PROBE_FIXED_NBYTES = 72 + 4  # of a PROBE request without its properties
MAX_PROBE_SIZE = 1 << 16
MIN_MEMORY, MAX_MEMORY = 128 << 20, 1 << 40
GUEST_PAGE_SIZE = 4096
MAX_CPUS = 64
KERNEL_NAMES = ["cloud", "generic", "cloud-backports", "generic-backports"]
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}", re.ASCII)
_TAKEN_NAMES = ["channel", "console", "control", "monitor", "qmp"]  # sockets beside those of the functions
_OPTIONS_OF_OURS = {  # QEMU's, and where the same is said in a configuration
    "m": "use vm.memory", "smp": "use vm.cpus", "accel": "use vm.accel", "enable-kvm": "use vm.accel",
    "kernel": "use vm.kernel", "initrd": "use vm.initrd", "append": "use vm.append", "machine": "leave it out",
    "M": "leave it out", "daemonize": "leave it out",
}  # fmt: skip
_IOMMU_OF_QEMU = re.compile(r"\b(?:virtio|intel|amd)-iommu\b", re.ASCII)


class Reserved(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A RESV_MEM region; `start`..`end` inclusive as in the specification's words."""

    start: int
    end: int
    kind: Literal["msi", "reserved"] = "reserved"


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Caps on what one guest can grow; every one of them answers NOMEM (events: dropped and counted)."""

    max_domains: int = 65536
    max_mappings_per_domain: int = 1 << 20
    max_mappings: int = 1 << 21
    max_pending_faults: int = 1024
    max_request_nbytes: int = 65536


class UnitConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One virtio-iommu unit."""

    name: str
    bdf: str = "00:10.0"
    attach: Literal["vfio-user"] = "vfio-user"
    mode: Literal["compat", "strict"] = "compat"
    granule: int | str = "4K"  # lowest set bit of page_size_mask; 1 is legal
    input_range: tuple[int, int] = (0, (1 << 39) - 1)  # inclusive
    domain_range: tuple[int, int] = (0, (1 << 32) - 1)  # inclusive
    bypass: Literal["on", "off", "not-offered"] = "on"  # boot value of the bypass byte; not-offered hides BYPASS_CONFIG
    mmio: bool = True
    probe_size: int = 512
    reserved: tuple[Reserved, ...] = (Reserved(start=0xFEE00000, end=0xFEEFFFFF, kind="msi"),)
    limits: Limits = Limits()


class EndpointConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One PCI endpoint behind a unit. A bus above 0 means an own pcie-root-port on pcie.0."""

    name: str
    model: str = "accelerator"
    unit: str = "iommu0"
    bdf: str = "01:00.0"
    reserved: tuple[Reserved, ...] = ()
    options: dict[str, int | str | bool] = {}


class VmConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The machine QEMU emulates."""

    name: str = "vm"
    memory: str = "512M"
    cpus: int = 1
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    qemu: str | None = None  # path of the QEMU to use; None: the system's if fit, else the packaged one
    kernel: str = "cloud"  # cloud | generic | cloud-backports | generic-backports | a path
    initrd: str | None = None
    append: str = ""
    boot_timeout: float = 180.0
    identity: Literal["peer", "unchecked"] = "peer"
    extra_args: tuple[str, ...] = ()


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole file."""

    vm: VmConfig = VmConfig()
    units: tuple[UnitConfig, ...]
    endpoints: tuple[EndpointConfig, ...] = ()


def load_config(path: Path) -> Config:
    """The checked configuration in the file `path`; raises ConfigError, whose key begins with the file's name."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}", "give the path of a YAML file in UTF-8") from None
    return parse_config(text, path.name)


def parse_config(text: str, name: str) -> Config:
    """The checked configuration in `text`; `name` is what errors call it. Raises ConfigError."""
    try:
        config = _convert(parse_yaml(text))
        for check in (_check_vm, _check_names, _check_units, _check_addresses, _check_reserved):
            check(config)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error.key}", error.problem, error.cure) from None
    return config


def config_warnings(config: Config) -> list[str]:
    """What is legal and yet will surprise a stock Linux guest, one line each."""
    warnings: list[str] = []
    for index, unit in enumerate(config.units):
        key = f"units[{index}]"
        if parse_size(unit.granule) > GUEST_PAGE_SIZE:
            warnings.append(
                f"{key}.granule: {unit.granule} is above the guest's page of 4K: Linux will refuse to attach"
            )
        if unit.domain_range[0] != 0:
            warnings.append(f"{key}.domain_range: Linux 7 detaches from domain 0 whatever the range starts with")
        if not any(region.kind == "msi" for region in unit.reserved):
            warnings.append(f"{key}.reserved: without the MSI region at 0xfee00000 interrupts of x86 endpoints fault")
    return warnings


def _convert(data: Any) -> Config:
    try:
        return msgspec.convert(data, Config)
    except msgspec.ValidationError as error:
        problem, _, at = str(error).partition(" - at ")
        path = at.strip("`").removeprefix("$").removeprefix(".")
        unknown = re.search(r"unknown field `(.*)`", problem)
        if unknown:
            fields = _fields_at(path)
            key = f"{path}.{unknown[1]}" if path else unknown[1]
            raise ConfigError(key, "there is no such key", closest(unknown[1], fields)) from None
        raise ConfigError(path or WHOLE, problem[0].lower() + problem[1:] + _value_at(data, path)) from None


def _fields_at(path: str) -> list[str]:
    """The keys allowed at `path`, by the last name in it."""
    types: dict[str, type[msgspec.Struct]] = {
        "": Config, "vm": VmConfig, "units": UnitConfig, "endpoints": EndpointConfig, "limits": Limits,
        "reserved": Reserved,
    }  # fmt: skip
    last = re.sub(r"\[.*?\]", "", path).rpartition(".")[2]
    return list(types[last].__struct_fields__)


def _value_at(data: Any, path: str) -> str:
    """ ", not VALUE" for a scalar at `path`; empty where the path does not lead to one."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            data = data[int(index) if index else name]
        except (KeyError, IndexError, TypeError):
            return ""
    return f", from {data!r}" if isinstance(data, str | int | float) else ""


def _require(holds: bool, key: str, problem: str, cure: str) -> None:
    if not holds:
        raise ConfigError(key, problem, cure)


def _check_vm(config: Config) -> None:
    vm = config.vm
    _check_name("vm.name", vm.name)
    memory = parse_size(vm.memory, "vm.memory")
    _require(
        MIN_MEMORY <= memory <= MAX_MEMORY and memory % (1 << 20) == 0,
        "vm.memory", f"{vm.memory} is not a whole number of MiB from 128M to 1T", "a Debian guest is happy with 512M",
    )  # fmt: skip
    _require(1 <= vm.cpus <= MAX_CPUS, "vm.cpus", f"{vm.cpus} is not in 1..{MAX_CPUS}", "1 is right for most tests")
    _require(
        isfinite(vm.boot_timeout) and vm.boot_timeout > 0,
        "vm.boot_timeout", f"{vm.boot_timeout} is not a time", "give seconds above 0, such as 180",
    )  # fmt: skip
    if vm.kernel not in KERNEL_NAMES and "/" not in vm.kernel:
        cure = closest(vm.kernel, KERNEL_NAMES) + "; a path has a / in it"
        raise ConfigError("vm.kernel", f"{vm.kernel!r} is neither a flavour nor a path", cure)
    for index, argument in enumerate(vm.extra_args):
        cure = _OPTIONS_OF_OURS.get(argument.lstrip("-"), "") if argument.startswith("-") else ""
        key = f"vm.extra_args[{index}]"
        _require(not cure, key, f"{argument} is decided by vdev (guest RAM must stay shared, for one)", cure)
        foreign = _IOMMU_OF_QEMU.search(argument) is not None
        _require(not foreign, key, f"{argument!r} adds QEMU's own IOMMU", "vdev is the IOMMU: leave it out")


def _check_names(config: Config) -> None:
    seen: dict[str, str] = {}
    for key, item in _functions(config):
        _check_name(f"{key}.name", item.name)
        _require(item.name not in seen, f"{key}.name", f"{item.name!r} is also {seen.get(item.name)}", "rename one")
        seen[item.name] = key
    _require(bool(config.units), "units", "the list is empty", "give one unit, such as - name: iommu0")
    units = [unit.name for unit in config.units]
    for index, endpoint in enumerate(config.endpoints):
        if endpoint.unit not in units:
            problem = f"there is no unit {endpoint.unit!r}"
            raise ConfigError(f"endpoints[{index}].unit", problem, closest(endpoint.unit, units))


def _check_name(key: str, name: str) -> None:
    rule = "a letter, then up to 30 of a-z, 0-9 and -"
    _require(_NAME.fullmatch(name) is not None, key, f"{name!r} is not a name", f"use {rule}: files are called by it")
    _require(name not in _TAKEN_NAMES, key, f"{name!r} is one of vdev's own sockets", "choose another name")


def _functions(config: Config) -> Iterator[tuple[str, UnitConfig | EndpointConfig]]:
    for index, unit in enumerate(config.units):
        yield f"units[{index}]", unit
    for index, endpoint in enumerate(config.endpoints):
        yield f"endpoints[{index}]", endpoint


def _check_units(config: Config) -> None:
    for index, unit in enumerate(config.units):
        key = f"units[{index}]"
        granule = parse_size(unit.granule, f"{key}.granule")
        problem = f"{unit.granule} is not a power of two below 2^63"
        _require(granule.bit_count() == 1 and granule < 1 << 63, f"{key}.granule", problem, "4K is the guest's page")
        _check_range(f"{key}.input_range", unit.input_range, bits=64, granule=granule)
        _check_range(f"{key}.domain_range", unit.domain_range, bits=32, granule=1)
        limits = unit.limits
        for name in limits.__struct_fields__:
            value = getattr(limits, name)
            _require(value >= 1, f"{key}.limits.{name}", f"{value} is below 1", "leave it out for the default")
        needed = PROBE_FIXED_NBYTES + unit.probe_size
        _require(
            limits.max_request_nbytes >= needed, f"{key}.limits.max_request_nbytes",
            f"{limits.max_request_nbytes} cannot hold a PROBE of {needed} bytes", f"give at least {needed}",
        )  # fmt: skip


def _check_range(key: str, ends: tuple[int, int], *, bits: int, granule: int) -> None:
    start, end = ends
    top = (1 << bits) - 1
    shown = f"[{start:#x}, {end:#x}]"
    _require(0 <= start <= end <= top, key, f"{shown} does not rise within [0, {top:#x}]", "the end is inclusive")
    _require(
        start % granule == 0 and (end + 1) % granule == 0, key, f"{shown} does not start and stop on the granule",
        f"the start is a multiple of {granule:#x}, the (inclusive) end one less than a multiple",
    )  # fmt: skip


def _check_addresses(config: Config) -> None:
    owners: dict[int, str] = {}
    ports: list[tuple[int, str]] = []
    for key, item in _functions(config):
        bdf = parse_bdf(item.bdf, f"{key}.bdf")
        owner = owners.setdefault(bdf, key)
        _require(owner == key, f"{key}.bdf", f"{item.bdf} is already the address of {owner}", "give it one of its own")
        if bdf >> 8 == 0:
            _check_root_bus(f"{key}.bdf", bdf)
        elif key.startswith("units"):
            problem = f"{item.bdf} is not on bus 00"
            raise ConfigError(f"{key}.bdf", problem, "an IOMMU sits on the root bus, such as 00:10.0")
        else:
            ports.append((bdf, f"{key}.bdf"))
    _require(
        len(ports) <= MAX_ROOT_PORTS, "endpoints", f"{len(ports)} buses are needed, {MAX_ROOT_PORTS} are possible",
        "put some endpoints on bus 00",
    )  # fmt: skip
    for expected, (bdf, key) in enumerate(sorted(ports), start=1):
        _require(
            bdf == expected << 8, key, f"{format_bdf(bdf)} should be {format_bdf(expected << 8)}",
            "endpoint buses go 01, 02, ... without a gap, each with one function 00.0: firmware numbers them so",
        )  # fmt: skip


def _check_root_bus(key: str, bdf: int) -> None:
    slot = bdf >> 3
    cure = f"use function 0 of a slot from {FREE_SLOTS[0]:02x} to {FREE_SLOTS[-1]:02x}"
    owner = (
        "the root ports'" if slot in ROOT_PORT_SLOTS else "virtio-serial's" if slot == SERIAL_SLOT else "the chipset's"
    )
    _require(slot in FREE_SLOTS, key, f"{format_bdf(bdf)}: this slot is {owner}", cure)
    _require(bdf & 7 == 0, key, f"{format_bdf(bdf)} is not function 0", cure)


def _check_reserved(config: Config) -> None:
    units = {unit.name: (f"units[{index}]", unit) for index, unit in enumerate(config.units)}
    for key, item in _functions(config):
        unit_key, unit = (key, item) if isinstance(item, UnitConfig) else units[item.unit]
        granule = parse_size(unit.granule)
        regions = [(region, f"{key}.reserved[{index}]") for index, region in enumerate(item.reserved)]
        for region, where in regions:
            _check_range(where, (region.start, region.end), bits=64, granule=granule)
        if unit is not item:
            regions += [(region, f"{unit_key}.reserved[{index}]") for index, region in enumerate(unit.reserved)]
        regions.sort(key=lambda pair: pair[0].start)
        for (one, _), (two, where) in pairwise(regions):
            _require(two.start > one.end, where, f"overlaps the region ending at {one.end:#x}", "make them apart")
        needed = RESV_MEM_NBYTES * len(regions)
        _require(
            needed <= unit.probe_size <= MAX_PROBE_SIZE and unit.probe_size % 4 == 0, f"{unit_key}.probe_size",
            f"{unit.probe_size} is not a multiple of 4 from {needed} to {MAX_PROBE_SIZE}",
            f"{key} answers PROBE with {len(regions)} regions of {RESV_MEM_NBYTES} bytes; 512 is usual",
        )  # fmt: skip
