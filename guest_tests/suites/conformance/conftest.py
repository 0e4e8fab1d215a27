"""Fixtures of this suite. pytest imports this file on the host as well."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guest_tests.payload.direct import Viommu


@pytest.fixture
def blocking(viommu: Viommu) -> Iterator[Viommu]:
    """The first unit with the bypass byte off; it is on again afterwards."""
    viommu.bypass = False
    yield viommu
    viommu.start()
    viommu.bypass = True
