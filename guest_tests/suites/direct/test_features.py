"""Features: what is offered, what is refused, and what a driver that accepts less gets. virtio 1.4, "Feature bits"."""

from __future__ import annotations

from typing import Any

import pytest
from asking import of, serves, unit_state

from guest_tests.payload.direct import (
    DEFAULT_FEATURES,
    Feature,
    FeaturesRefused,
    Viommu,
)
from guest_tests.payload.direct.virtio import DeviceStatus
from guest_tests.payload.fixtures import OpenViommu
from guest_tests.payload.host import Host

OWN = 0xFFFFFF  # the bits that are the IOMMU's own
OPTIONAL = {str(bit.name): bit for bit in Feature if bit & DEFAULT_FEATURES and bit != Feature.VERSION_1}
NOT_OFFERED = {
    "BYPASS": Feature.BYPASS, "bit-7": 1 << 7, "bit-23": 1 << 23, "NOTIFY_ON_EMPTY": 1 << 24,
    "ACCESS_PLATFORM": Feature.ACCESS_PLATFORM, "RING_PACKED": Feature.RING_PACKED, "IN_ORDER": Feature.IN_ORDER,
    "RING_RESET": Feature.RING_RESET, "bit-63": 1 << 63,
}  # fmt: skip


@pytest.fixture
def negotiating(machine: dict[str, Any]) -> None:
    """Skip where QEMU negotiates on its own: it takes any features and drops those it does not know."""
    if machine["attach"] == "vhost-user":
        pytest.skip("QEMU owns the feature registers of a unit attached by vhost-user")


@pytest.mark.parametrize("word", [2, 3, 4, 0x7FFFFFFF, 0xFFFFFFFF])
def test_feature_words_behind_the_second_are_zero(viommu: Viommu, word: int) -> None:
    """Any number may be selected."""
    viommu.transport.write(0x00, 4, word)

    assert viommu.transport.read(0x04, 4) == 0


@pytest.mark.parametrize("feature", of(OPTIONAL))
def test_a_driver_may_leave_out_any_one_feature(open_viommu: OpenViommu, host: Host, feature: Feature) -> None:
    """The unit learns exactly what was accepted, and serves."""
    viommu = open_viommu(without=feature)

    assert unit_state(host)["features"]["accepted"] == DEFAULT_FEATURES & ~feature & OWN
    assert serves(viommu)


@pytest.mark.parametrize("feature", of(OPTIONAL))
def test_a_driver_may_accept_just_one_feature(open_viommu: OpenViommu, host: Host, feature: Feature) -> None:
    """Beside VERSION_1, without which there is no modern device."""
    viommu = open_viommu(features=Feature.VERSION_1 | feature)

    assert unit_state(host)["features"]["accepted"] == feature & OWN
    assert serves(viommu)


def test_a_driver_may_accept_version_1_alone(open_viommu: OpenViommu, host: Host) -> None:
    """All of the IOMMU's own features are optional."""
    viommu = open_viommu(features=Feature.VERSION_1)

    assert unit_state(host)["features"]["accepted"] == 0
    assert serves(viommu)


@pytest.mark.usefixtures("negotiating")
@pytest.mark.parametrize("features", of({"none": 0, "all-but-version-1": DEFAULT_FEATURES & ~Feature.VERSION_1}))
def test_features_ok_is_refused_without_version_1(viommu: Viommu, features: int) -> None:
    """A modern device has no legacy interface to fall back to."""
    viommu.reset()

    with pytest.raises(FeaturesRefused):
        viommu.transport.negotiate(features)

    assert viommu.transport.status == DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER


@pytest.mark.usefixtures("negotiating")
@pytest.mark.parametrize("bit", of(NOT_OFFERED))
def test_features_ok_is_refused_with_a_feature_that_is_not_offered(viommu: Viommu, bit: int) -> None:
    """A driver MUST NOT accept it; the device then does not take FEATURES_OK."""
    viommu.reset()

    with pytest.raises(FeaturesRefused):
        viommu.transport.negotiate(DEFAULT_FEATURES | bit)

    assert viommu.transport.status == DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER


@pytest.mark.usefixtures("negotiating")
def test_a_driver_may_try_again_after_a_refusal(viommu: Viommu) -> None:
    """Without a reset: the features are the driver's to write until FEATURES_OK is set."""
    viommu.reset()
    with pytest.raises(FeaturesRefused):
        viommu.transport.negotiate(DEFAULT_FEATURES | Feature.RING_PACKED)

    viommu.transport.negotiate(DEFAULT_FEATURES)

    assert viommu.transport.status & DeviceStatus.FEATURES_OK


def test_features_that_are_not_offered_never_reach_a_vhost_user_unit(
    open_viommu: OpenViommu, host: Host, machine: dict[str, Any]
) -> None:
    """QEMU drops it without a word (docs/attachments.md: the negotiation is QEMU's)."""
    if machine["attach"] != "vhost-user":
        pytest.skip("the features of a unit attached by vfio-user are refused instead")

    for bit in NOT_OFFERED.values():
        viommu = open_viommu(features=DEFAULT_FEATURES | bit)

        assert unit_state(host)["features"]["accepted"] == DEFAULT_FEATURES & OWN
        assert serves(viommu)


def test_features_cannot_be_changed_after_features_ok(viommu: Viommu, host: Host) -> None:
    """A driver MUST NOT; what it writes then changes nothing."""
    transport = viommu.transport
    viommu.reset()
    transport.negotiate(DEFAULT_FEATURES)

    transport.accept(Feature.VERSION_1)
    transport.driver_ok()

    assert unit_state(host)["features"]["accepted"] == DEFAULT_FEATURES & OWN


def test_features_are_forgotten_by_the_next_driver(open_viommu: OpenViommu, host: Host) -> None:
    """A reset ends the negotiation."""
    open_viommu()

    open_viommu(features=Feature.VERSION_1 | Feature.PROBE)

    assert unit_state(host)["features"]["accepted"] == Feature.PROBE


# What is missing for a driver that accepted nothing but VERSION_1.
