"""MSI-X messages under `isolation: required`: endpoints keep their tables, and each message goes through the IOMMU."""

from __future__ import annotations

from struct import pack

import pytest

from tests.support.iommu_requests import attach, map_
from tests.support.pci import put, standard
from vdev.assemble import Machine
from vdev.config import Config, EndpointConfig, Isolation, Reserved, UnitConfig, VmConfig
from vdev.endpoints.accelerator import MSIX_BAR, Accelerator
from vdev.virtio.ordering import NoOrdering
from vdev.wire import pci, viommu

ENDPOINT, DOMAIN, PAGE = 0x100, 1, 4096
DOORBELL, DATA = 0xFEE0_1000, 0x4021
MSI = Reserved(start=0xFEE00000, end=0xFEEFFFFF, kind="msi")


class Rig:
    """An accelerator whose driver has enabled MSI-X and pointed vector 0 at `address`."""

    def __init__(self, isolation: Isolation = "required", *, msi_region: bool = True) -> None:
        unit = UnitConfig(name="iommu0", reserved=(MSI,) if msi_region else ())
        config = Config(vm=VmConfig(isolation=isolation), units=(unit,), endpoints=(EndpointConfig(name="accel0"),))
        self.woken: list[str] = []
        machine = Machine(
            config,
            emit=lambda event: None,
            wake=lambda worker: self.woken.append(worker.name),
            wake_at=lambda worker, when_ns: None,
            ordering=NoOrdering(),
        )
        self.unit = machine.units["iommu0"]
        self.unit.engine.set_features(-1)
        accel = self.unit.endpoints["accel0"]
        assert isinstance(accel, Accelerator)
        self.accel = accel
        self.sent: list[tuple[int, int, int]] = []
        accel.raise_message = lambda vector, address, data: self.sent.append((vector, address, data))
        put(accel, pci.COMMAND, 2, pci.Command.MEMORY | pci.Command.BUS_MASTER)
        put(accel, standard(accel, pci.CapId.MSIX) + pci.MSIX_CONTROL, 2, pci.MSIX_ENABLE)

    def fire(self, address: int = DOORBELL) -> list[tuple[int, int, int]]:
        """The messages that come of an interrupt by vector 0."""
        self.accel.bar_write(MSIX_BAR, 0, pack("<QII", address, DATA, 0))
        self.sent.clear()
        self.woken.clear()
        self.accel.signal(0)
        return self.sent

    @property
    def refused(self) -> dict[str, int]:
        return self.unit.doors["accel0"].refused

    def fault(self) -> viommu.Fault:
        return viommu.Fault.parse(self.unit.engine.pending_faults.popleft())


@pytest.mark.parametrize(("isolation", "ours"), [("required", True), ("preferred", False), ("off", False)])
def test_the_msix_table_is_qemus_unless_isolation_is_required(isolation: Isolation, ours: bool) -> None:
    assert (Rig(isolation).accel.msix_table is not None) == ours


def test_a_message_to_the_doorbell_passes_once_the_endpoint_has_a_domain() -> None:
    rig = Rig()
    attach(rig.unit.engine, DOMAIN, ENDPOINT)

    assert rig.fire() == [(0, DOORBELL, DATA)]
    assert rig.refused == {}


def test_a_message_of_an_unattached_endpoint_is_refused_reported_and_counted() -> None:
    rig = Rig()

    assert rig.fire() == []

    assert rig.refused == {"no-domain": 1}
    fault = rig.fault()
    assert (fault.reason, fault.endpoint, fault.address) == (viommu.FAULT_R_DOMAIN, ENDPOINT, DOORBELL)
    assert fault.flags & viommu.FAULT_F_WRITE
    assert rig.woken == ["iommu0"]


@pytest.mark.parametrize("address", [0x1000, DOORBELL - 0x2000, (1 << 64) - 4])
def test_a_message_to_memory_that_is_not_mapped_is_a_fault(address: int) -> None:
    rig = Rig()
    attach(rig.unit.engine, DOMAIN, ENDPOINT)

    assert rig.fire(address) == []

    assert (rig.fault().address, sum(rig.refused.values())) == (address, 1)


def test_a_message_goes_where_its_mapping_leads() -> None:
    rig = Rig(msi_region=False)
    attach(rig.unit.engine, DOMAIN, ENDPOINT)
    map_(rig.unit.engine, DOMAIN, 0x8000, 0x8FFF, DOORBELL, viommu.MAP_F_WRITE)

    assert rig.fire(0x8010) == [(0, DOORBELL + 0x10, DATA)]


def test_a_message_over_two_mappings_goes_nowhere() -> None:
    rig = Rig()
    attach(rig.unit.engine, DOMAIN, ENDPOINT)
    map_(rig.unit.engine, DOMAIN, 0x8000, 0x8FFF, DOORBELL)
    map_(rig.unit.engine, DOMAIN, 0x9000, 0x9FFF, 0x1000)

    assert rig.fire(0x8FFE) == []
