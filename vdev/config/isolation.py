"""What `vm.isolation` makes of each unit: the value of keys that are left out, and which given ones contradict it.

    key               required      preferred    off
    ----------------  ------------  -----------  ----------
    bypass            not-offered   on           on
    force_aperture    true          false        false
    (revalidation)    yes           no           no

Under `preferred` every key may be given. `required` takes nothing looser, `off` nothing tighter than its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vdev.config.schema import Bypass, Config, Isolation, Reserved, UnitConfig, VmConfig
from vdev.errors import ConfigError


@dataclass(frozen=True, slots=True)
class UnitPolicy:
    """What holds for one unit. `revalidate`: what was translated is translated again before its bytes move."""

    bypass: Bypass
    force_aperture: bool
    revalidate: bool


_POLICIES: dict[Isolation, UnitPolicy] = {
    "required": UnitPolicy("not-offered", force_aperture=True, revalidate=True),
    "preferred": UnitPolicy("on", force_aperture=False, revalidate=False),
    "off": UnitPolicy("on", force_aperture=False, revalidate=False),
}
_WHY: dict[Isolation, str] = {
    "required": "vm.isolation: required, which leaves no way around the IOMMU",
    "off": "vm.isolation: off, which isolates nothing",
}


def unit_policy(vm: VmConfig, unit: UnitConfig) -> UnitPolicy:
    """The keys of `unit`, and what follows from `vm` for those that were left out."""
    given = _POLICIES[vm.isolation]
    return UnitPolicy(
        given.bypass if unit.bypass is None else unit.bypass,
        given.force_aperture if unit.force_aperture is None else unit.force_aperture,
        given.revalidate,
    )


def check_isolation(config: Config) -> None:
    """Raise ConfigError for the first key of a unit that contradicts `vm.isolation`."""
    isolation = config.vm.isolation
    if isolation == "preferred":
        return
    wanted = _POLICIES[isolation]
    for unit in config.units:
        for key, value, fits in (
            ("bypass", unit.bypass, wanted.bypass),
            ("force_aperture", unit.force_aperture, wanted.force_aperture),
        ):
            if value is not None and value != fits:
                shown = str(value).lower() if isinstance(value, bool) else value
                problem = f"{shown} contradicts {_WHY[isolation]}"
                cure = f"leave {key} out, or set vm.isolation to preferred"
                raise ConfigError(f"units[{unit.name}].{key}", problem, cure)


def regions_outside(unit: UnitConfig, reserved: Sequence[Reserved]) -> int:
    """How many regions PROBE tells of for what lies outside the input range, around those `reserved` already."""
    first, last = unit.input_range
    count = 0
    for low, high in ((0, first - 1), (last + 1, (1 << 64) - 1)):
        for region in sorted(reserved, key=lambda region: region.start):
            if low <= region.end and region.start <= high:
                count += low < region.start
                low = region.end + 1
        count += low <= high
    return count


def isolation_line(config: Config) -> str:
    """What holds in this VM, for people: told at each start, whatever it is."""
    isolation = config.vm.isolation
    pasids = "" if config.vm.pasids is None else f"; {_PASIDS[isolation == 'off']}"
    return f"isolation: {isolation}: {_LINES[isolation]}{pasids}"


_PASIDS = {
    True: "accesses with a PASID may pass untranslated, too",
    False: "no access with a PASID passes untranslated",
}


_LINES: dict[Isolation, str] = {
    "required": "no access of an endpoint passes the IOMMU by, from the guest's first instruction on",
    "preferred": "endpoints without a domain pass untranslated where the unit's bypass byte is 1, as in QEMU",
    "off": "every endpoint passes untranslated until the guest's driver stops it, and nothing is checked again",
}
