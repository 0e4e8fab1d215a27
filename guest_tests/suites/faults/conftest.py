"""Fixtures of this suite. pytest imports this file on the host as well, where moving.py is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from guest_tests.payload.direct import Accel, DmaArena, Feature, Viommu
from guest_tests.payload.fixtures import OpenViommu
from guest_tests.payload.host import Host

if TYPE_CHECKING:
    from moving import Mover


@pytest.fixture
def managed(open_viommu: OpenViommu) -> Viommu:
    """The unit, for which the host allocates the PASIDs."""
    return open_viommu(also=Feature.PASID | Feature.PASID_ALLOC)


@pytest.fixture
def mover(viommu: Viommu, mapped_accel: Accel, dma: DmaArena, host: Host) -> Mover:
    """accel0 with a source and a target."""
    from moving import Mover

    return Mover.make(viommu, mapped_accel, dma, host)
