"""What a unit offers, its configuration, and the one field a driver may write. virtio 1.4, "Feature bits" and on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from asking import DOMAIN, EP, INPUT_STOP, PAGE, map_pages, status, unit_state

from guest_tests.payload.direct import (
    ATTACH_BYPASS,
    DEFAULT_FEATURES,
    MMIO,
    READ,
    Attach,
    Feature,
    Layout,
    Map,
    Probe,
    Status,
    Unmap,
    Viommu,
)
from guest_tests.payload.direct.wire import BYPASS_OFFSET
from guest_tests.payload.fixtures import OpenViommu
from guest_tests.payload.host import Host

NBYTES = 64
FIELDS = {  # name: offset, width
    "page_size_mask": (0, 8), "input_range.start": (8, 8), "input_range.end": (16, 8), "domain_range.start": (24, 4),
    "domain_range.end": (28, 4), "probe_size": (32, 4), "reserved-37": (37, 1), "reserved-38": (38, 1),
    "reserved-39": (39, 1), "extension-start": (40, 4), "extension-end": (60, 4),
}  # fmt: skip


def content(viommu: Viommu) -> bytes:
    """All of the configuration."""
    read = viommu.transport.read_config
    return b"".join(read(at, 4).to_bytes(4, "little") for at in range(0, NBYTES, 4))


@pytest.fixture(autouse=True)
def _bypass_as_it_was(open_viommu: OpenViommu) -> Iterator[None]:
    """Bypass outlives a reset, so every test here gives it back."""
    yield
    open_viommu().bypass = 1


def test_d1_map_unmap_is_offered(viommu: Viommu) -> None:
    assert viommu.transport.offered() & Feature.MAP_UNMAP


def test_d2_d3_the_legacy_bypass_is_not_offered_and_no_feature_but_those_we_serve(viommu: Viommu) -> None:
    """A new device SHOULD NOT offer F_BYPASS; SHOULD NOT offer both of them."""
    assert not viommu.transport.offered() & Feature.BYPASS
    assert viommu.transport.offered(nwords=4) == DEFAULT_FEATURES | Feature.PASID | Feature.PASID_ALLOC


def test_d4_page_size_mask_has_the_granule_as_its_lowest_bit(viommu: Viommu) -> None:
    """The device MUST set at least one bit."""
    assert viommu.config.page_size_mask == 2**64 - PAGE


def test_d5_bypass_starts_as_1_where_nothing_else_is_configured(viommu: Viommu) -> None:
    """MAY."""
    assert viommu.config.raw[BYPASS_OFFSET] == 1


def test_g18_no_field_but_bypass_can_be_written(viommu: Viommu) -> None:
    """R2: a driver MUST NOT; the device ignores it."""
    before = content(viommu)

    for name, (offset, width) in FIELDS.items():
        for value in ((1 << 8 * width) - 1, 0, 0x5A):
            viommu.transport.write_config(offset, width, value)
            assert content(viommu) == before, f"{name} took {value:#x}"


@pytest.mark.parametrize("value", [0, 1])
def test_d8_bypass_keeps_what_was_written(viommu: Viommu, host: Host, value: int) -> None:
    """R3: a driver writes 0 or 1. The unit agrees with what is read."""
    viommu.bypass = 1 - value
    viommu.bypass = value

    assert viommu.transport.read_config(BYPASS_OFFSET, 1) == value
    assert unit_state(host)["bypass"] is bool(value)


@pytest.mark.parametrize("value", [2, 3, 0x80, 0xFF])
def test_d8_bypass_never_shows_another_value_than_0_and_1(viommu: Viommu, value: int) -> None:
    """The device MUST NOT. Such a write is ignored."""
    for before in (0, 1):
        viommu.bypass = before

        viommu.bypass = value

        assert viommu.transport.read_config(BYPASS_OFFSET, 1) == before


def test_g18_bypass_cannot_be_written_by_a_driver_that_did_not_accept_bypass_config(open_viommu: OpenViommu) -> None:
    """R2: only after BYPASS_CONFIG was negotiated; otherwise the write is ignored."""
    viommu = open_viommu()
    viommu.bypass = 1
    viommu = open_viommu(without=Feature.BYPASS_CONFIG)

    viommu.bypass = 0

    assert viommu.bypass is True


# What is missing for a driver that accepted nothing but VERSION_1.


@pytest.fixture
def bare(open_viommu: OpenViommu) -> Viommu:
    """A unit of whose features none was accepted, with EP in DOMAIN."""
    viommu = open_viommu(features=Feature.VERSION_1)
    viommu.attach(domain=DOMAIN, endpoint=EP)
    return viommu


def test_g17_map_and_unmap_are_served_to_a_driver_without_map_unmap(bare: Viommu) -> None:
    """R4 is about drivers; the device offers it and has nothing to refuse."""
    assert status(bare, map_pages(16)) == Status.OK
    assert status(bare, Unmap(domain=DOMAIN, virt_start=0, virt_end=INPUT_STOP - 1)) == Status.OK


def test_g17_probe_is_served_to_a_driver_without_probe(bare: Viommu) -> None:
    """D47 is about devices that do not offer it."""
    assert bare.send(Probe(endpoint=EP), nwritable=516).status == Status.OK


def test_g6_mmio_flag_is_refused_without_mmio(bare: Viommu) -> None:
    """D32: as any flag it does not know."""
    assert status(bare, map_pages(16, flags=READ | MMIO)) == Status.INVAL


def test_g7_bypass_domains_are_refused_without_bypass_config(bare: Viommu) -> None:
    """D17: as any flag it does not know."""
    assert status(bare, Attach(domain=5, endpoint=EP, flags=ATTACH_BYPASS)) == Status.INVAL


def test_g2_the_input_range_holds_without_input_range(bare: Viommu) -> None:
    """The device cannot translate more."""
    request = Map(domain=DOMAIN, virt_start=INPUT_STOP, virt_end=INPUT_STOP + PAGE - 1, phys_start=0, flags=READ)

    assert status(bare, request) == Status.RANGE


def test_g10_requests_of_many_descriptors_are_served_without_indirect_desc(bare: Viommu) -> None:
    """The ring itself carries as many as it has entries."""
    answer = bare.send(Attach(domain=5, endpoint=EP), layout=Layout(piece_nbytes=1))

    assert answer.status == Status.OK
