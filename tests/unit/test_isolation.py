"""`vm.isolation` in one process: what each policy makes of a unit, and every way in to a bypass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from tests.support.iommu_requests import PLAIN, UNIT, attach, engine
from vdev.config import config_warnings, isolation_line, parse_config, unit_policy
from vdev.errors import ConfigError, RequestError, TranslationFault
from vdev.iommu.engine import Engine
from vdev.iommu.settings import UnitSettings
from vdev.iommu.snapshot import SnapshotError
from vdev.wire import viommu as wire

REQUIRED = replace(UNIT, isolation="required", bypass_offered=False, force_aperture=True, revalidate=True)


def configured(isolation: str, keys: str = "") -> Any:
    return parse_config(f"vm: {{isolation: {isolation}}}\nunits: [{{name: iommu0{keys}}}]", "x.yaml")


def blocked(unit: Engine) -> bool:
    """Whether an endpoint without a domain is refused with the reason DOMAIN."""
    try:
        unit.translate(PLAIN, 0x1000, 4, 1)
    except TranslationFault as fault:
        return (fault.fault_reason, fault.reason) == (wire.FAULT_R_DOMAIN, "no-domain")
    return False


def test_isolation_is_preferred_unless_the_user_says_otherwise() -> None:
    assert parse_config("units: [{name: iommu0}]", "x.yaml").vm.isolation == "preferred"


@pytest.mark.parametrize(
    ("isolation", "keys", "bypass", "force_aperture", "revalidate"),
    [
        ("required", "", "not-offered", True, True),
        ("required", ", bypass: not-offered, force_aperture: true", "not-offered", True, True),
        ("preferred", "", "on", False, False),
        ("preferred", ", bypass: off, force_aperture: true", "off", True, False),
        ("preferred", ", bypass: not-offered", "not-offered", False, False),
        ("off", "", "on", False, False),
        ("off", ", bypass: on, force_aperture: false", "on", False, False),
    ],
)
def test_keys_left_out_follow_the_policy(
    isolation: str, keys: str, bypass: str, force_aperture: bool, revalidate: bool
) -> None:
    config = configured(isolation, keys)

    found = unit_policy(config.vm, config.units[0])

    assert (found.bypass, found.force_aperture, found.revalidate) == (bypass, force_aperture, revalidate)


@pytest.mark.parametrize(
    ("isolation", "key", "value"),
    [
        ("required", "bypass", "on"),
        ("required", "bypass", "off"),
        ("required", "force_aperture", "false"),
        ("off", "bypass", "off"),
        ("off", "bypass", "not-offered"),
        ("off", "force_aperture", "true"),
    ],
)
def test_a_key_that_contradicts_the_policy_is_refused_with_both_names_and_the_cure(
    isolation: str, key: str, value: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(isolation, f", {key}: {value}")

    assert caught.value.key == f"x.yaml: units[iommu0].{key}"
    assert f"{value} contradicts vm.isolation: {isolation}" in caught.value.problem
    assert caught.value.cure == f"leave {key} out, or set vm.isolation to preferred"


@pytest.mark.parametrize("isolation", ["required", "preferred", "off"])
def test_the_policy_is_told_at_start_and_off_is_warned_of(isolation: str) -> None:
    config = configured(isolation)

    assert isolation_line(config).startswith(f"isolation: {isolation}: ")
    warned = [line for line in config_warnings(config) if line.startswith(f"vm.isolation: {isolation}")]
    assert bool(warned) == (isolation == "off")


@pytest.mark.parametrize("loose", [{"bypass_offered": True}, {"force_aperture": False}, {"revalidate": False}])
def test_a_required_unit_with_loose_settings_cannot_be_built(loose: dict[str, bool]) -> None:
    with pytest.raises(ConfigError, match="isolation is required"):
        replace(REQUIRED, **loose)  # type: ignore[arg-type]


def test_a_required_unit_offers_no_bypass_feature_and_blocks_from_its_first_moment() -> None:
    unit = engine(REQUIRED, accept=0)

    assert not unit.offered_features & (wire.F_BYPASS_CONFIG | wire.F_BYPASS)
    assert unit.config_bytes()[wire.BYPASS_OFFSET] == 0
    assert blocked(unit)


def test_a_bypass_domain_is_an_unknown_flag_whatever_the_driver_claims_to_have_accepted() -> None:
    unit = engine(REQUIRED)

    assert attach(unit, 1, PLAIN, wire.ATTACH_F_BYPASS) == wire.S_INVAL
    assert blocked(unit)


def test_the_table_itself_refuses_a_bypass_domain_that_no_request_asked_for() -> None:
    unit = engine(REQUIRED)

    with pytest.raises(RequestError) as caught:
        unit.table.attach(1, PLAIN, bypass=True)

    assert caught.value.status == wire.S_INVAL
    assert blocked(unit)


def test_a_written_bypass_byte_and_every_reset_leave_a_required_unit_blocking() -> None:
    unit = engine(REQUIRED)
    moves: tuple[Callable[[], None], ...] = (
        partial(unit.write_bypass, 1),
        unit.device_reset,
        unit.system_reset,
        unit.host_reset,
    )

    for move in moves:
        move()

        assert blocked(unit)
        assert not unit.bypass


def _saved(settings: UnitSettings, *, bypass: bool, domain: bool) -> dict[str, Any]:
    unit = engine(settings)
    unit.set_bypass(bypass)
    if domain:
        attach(unit, 1, PLAIN, wire.ATTACH_F_BYPASS)
    return {**unit.snapshot(), "features": REQUIRED.offered_features}


@pytest.mark.parametrize(("bypass", "domain"), [(True, False), (False, True)])
def test_a_snapshot_brings_no_bypass_into_a_required_unit(bypass: bool, domain: bool) -> None:
    unit = engine(REQUIRED)

    with pytest.raises(SnapshotError):
        unit.restore(_saved(UNIT, bypass=bypass, domain=domain))

    assert blocked(unit)
