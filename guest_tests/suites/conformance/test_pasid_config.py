"""Features, configuration and resets of the PASID extension: docs/virtio-iommu-pasid.md, sections 2, 3, 5 and 8."""

from __future__ import annotations

from typing import Any

import pytest
from asking import EP, HOLED_EP, OTHER_EP, PLAIN_EP, is_strict
from pasid_asking import BOTH, KEPT, KERNEL, ONLY_EP, QUOTA, attach, every_request, status

from guest_tests.payload.direct import (
    PASID_LAST,
    Feature,
    FeaturesRefused,
    PasidAlloc,
    PasidFlag,
    PasidWidth,
    ResvPasid,
    Space,
    Status,
    Viommu,
)
from guest_tests.payload.direct.wire_pasid import CONFIG_OFFSET, CONFIG_WIDTHS
from guest_tests.payload.fixtures import OpenViommu
from guest_tests.payload.host import Host

BASE = Feature.VERSION_1 | Feature.MAP_UNMAP | Feature.PROBE
NO_FIELDS = bytes(24)


def fields(viommu: Viommu) -> bytes:
    """Those of the extension."""
    return viommu.transport.read_config_bytes(CONFIG_WIDTHS, CONFIG_OFFSET)


def pasid_properties(viommu: Viommu, endpoint: int) -> list[object]:
    """Those of the extension."""
    return [one for one in viommu.probe(endpoint) if isinstance(one, PasidWidth | ResvPasid)]


def start_with(open_viommu: OpenViommu, machine: dict[str, Any], features: Feature) -> Viommu | None:
    """A unit that a driver gave these features; None where it refused them, which QEMU's vhost-user device cannot."""
    try:
        return open_viommu(features=features)
    except FeaturesRefused:
        assert machine["attach"] != "vhost-user"
        return None


def test_p1_without_the_feature_there_are_no_requests_fields_and_properties(
    viommu: Viommu, machine: dict[str, Any]
) -> None:
    answers = {status(viommu, request) for request in every_request(1).values()}

    assert answers == {None if is_strict(machine) else Status.UNSUPP}
    assert fields(viommu) == NO_FIELDS
    assert pasid_properties(viommu, EP) == []


@pytest.mark.parametrize(
    "features",
    [
        BASE & ~Feature.PROBE | BOTH,
        BASE & ~Feature.MAP_UNMAP | BOTH,
        BASE | Feature.PASID_ALLOC,
    ],
    ids=["no-probe", "no-map", "alloc-alone"],
)
def test_p2_a_feature_without_what_it_depends_on_is_not_accepted(
    open_viommu: OpenViommu, machine: dict[str, Any], features: Feature
) -> None:
    viommu = start_with(open_viommu, machine, features)

    if machine["attach"] != "vhost-user":
        assert viommu is None
        return
    assert viommu is not None
    assert fields(viommu) == NO_FIELDS
    assert status(viommu, PasidAlloc()) == (None if is_strict(machine) else Status.UNSUPP)


def test_p4_the_fields_are_there_while_the_feature_is_accepted(open_viommu: OpenViommu) -> None:
    before = fields(open_viommu())
    managed = open_viommu(also=BOTH)
    config = managed.pasids.config()
    open_viommu()

    assert (before, fields(managed)) == (NO_FIELDS, NO_FIELDS)
    assert (config.quota, config.used, config.start, config.stop) == (QUOTA, KERNEL, 1, 1 << 20)
    assert (config.space, config.raw[17:]) == (Space.PER_GUEST, bytes(7))


def test_p5_another_quota_is_notified_and_shows(open_viommu: OpenViommu, host: Host) -> None:
    viommu = open_viommu(also=BOTH, msix=True)
    config_changed = viommu.vectors[0]
    config_changed.settle()
    try:
        host.control("pasid-quota", quota=QUOTA + 7)

        assert config_changed.wait(5.0)
        assert viommu.pasids.config().quota == QUOTA + 7
    finally:
        host.control("pasid-quota", quota=QUOTA)


def test_p6_a_quota_below_what_is_used_takes_nothing_away(managed: Viommu, host: Host) -> None:
    mine = [managed.pasids.alloc().pasid for _ in range(4)]
    try:
        host.control("pasid-quota", quota=2)

        config = managed.pasids.config()
        answers = [status(managed, attach(pasid)) for pasid in mine]
        refused = status(managed, PasidAlloc())
    finally:
        host.control("pasid-quota", quota=QUOTA)
    assert (config.quota, config.used) == (2, 4 + KERNEL)
    assert answers == [Status.OK] * 4
    assert refused == Status.NOMEM


def test_p7_writes_to_the_fields_are_ignored(managed: Viommu) -> None:
    before = fields(managed)

    for offset in range(CONFIG_OFFSET, CONFIG_OFFSET + 16, 4):
        managed.transport.write_config(offset, 4, 0xFFFFFFFF)
    managed.transport.write_config(CONFIG_OFFSET + 16, 1, 0)

    assert fields(managed) == before


def test_p40_an_endpoint_with_pasids_has_one_property_of_them(managed: Viommu, managed_narrow: Viommu) -> None:
    rights = PasidFlag.EXECUTE | PasidFlag.PRIVILEGED

    assert pasid_properties(managed, EP) == [PasidWidth(20, rights)]
    assert pasid_properties(managed, OTHER_EP) == [PasidWidth(20, PasidFlag(0))]
    assert pasid_properties(managed, ONLY_EP) == [PasidWidth(20, PasidFlag.ONLY)]
    assert pasid_properties(managed_narrow, PLAIN_EP) == []


def test_p41_every_range_that_an_endpoint_keeps_has_a_property(managed_narrow: Viommu) -> None:
    width, *kept = pasid_properties(managed_narrow, HOLED_EP)

    assert width == PasidWidth(4, PasidFlag(0))
    assert kept == [ResvPasid(KEPT[0], KEPT[2] + 1), ResvPasid(KEPT[3], KEPT[3] + 1)]


def test_p51_p52_a_reset_detaches_all_pairs_and_frees_all_pasids(open_viommu: OpenViommu, host: Host) -> None:
    managed = open_viommu(also=BOTH)
    for number in range(3):
        managed.pasids.attach(domain=1, endpoint=EP, pasid=managed.pasids.alloc().pasid)
        managed.pasids.attach(domain=2 + number, endpoint=OTHER_EP, pasid=managed.pasids.alloc().pasid)

    open_viommu()  # a driver without PASIDs, which could give nothing back

    left = host.control("query-pasids")["pasids"]
    assert [(one["owner"], len(one["pairs"])) for one in left] == [("host", 1)]


def test_p51_pairs_of_another_unit_keep_a_freed_pasid_pending(
    open_viommu: OpenViommu, managed_narrow: Viommu, host: Host
) -> None:
    managed = open_viommu(also=BOTH)
    managed.pasids.alloc(7, 7)
    managed_narrow.pasids.attach(domain=3, endpoint=HOLED_EP, pasid=7)

    managed = open_viommu(also=BOTH)

    states = {one["pasid"]: one["state"] for one in host.control("query-pasids")["pasids"]}
    assert states[7] == "free-pending"
    assert status(managed, PasidAlloc(first=7, last=7)) == Status.NOMEM
    managed_narrow.pasids.detach(domain=3, endpoint=HOLED_EP, pasid=7)
    assert managed.pasids.alloc(7, 7).pasid == 7


def test_p51_what_another_unit_allocated_stays(open_viommu: OpenViommu, managed_narrow: Viommu) -> None:
    open_viommu(also=BOTH)
    managed_narrow.pasids.alloc(7, 7)

    managed = open_viommu(also=BOTH)

    managed.pasids.attach(domain=1, endpoint=EP, pasid=7)
    assert managed.pasids.free(1, PASID_LAST) == 1
