"""Who writes an endpoint's MSI-X messages: QEMU, to any address, or vdev, to the doorbell alone."""

from __future__ import annotations

import pytest

from vdev.assemble import Machine
from vdev.config import Config, EndpointConfig, Isolation, SlotConfig, UnitConfig, VmConfig
from vdev.pci.base import PciFunction
from vdev.virtio.ordering import NoOrdering

ENDPOINTS = (
    EndpointConfig(name="accel0", bdf="01:00.0"),
    EndpointConfig(name="rng0", model="rng", bdf="02:00.0"),
    EndpointConfig(name="accel1", bdf="00:11.0"),
)
BEHIND_PORTS = {"accel0", "rng0"}


@pytest.mark.parametrize(
    ("isolation", "slots", "kept"),
    [
        ("required", (), BEHIND_PORTS | {"accel1"}),
        ("required", (SlotConfig(bdf="03:00.0"),), BEHIND_PORTS | {"accel1"}),
        ("preferred", (), set()),
        ("preferred", (SlotConfig(bdf="03:00.0"),), BEHIND_PORTS),
        ("off", (), set()),
    ],
)
def test_every_endpoint_has_its_vector_table_where_isolation_is_required_else_only_where_it_can_be_unplugged(
    isolation: Isolation, slots: tuple[SlotConfig, ...], kept: set[str]
) -> None:
    config = Config(
        vm=VmConfig(isolation=isolation), units=(UnitConfig(name="iommu0"),), endpoints=ENDPOINTS, slots=slots
    )

    machine = Machine(
        config, emit=lambda event: None, wake=lambda worker: None, wake_at=lambda worker, when: None,
        ordering=NoOrdering(),
    )  # fmt: skip

    functions = {name: machine.functions[name] for name in (endpoint.name for endpoint in ENDPOINTS)}
    assert {
        name for name, function in functions.items() if isinstance(function, PciFunction) and function.msix_table
    } == kept
