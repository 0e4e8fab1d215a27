"""Fixtures of this suite. pytest imports this file on the host as well, where asking.py is not: some of its numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guest_tests.payload.direct import Accel, Feature, Viommu
from guest_tests.payload.fixtures import OpenAccel, OpenViommu

NARROW, BYTES = 1, 2  # units
OF_BYTES = 4  # accelerator
EP, PLAIN_EP, BYTES_EP = 0x100, 0x400, 0x500
DOMAIN, NARROW_DOMAIN = 1, 3


@pytest.fixture
def blocking(viommu: Viommu) -> Iterator[Viommu]:
    """The first unit with the bypass byte off; it is on again afterwards."""
    viommu.bypass = False
    yield viommu
    viommu.start()
    viommu.bypass = True


@pytest.fixture
def attached(viommu: Viommu) -> Viommu:
    """The first unit, with EP in DOMAIN."""
    viommu.attach(domain=DOMAIN, endpoint=EP)
    return viommu


@pytest.fixture
def narrow(open_viommu: OpenViommu) -> Iterator[Viommu]:
    """The narrow unit, which does not bypass at boot, and does not afterwards."""
    viommu = open_viommu(NARROW)
    yield viommu
    viommu.start()
    viommu.bypass = False


@pytest.fixture
def narrow_attached(narrow: Viommu) -> Viommu:
    """The narrow unit, with PLAIN_EP, for which only the MSI region is reserved, in its first domain."""
    narrow.attach(domain=NARROW_DOMAIN, endpoint=PLAIN_EP)
    return narrow


@pytest.fixture
def of_bytes(open_viommu: OpenViommu) -> Viommu:
    """The unit whose granule is one byte."""
    return open_viommu(BYTES)


@pytest.fixture
def bytes_attached(of_bytes: Viommu) -> Viommu:
    """The unit whose granule is one byte, with its endpoint in DOMAIN."""
    of_bytes.attach(domain=DOMAIN, endpoint=BYTES_EP)
    return of_bytes


@pytest.fixture
def bytes_accel(of_bytes: Viommu, open_accel: OpenAccel) -> Accel:
    """The accelerator behind that unit, running in DOMAIN."""
    return open_accel(OF_BYTES).start_in(of_bytes, domain=DOMAIN)


@pytest.fixture
def managed_narrow(open_viommu: OpenViommu) -> Iterator[Viommu]:
    """The narrow unit with PASIDs of the host's; it does not bypass."""
    viommu = open_viommu(NARROW, also=Feature.PASID | Feature.PASID_ALLOC)
    yield viommu
    viommu.start()
    viommu.bypass = False
