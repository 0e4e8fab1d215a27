"""The rows of the guest part: what they are called, their units, which way is better. Pure.

PASIDs are vdev's alone: for QEMU's IOMMUs that row is not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """`compared`: whether the ratio of two contenders says something about their IOMMUs."""

    name: str
    title: str
    unit: str
    compared: bool = True
    higher_is_better: bool = False


ROWS = (
    Row("floor", "an ioctl that does nothing", "us", compared=False),
    Row("page", "VFIO map+unmap, 1 page", "us"),
    Row("scattered", "VFIO map+unmap, 64 scattered pages", "us"),
    Row("large", "VFIO map+unmap, 256 MiB in 128 runs", "ms"),
    Row("dma", "virtio-rng read, strict DMA API", "us"),
    Row("identity", "virtio-rng read, identity domain", "us", compared=False),
    Row("dma-pair", "DMA API map+unmap (difference)", "us"),
    Row("dma-rate", "DMA API mappings, as counted", "1/s", higher_is_better=True),
    Row("pasid", "PASID_ALLOC and PASID_FREE, round trips", "us", compared=False),
    Row("boot", "QEMU's start to driver bound", "s"),
)
BY_NAME = {row.name: row for row in ROWS}
_US = {"us": 1.0, "ms": 1e3}
MIN_MAPS = 0.01  # a read: less is no mapping at all


def row_values(boot_s: float, phases: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The value of every row of one VM, from the phases its guest reported; what was not measured is left out."""
    values = {name: float(phase["us"]) / _US[BY_NAME[name].unit] for name, phase in phases.items() if name in BY_NAME}
    values["boot"] = boot_s
    if "dma" in values:
        maps = float(phases["dma"]["maps"])
        values["dma-rate"] = maps * 1e6 / values["dma"]
        if "identity" in values and maps > MIN_MAPS:
            values["dma-pair"] = (values["dma"] - values["identity"]) / maps
    return values
