"""`vm.isolation` in one process: what each policy makes of a unit, and every way in to a bypass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from tests.support.iommu_requests import DOORBELL, MSI, PLAIN, READ, UNIT, WRITE, attach, engine
from vdev.config import Reserved, UnitConfig, config_warnings, isolation_line, parse_config, unit_policy
from vdev.config.isolation import regions_outside
from vdev.errors import ConfigError, RequestError, TranslationFault
from vdev.iommu.engine import Engine
from vdev.iommu.probe import probed_regions
from vdev.iommu.settings import ReservedRegion, UnitSettings
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


@pytest.mark.parametrize(
    ("isolation", "arguments", "warned"),
    [
        ("required", "[-device, virtio-rng-pci]", True),
        ("required", "[-rtc, base=utc]", False),
        ("preferred", "[-device, virtio-rng-pci]", False),
    ],
)
def test_devices_of_qemus_own_are_warned_of_where_isolation_is_required(
    isolation: str, arguments: str, warned: bool
) -> None:
    text = f"vm: {{isolation: {isolation}, extra_args: {arguments}}}\nunits: [{{name: iommu0}}]"

    warnings = config_warnings(parse_config(text, "x.yaml"))

    assert [line.partition(":")[0] for line in warnings] == ["vm.extra_args"] * warned


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


# force_aperture: the input range [0x10000, 0x20000), held on what bypasses as well

START, STOP = 0x1_0000, 0x2_0000
NARROW = replace(UNIT, input_start=START, input_stop=STOP)
FORCED = replace(NARROW, force_aperture=True)


def reached(unit: Engine, iova: int, nbytes: int, endpoint: int = PLAIN, access: int = WRITE) -> Any:
    """The pieces of an access, or the fault's wire reason, word and address."""
    try:
        return unit.translate(endpoint, iova, nbytes, access)
    except TranslationFault as fault:
        return fault.fault_reason, fault.reason, fault.iova


def _bypassing(settings: UnitSettings, way: str, endpoint: int = PLAIN) -> Engine:
    unit = engine(settings)
    if way == "bypass-domain":
        assert attach(unit, 1, endpoint, wire.ATTACH_F_BYPASS) == wire.S_OK
    return unit


@pytest.mark.parametrize("way", ["unattached", "bypass-domain"])
@pytest.mark.parametrize(
    ("iova", "nbytes", "bad"),
    [(0, 8, 0), (START - 8, 16, START - 8), (STOP - 8, 16, STOP), (STOP, 1, STOP), ((1 << 64) - 1, 1, (1 << 64) - 1)],
)
def test_with_force_aperture_what_bypasses_faults_at_its_first_byte_outside(
    way: str, iova: int, nbytes: int, bad: int
) -> None:
    assert reached(_bypassing(FORCED, way), iova, nbytes) == (wire.FAULT_R_MAPPING, "outside-input-range", bad)


@pytest.mark.parametrize("way", ["unattached", "bypass-domain"])
def test_with_force_aperture_what_bypasses_reaches_the_whole_input_range(way: str) -> None:
    assert reached(_bypassing(FORCED, way), START, STOP - START) == [(START, STOP - START)]


@pytest.mark.parametrize("way", ["unattached", "bypass-domain"])
def test_without_force_aperture_what_bypasses_reaches_all_there_is(way: str) -> None:
    assert reached(_bypassing(NARROW, way), 0, 1 << 64) == [(0, 1 << 64)]


def test_an_msi_is_written_outside_the_input_range_whatever_force_aperture_says() -> None:
    unit = engine(FORCED)

    assert reached(unit, MSI.start, 4, DOORBELL) == [(MSI.start, 4)]
    assert reached(unit, MSI.start - 4, 8, DOORBELL) == (wire.FAULT_R_MAPPING, "outside-input-range", MSI.start - 4)
    assert reached(unit, MSI.start, 4, DOORBELL, READ) == (wire.FAULT_R_MAPPING, "reserved", MSI.start)


def test_with_force_aperture_probe_tells_of_all_that_lies_outside_as_reserved() -> None:
    regions = probed_regions(FORCED, (MSI,))

    assert regions == (
        MSI,
        ReservedRegion(0, START),
        ReservedRegion(STOP, MSI.start),
        ReservedRegion(MSI.stop, 1 << 64),
    )
    assert probed_regions(NARROW, (MSI,)) == (MSI,)


@pytest.mark.parametrize(
    ("first", "last", "reserved"),
    [
        (0, (1 << 64) - 1, [(0xFEE00000, 0xFEEFFFFF)]),
        (0, (1 << 39) - 1, [(0xFEE00000, 0xFEEFFFFF)]),
        (0, 0xFEDFFFFF, [(0xFEE00000, 0xFEEFFFFF)]),
        (0x1000, 0x1FFF, [(0, 0xFFF), (0x2000, 0x2FFF), (0x8000, (1 << 64) - 1)]),
        (0x100000000, (1 << 64) - 1, [(0xFEE00000, 0xFEEFFFFF), (0xFFFFF000, 0x100000FFF)]),
        (0x4000, 0x7FFF, []),
    ],
)
def test_regions_outside_the_input_range_cover_it_once_and_the_configuration_counts_them(
    first: int, last: int, reserved: list[tuple[int, int]]
) -> None:
    given = UnitConfig(name="iommu0", input_range=(first, last))
    settings = replace(FORCED, input_start=first, input_stop=last + 1)
    known = tuple(ReservedRegion(start, end + 1) for start, end in reserved)

    added = probed_regions(settings, known)[len(known) :]

    assert len(added) == regions_outside(given, [Reserved(start=start, end=end) for start, end in reserved])
    spans = sorted([(first, last + 1), *((region.start, region.stop) for region in added)])
    assert all(one[1] <= two[0] for one, two in pairwise(spans))
    for edge in {at + by for span in spans for at in span for by in (-1, 0) if 0 <= at + by < 1 << 64}:
        inside = sum(start <= edge < stop for start, stop in spans)
        claimed = any(region.start <= edge < region.stop for region in known)
        assert inside == (1 if not claimed else int(first <= edge <= last))


def test_a_probe_size_without_room_for_the_regions_of_force_aperture_is_refused() -> None:
    keys = ", input_range: [0x10000, 0x1ffff], probe_size: 48, force_aperture: true"

    with pytest.raises(ConfigError, match=r"the 1 reserved region.* and the 3 that force_aperture adds .*at least 96"):
        configured("preferred", keys)
    assert configured("preferred", keys.replace("48", "96")).units[0].force_aperture
    assert configured("preferred", keys.replace("48", "0") + ", reserved: []").units[0].probe_size == 0
