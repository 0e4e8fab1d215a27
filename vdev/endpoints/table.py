"""Every endpoint model by the name a config calls it: a new one is one file beside this and one line below."""

from __future__ import annotations

from vdev.endpoints.accelerator import Accelerator
from vdev.endpoints.base import EndpointModel
from vdev.endpoints.rng import Rng

MODELS: dict[str, EndpointModel] = {
    "accelerator": Accelerator,
    "rng": Rng,
}
