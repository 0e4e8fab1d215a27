"""What a configuration must satisfy beyond its types: one `_check_...` per rule, all in `check_config`.

Errors name the key path, the rule and the cure. A file is checked against itself, not against the host.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import isfinite

from vdev.config.boot import check_boot
from vdev.config.faults import check_faults
from vdev.config.isolation import check_isolation, regions_outside, unit_policy
from vdev.config.pasids import check_pasids
from vdev.config.schema import (
    FREE_SLOTS,
    ROOT_PORT_SLOTS,
    SERIAL_SLOT,
    Config,
    EndpointConfig,
    Reserved,
    SlotConfig,
    UnitConfig,
)
from vdev.config.text import closest, format_bdf, item_key, parse_bdf, parse_size
from vdev.errors import ConfigError
from vdev.trace.filter import Filter

MAX_ROOT_PORTS = len(ROOT_PORT_SLOTS) * 8
RESV_MEM_NBYTES = 24  # of one RESV_MEM property in the answer to PROBE
PROBE_FIXED_NBYTES = 72 + 4  # of a PROBE request without its properties
MAX_PROBE_SIZE = 1 << 16
MIN_MEMORY, MAX_MEMORY = 128 << 20, 1 << 40
MAX_CPUS = 64
MIN_TRACE_NBYTES, MAX_TRACE_RECORDS = 1 << 16, 1_000_000
MAX_ID = (1 << 32) - 2  # of users and groups
SOCKET_MODES = ("0700", "0750", "0770")
MAX_LIMIT = 1 << 32  # more mappings than that no host can hold
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}", re.ASCII)
_TAKEN_NAMES = [
    "channel",
    "console",
    "control",
    "monitor",
    "qemu-monitor",
    "qmp",
]  # sockets beside those of the functions
_OPTIONS_OF_OURS = {  # QEMU's, and where the same is said in a configuration
    "m": "use vm.memory", "smp": "use vm.cpus", "accel": "use vm.accel", "enable-kvm": "use vm.accel",
    "kernel": "use vm.kernel", "initrd": "use vm.initrd", "append": "use vm.append", "bios": "use vm.firmware",
    "machine": "leave it out", "M": "leave it out", "daemonize": "leave it out", "mem-path": "use vm.memory",
    "numa": "leave it out", "set": "leave it out", "readconfig": "leave it out",
}  # fmt: skip
_IOMMU_OF_QEMU = re.compile(r"\b(?:virtio|intel|amd)-iommu\b", re.ASCII)


def check_config(config: Config) -> None:
    """Raise ConfigError for the first rule that `config` breaks."""
    for check in (
        _check_vm, _check_sockets, _check_names, _check_units, check_isolation, _check_addresses, _check_reserved,
        check_pasids, _check_options, _check_trace, check_faults,
    ):  # fmt: skip
        check(config)


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
    check_boot(vm)
    for index, argument in enumerate(vm.extra_args):
        cure = _OPTIONS_OF_OURS.get(argument.lstrip("-"), "") if argument.startswith("-") else ""
        key = f"vm.extra_args[{index}]"
        _require(not cure, key, f"{argument} is decided by vdev (guest RAM must stay shared, for one)", cure)
        foreign = _IOMMU_OF_QEMU.search(argument) is not None
        _require(not foreign, key, f"{argument!r} adds QEMU's own IOMMU", "vdev is the IOMMU: leave it out")


def _check_sockets(config: Config) -> None:
    sockets = config.sockets
    for key, value in (("sockets.owner", sockets.owner), ("sockets.group", sockets.group)):
        number = value if isinstance(value, int) else None
        _require(number is None or 0 <= number <= MAX_ID, key, f"{number} is not in 0..{MAX_ID}", "or give a name")
        odd = isinstance(value, str) and (not value or value[0] in "0123456789+-")
        cure = "write it as 990, without a leading zero or quotes"
        _require(not odd, key, f"{value!r} is neither a name nor a decimal number", cure)
    mode = sockets.mode
    _require(
        mode in (None, *SOCKET_MODES), "sockets.mode", f"{mode!r} is not a mode for the directory",
        f"one of {', '.join(SOCKET_MODES)}, with its leading zero; the world never gets in",
    )  # fmt: skip
    grouped = sockets.group is not None
    _require(grouped or mode in (None, "0700"), "sockets.mode", f"{mode} is for a group", "name it: sockets.group")
    problem = f"{sockets.group!r} could not enter a directory of mode 0700"
    _require(not grouped or mode != "0700", "sockets.group", problem, 'leave mode out, or give "0750"')


def _check_names(config: Config) -> None:
    seen: dict[str, str] = {}
    lists: tuple[tuple[str, Sequence[UnitConfig | EndpointConfig]], ...] = (
        ("units", config.units), ("endpoints", config.endpoints),
    )  # fmt: skip
    for items, given in lists:
        for index, item in enumerate(given):
            key = f"{items}[{index}]"  # the name is what may be wrong
            _check_name(f"{key}.name", item.name)
            _require(item.name not in seen, f"{key}.name", f"{item.name!r} is also {seen.get(item.name)}", "rename one")
            seen[item.name] = key
    _require(bool(config.units), "units", "the list is empty", "give one unit, such as - name: iommu0")
    units = [unit.name for unit in config.units]
    named = [(f"endpoints[{endpoint.name}].unit", endpoint.unit) for endpoint in config.endpoints]
    for key, unit in [*named, *((f"slots[{index}].unit", slot.unit) for index, slot in enumerate(config.slots))]:
        if unit not in units:
            raise ConfigError(key, f"there is no unit {unit!r}", closest(unit, units))


def _check_name(key: str, name: str) -> None:
    rule = "a letter, then up to 30 of a-z, 0-9 and -"
    _require(_NAME.fullmatch(name) is not None, key, f"{name!r} is not a name", f"use {rule}: files are called by it")
    _require(name not in _TAKEN_NAMES, key, f"{name!r} is one of vdev's own sockets", "choose another name")


def _functions(config: Config) -> Iterator[tuple[str, UnitConfig | EndpointConfig]]:
    """All of ours, by the key errors call them by."""
    for index, unit in enumerate(config.units):
        yield item_key("units", index, unit.name), unit
    for index, endpoint in enumerate(config.endpoints):
        yield item_key("endpoints", index, endpoint.name), endpoint


def _check_units(config: Config) -> None:
    for unit in config.units:
        key = f"units[{unit.name}]"
        granule = parse_size(unit.granule, f"{key}.granule")
        problem = f"{unit.granule} is not a power of two below 2^63"
        _require(granule.bit_count() == 1 and granule < 1 << 63, f"{key}.granule", problem, "4K is the guest's page")
        _check_range(f"{key}.input_range", unit.input_range, bits=64, granule=granule)
        _check_range(f"{key}.domain_range", unit.domain_range, bits=32, granule=1)
        _require(
            0 <= unit.probe_size <= MAX_PROBE_SIZE and unit.probe_size % 4 == 0, f"{key}.probe_size",
            f"{unit.probe_size} is not a multiple of 4 from 0 to {MAX_PROBE_SIZE}", "512 is usual; 0 offers no PROBE",
        )  # fmt: skip
        limits = unit.limits
        for name in limits.__struct_fields__:
            value = getattr(limits, name)
            problem = f"{value} is not in 1..{MAX_LIMIT}"
            _require(1 <= value <= MAX_LIMIT, f"{key}.limits.{name}", problem, "leave it out for the default")
        needed = PROBE_FIXED_NBYTES + unit.probe_size
        _require(
            limits.max_request_nbytes >= needed, f"{key}.limits.max_request_nbytes",
            f"{limits.max_request_nbytes} cannot hold a PROBE of {needed} bytes",
            f"give at least {needed}, or a smaller probe_size",
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


def _places(config: Config) -> Iterator[tuple[str, UnitConfig | EndpointConfig | SlotConfig]]:
    """Everything with a PCI address, by the key errors call it by."""
    yield from _functions(config)
    for index, slot in enumerate(config.slots):
        yield f"slots[{index}]", slot


def _check_addresses(config: Config) -> None:
    owners: dict[int, str] = {}
    ports: list[tuple[int, str]] = []
    for key, item in _places(config):
        bdf = parse_bdf(item.bdf, f"{key}.bdf")
        owner = owners.setdefault(bdf, key)
        _require(owner == key, f"{key}.bdf", f"{item.bdf} is already the address of {owner}", "give it one of its own")
        if bdf >> 8 == 0 and isinstance(item, SlotConfig):
            raise ConfigError(f"{key}.bdf", f"{item.bdf} is on bus 00, which has no hot-plug", "such as 01:00.0")
        if bdf >> 8 == 0:
            _check_root_bus(f"{key}.bdf", bdf)
        elif key.startswith("units"):
            problem = f"{item.bdf} is not on bus 00"
            raise ConfigError(f"{key}.bdf", problem, "an IOMMU sits on the root bus, such as 00:10.0")
        else:
            ports.append((bdf, f"{key}.bdf"))
    _require(
        len(ports) <= MAX_ROOT_PORTS, "endpoints", f"{len(ports)} buses are needed, {MAX_ROOT_PORTS} are possible",
        "put some endpoints on bus 00" + ", or leave out some slots" * bool(config.slots),
    )  # fmt: skip
    for expected, (bdf, key) in enumerate(sorted(ports), start=1):
        _require(
            bdf == expected << 8, key, f"{format_bdf(bdf)} should be {format_bdf(expected << 8)}",
            "buses of endpoints and slots go 01, 02, ... without a gap, each with one function 00.0: "
            "firmware numbers them so",
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
    units = {unit.name: (f"units[{unit.name}]", unit) for unit in config.units}
    for key, item in _functions(config):
        unit_key, unit = (key, item) if isinstance(item, UnitConfig) else units[item.unit]
        granule = parse_size(unit.granule)
        regions = [(region, f"{key}.reserved[{index}]") for index, region in enumerate(item.reserved)]
        for region, where in regions:
            _check_range(where, (region.start, region.end), bits=64, granule=granule)
        if unit is not item:
            regions += [(region, f"{unit_key}.reserved[{index}]") for index, region in enumerate(unit.reserved)]
        _check_regions(regions, f"{key}.reserved")
        told = unit.probe_size and unit_policy(config.vm, unit).force_aperture
        outside = regions_outside(unit, [region for region, _ in regions]) if told else 0
        needed = RESV_MEM_NBYTES * (len(regions) + outside)
        ends = f" and the {outside} that force_aperture adds" if outside else ""
        _require(
            needed <= unit.probe_size, f"{unit_key}.probe_size",
            f"{unit.probe_size} cannot hold the {len(regions)} reserved region(s) of {key}{ends}",
            f"give at least {needed} ({RESV_MEM_NBYTES} bytes a region); 512 is usual",
        )  # fmt: skip


def _check_regions(regions: list[tuple[Reserved, str]], key: str) -> None:
    """All regions one endpoint answers PROBE with: D54, one is for MSIs at most; D55, they do not overlap."""
    msi = [where for region, where in regions if region.kind == "msi"]
    _require(len(msi) <= 1, key, f"more than one region is of kind msi: {', '.join(msi)}", "keep one of them")
    for (one, other), (two, where) in pairwise(sorted(regions, key=lambda pair: pair[0].start)):
        problem = f"{two.start:#x}..{two.end:#x} overlaps {other}, which is {one.start:#x}..{one.end:#x}"
        _require(two.start > one.end, where, problem, "make them apart")


def _check_options(config: Config) -> None:
    """What they mean is the model's to say."""
    for endpoint in config.endpoints:
        for name, value in endpoint.options.items():
            fits = not isinstance(value, int) or value.bit_length() < 64
            key = f"endpoints[{endpoint.name}].options.{name}"
            _require(fits, key, f"{value} has more than 64 bits", "no option takes so much")


def _check_trace(config: Config) -> None:
    trace = config.trace
    if trace is None:
        return
    nbytes = parse_size(trace.max_bytes, "trace.max_bytes")
    _require(
        nbytes >= MIN_TRACE_NBYTES, "trace.max_bytes", f"{trace.max_bytes} is too small for a trace", "32M is usual"
    )
    _require(
        1 <= trace.records <= MAX_TRACE_RECORDS, "trace.records",
        f"{trace.records} is not in 1..{MAX_TRACE_RECORDS}", "10000 is usual",
    )  # fmt: skip
    names = {
        "units": [{"name": unit.name, "bdf": unit.bdf} for unit in config.units],
        "endpoints": [{"name": endpoint.name, "bdf": endpoint.bdf} for endpoint in config.endpoints],
    }
    try:
        Filter(names, trace.endpoints, trace.types, trace.statuses)
    except ConfigError as error:
        raise ConfigError(f"trace.{error.key}", error.problem, error.cure) from None
