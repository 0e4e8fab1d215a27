"""The keys about PASIDs: `vm.pasids`, and what endpoints say of theirs. docs/pasids.md has all of it.

Whether an endpoint's model has a PASID capability is known to the model alone (`vdev.assemble`). A unit without PROBE
(`probe_size: 0`) offers no PASIDs, since a driver could not learn of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vdev.config.schema import Config, EndpointConfig
from vdev.errors import ConfigError

FIRST, LAST = 1, 0xFFFFF  # 0 is no PASID
MAX_RANGES = 32  # of one endpoint: each takes a property in the answer to PROBE
_NUMBER = "0[xX][0-9a-fA-F]{1,8}|[0-9]{1,8}"
_RANGE = re.compile(rf"({_NUMBER})(?:\s*\.\.\s*({_NUMBER}))?", re.ASCII)


def pasid_ranges(endpoint: EndpointConfig) -> tuple[tuple[int, int], ...]:
    """The endpoint's `reserved_pasids` as half-open ranges, rising. ConfigError."""
    key = f"endpoints[{endpoint.name}].reserved_pasids"
    found: list[tuple[int, int, str]] = []
    if len(endpoint.reserved_pasids) > MAX_RANGES:
        raise ConfigError(key, f"{len(endpoint.reserved_pasids)} ranges", f"at most {MAX_RANGES} are possible")
    for index, given in enumerate(endpoint.reserved_pasids):
        where = f"{key}[{index}]"
        match = _RANGE.fullmatch(str(given).strip())
        if match is None:
            raise ConfigError(where, f"{given!r:.80} is no range", 'write "0x1..0xf", both inclusive, or one number')
        first = _number(match[1])
        last = first if match[2] is None else _number(match[2])
        if not FIRST <= first <= last <= LAST:
            problem = f"{first:#x}..{last:#x} does not rise within {FIRST:#x}..{LAST:#x}"
            raise ConfigError(where, problem, "PASID 0 is nobody's, and none has more than 20 bits")
        for start, stop, other in found:
            if first < stop and start <= last:
                problem = f"{first:#x}..{last:#x} overlaps {other}, which is {start:#x}..{stop - 1:#x}"
                raise ConfigError(where, problem, "make them apart")
        found.append((first, last + 1, where))
    return tuple(sorted((start, stop) for start, stop, _ in found))


def check_pasids(config: Config) -> None:
    """Raise ConfigError for the first key about PASIDs that makes no sense by itself, or without another."""
    for endpoint in config.endpoints:
        pasid_ranges(endpoint)
        for key, shown in _keys_given(endpoint):
            if config.vm.pasids is None:
                where = f"endpoints[{endpoint.name}].{key}"
                raise ConfigError(where, f"{shown}, and the VM has no PASIDs", "set vm.pasids, such as pasids: {}")
    if config.vm.pasids is not None:
        _check_vm(config)


def _check_vm(config: Config) -> None:
    given = config.vm.pasids
    assert given is not None
    for key, path in (("authority", given.authority), ("authority_config", given.authority_config)):
        if path == "":
            raise ConfigError(f"vm.pasids.{key}", "is empty", "give a path, or leave it out")
    if given.quota is not None:
        if not 0 <= given.quota <= LAST:
            raise ConfigError("vm.pasids.quota", f"{given.quota} is not in 0..{LAST}", "1000 is usual")
        kernels = [endpoint.name for endpoint in config.endpoints if endpoint.kernel_pasid]
        if given.quota < len(kernels):
            problem = f"{given.quota} is less than the kernel PASIDs of {', '.join(kernels)}, which count, too"
            raise ConfigError("vm.pasids.quota", problem, f"give at least {len(kernels)}")
    if config.units and not any(unit.probe_size for unit in config.units):
        problem = "0 hides PROBE, which tells a driver of PASIDs"
        where = f"units[{config.units[0].name}].probe_size"
        raise ConfigError(where, problem, "512 is usual; or leave vm.pasids out")
    _check_behind(config, {unit.name for unit in config.units if not unit.probe_size})


def _check_behind(config: Config, without: set[str]) -> None:
    """Nothing behind a unit `without` PROBE asks for PASIDs: it has none."""
    for endpoint in config.endpoints:
        for key, shown in _keys_given(endpoint):
            if endpoint.unit in without:
                where, unit = f"endpoints[{endpoint.name}].{key}", f"units[{endpoint.unit}]"
                raise ConfigError(where, f"{shown}, and probe_size 0 of {unit} hides PASIDs", "512 is usual there")


def _keys_given(endpoint: EndpointConfig) -> Iterator[tuple[str, str]]:
    """Those that need PASIDs, with their values."""
    if endpoint.dma != "any":
        yield "dma", endpoint.dma
    if endpoint.kernel_pasid:
        yield "kernel_pasid", "true"
    if endpoint.reserved_pasids:
        yield "reserved_pasids", f"{len(endpoint.reserved_pasids)} of them"


def needs_pasid_capability(endpoint: EndpointConfig) -> str:
    """The first key that an endpoint without a PASID capability cannot have; "" for none."""
    return next((key for key, _ in _keys_given(endpoint)), "")


def pasid_warnings(config: Config) -> list[str]:
    """What is legal about PASIDs and may surprise, one line each."""
    found: list[str] = []
    if config.vm.pasids is not None and config.vm.isolation == "off":
        found.append("vm.isolation: off: PASIDs may be given identity mappings, which reach all of guest memory")
    found += [
        f"endpoints[{endpoint.name}].dma: pasid_only without kernel_pasid: of use to a driver with PASIDs alone"
        for endpoint in config.endpoints
        if endpoint.dma == "pasid_only" and not endpoint.kernel_pasid
    ]
    return found


def _number(text: str) -> int:
    return int(text, 16) if text[:2].lower() == "0x" else int(text)
