"""Fixtures of this suite. pytest imports this file on the host as well, where moving.py is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from guest_tests.payload.direct import Accel, DmaArena, Viommu
from guest_tests.payload.host import Host

if TYPE_CHECKING:
    from moving import Mover


@pytest.fixture
def mover(viommu: Viommu, mapped_accel: Accel, dma: DmaArena, host: Host) -> Mover:
    """accel0 with a source and a target."""
    from moving import Mover

    return Mover.make(viommu, mapped_accel, dma, host)
