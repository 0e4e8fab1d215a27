"""The keys about PASIDs: what they take, what they refuse by itself and with others, and what is said of them."""

from __future__ import annotations

import pytest

from vdev.config import (
    Config,
    EndpointConfig,
    PasidsConfig,
    config_warnings,
    isolation_line,
    parse_config,
    pasid_ranges,
    with_endpoint,
)
from vdev.errors import ConfigError

UNITS = "units: [{name: iommu0}]\n"


def configured(vm: str = "pasids: {}", endpoint: str = "", unit: str = "") -> Config:
    text = f"vm: {{{vm}}}\nunits: [{{name: iommu0{unit}}}]\nendpoints: [{{name: e0{endpoint}}}]"
    return parse_config(text, "x.yaml")


def refusal(vm: str = "pasids: {}", endpoint: str = "", unit: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        configured(vm, endpoint, unit)
    return str(caught.value)


def test_without_the_key_a_vm_has_no_pasids_and_endpoints_make_any_access() -> None:
    config = configured("name: vm")

    assert config.vm.pasids is None
    assert (config.endpoints[0].dma, config.endpoints[0].kernel_pasid) == ("any", False)


def test_every_key_is_read() -> None:
    config = configured(
        "pasids: {authority: here, authority_config: host.yaml, quota: 7}",
        ', dma: pasid_only, kernel_pasid: true, reserved_pasids: ["0x10..0x1f", 0x30, "5 .. 9"]',
    )

    assert config.vm.pasids == PasidsConfig(authority="here", authority_config="host.yaml", quota=7)
    assert (config.endpoints[0].dma, config.endpoints[0].kernel_pasid) == ("pasid_only", True)
    assert pasid_ranges(config.endpoints[0]) == ((5, 10), (0x10, 0x20), (0x30, 0x31))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("dma: pasid_only", "dma: pasid_only, and the VM has no PASIDs"),
        ("kernel_pasid: true", "kernel_pasid: true, and the VM has no PASIDs"),
        ("reserved_pasids: [3]", "reserved_pasids: 1 of them, and the VM has no PASIDs"),
    ],
)
def test_an_endpoints_keys_need_the_vms_and_the_cure_is_named(given: str, shown: str) -> None:
    said = refusal("name: vm", f", {given}")

    assert said == f"x.yaml: endpoints[e0].{shown} (set vm.pasids, such as pasids: {{}})"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ('["x"]', "reserved_pasids[0]: 'x' is no range"),
        ('["1...3"]', "reserved_pasids[0]: '1...3' is no range"),
        ("[0]", "reserved_pasids[0]: 0x0..0x0 does not rise within 0x1..0xfffff"),
        ('["0x5..0x4"]', "reserved_pasids[0]: 0x5..0x4 does not rise within"),
        ('["0xffff0..0x100000"]', "reserved_pasids[0]: 0xffff0..0x100000 does not rise within"),
        (
            '["1..5", "5..9"]',
            "reserved_pasids[1]: 0x5..0x9 overlaps endpoints[e0].reserved_pasids[0], which is 0x1..0x5",
        ),
        (f"[{', '.join(map(str, range(1, 34)))}]", "reserved_pasids: 33 ranges (at most 32 are possible)"),
        ("[1.5]", "reserved_pasids[0]: 1.5 is a number"),
    ],
)  # fmt: skip
def test_a_reserved_range_that_is_none_is_refused(given: str, problem: str) -> None:
    assert f"x.yaml: endpoints[e0].{problem}" in refusal(endpoint=f", reserved_pasids: {given}")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("quota: -1", "vm.pasids.quota: -1 is not in 0..1048575 (1000 is usual)"),
        ("quota: 1048576", "vm.pasids.quota: 1048576 is not in 0..1048575 (1000 is usual)"),
        ('authority: ""', "vm.pasids.authority: is empty (give a path, or leave it out)"),
        ('authority_config: ""', "vm.pasids.authority_config: is empty (give a path, or leave it out)"),
        ("quotas: 1", "vm.pasids.quotas"),
    ],
)
def test_a_value_of_the_vms_key_that_makes_no_sense_is_refused(given: str, problem: str) -> None:
    assert refusal(f"pasids: {{{given}}}").startswith(f"x.yaml: {problem}")


def test_a_quota_below_the_kernel_pasids_is_refused_and_they_are_named() -> None:
    said = refusal("pasids: {quota: 0}", ", kernel_pasid: true")

    assert "vm.pasids.quota: 0 is less than the kernel PASIDs of e0, which count, too (give at least 1)" in said


def test_a_unit_without_probe_cannot_tell_of_pasids_and_is_refused() -> None:
    said = refusal(unit=", probe_size: 0, reserved: []")

    assert said.startswith("x.yaml: units[iommu0].probe_size: 0 hides PROBE, which tells a driver of PASIDs")


def of_two_units(endpoint: str) -> str:
    units = "[{name: iommu0}, {name: bare, bdf: 00:11.0, probe_size: 0, reserved: []}]"
    return f"vm: {{pasids: {{}}}}\nunits: {units}\nendpoints: [{{name: e0, unit: bare{endpoint}}}]"


def test_one_unit_of_several_may_be_without_probe_and_has_no_pasids() -> None:
    config = parse_config(of_two_units(""), "x.yaml")

    assert [unit.probe_size for unit in config.units] == [512, 0]


@pytest.mark.parametrize("key", ["dma: pasid_only", "kernel_pasid: true", "reserved_pasids: [7]"])
def test_what_an_endpoint_behind_it_asks_for_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=r"endpoints\[e0\]\.\w+: .* probe_size 0 of units\[bare\] hides PASIDs"):
        parse_config(of_two_units(f", {key}"), "x.yaml")


def test_an_endpoint_that_comes_later_is_held_to_the_same_rules() -> None:
    config = parse_config(f"{UNITS}slots: [{{bdf: 01:00.0}}]", "x.yaml")

    with pytest.raises(ConfigError, match=r"endpoints\[new\]\.kernel_pasid: true, and the VM has no PASIDs"):
        with_endpoint(config, {"name": "new", "kernel_pasid": True})


def test_what_isolation_means_for_pasids_is_said_at_the_start() -> None:
    lines = {policy: isolation_line(configured(f"isolation: {policy}, pasids: {{}}")) for policy in ("off", "required")}

    assert lines["off"].endswith("; accesses with a PASID may pass untranslated, too")
    assert lines["required"].endswith("; no access with a PASID passes untranslated")
    assert "PASID" not in isolation_line(configured("name: vm"))


def test_what_may_surprise_is_warned_of() -> None:
    loose = config_warnings(configured("isolation: off, pasids: {}"))
    only = config_warnings(configured(endpoint=", dma: pasid_only"))

    assert "vm.isolation: off: PASIDs may be given identity mappings, which reach all of guest memory" in loose
    assert only == ["endpoints[e0].dma: pasid_only without kernel_pasid: of use to a driver with PASIDs alone"]
    assert config_warnings(configured(endpoint=", dma: pasid_only, kernel_pasid: true")) == []


def test_ranges_are_those_of_one_endpoint() -> None:
    assert pasid_ranges(EndpointConfig(name="e", reserved_pasids=(7, "1..2"))) == ((1, 3), (7, 8))
