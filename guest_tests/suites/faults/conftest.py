"""Fixtures of this suite. pytest imports this file on the host as well."""

from __future__ import annotations

import pytest

from guest_tests.payload.direct import Feature, Viommu
from guest_tests.payload.fixtures import OpenViommu


@pytest.fixture
def managed(open_viommu: OpenViommu) -> Viommu:
    """The unit, for which the host allocates the PASIDs."""
    return open_viommu(also=Feature.PASID | Feature.PASID_ALLOC)
