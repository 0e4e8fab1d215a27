"""Several units in one VM: their numbers, ranges, faults and resets are nothing to each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.iommu_requests import ENDPOINTS, READ, attach, map_
from vdev.assemble import Machine, Unit
from vdev.config import Config, EndpointConfig, UnitConfig
from vdev.errors import DmaError, TranslationFault
from vdev.iommu.engine import Engine
from vdev.iommu.settings import UnitSettings
from vdev.memory import Region
from vdev.virtio.ordering import NoOrdering
from vdev.wire import pci, viommu

PAGE = 4096
DOMAIN, IOVA = 1, 0x1_0000
NARROW_STOP, WIDE_STOP = 1 << 39, 1 << 64
GPAS = {"narrow": 0, "middle": PAGE, "wide": 2 * PAGE}  # where IOVA leads at each unit
RAM = b"n" * PAGE + b"m" * PAGE + b"w" * PAGE
CONFIG = Config(
    units=(
        UnitConfig(name="narrow", input_range=(0, NARROW_STOP - 1)),
        UnitConfig(name="middle", bdf="00:11.0", input_range=(0, (1 << 48) - 1), attach="vhost-user"),
        UnitConfig(name="wide", bdf="00:12.0", input_range=(0, WIDE_STOP - 1)),
    ),
    endpoints=(
        EndpointConfig(name="narrow0", unit="narrow"),
        EndpointConfig(name="middle0", unit="middle", bdf="02:00.0"),
        EndpointConfig(name="wide0", unit="wide", bdf="03:00.0"),
    ),
)


@pytest.fixture
def units() -> dict[str, Unit]:
    """At each unit: its endpoint NAME0 attached to DOMAIN, IOVA mapped to a page of its own, bus master on."""
    machine = Machine(
        CONFIG, emit=lambda event: None, wake=lambda worker: None, wake_at=lambda worker, at: None,
        ordering=NoOrdering(),
    )  # fmt: skip
    for name, unit in machine.units.items():
        unit.engine.set_features(-1)
        for endpoint in unit.endpoints.values():
            endpoint.config_write(pci.COMMAND, pci.Command.BUS_MASTER.to_bytes(2, "little"))
            endpoint.memory.add(Region(0, len(RAM), memoryview(bytearray(RAM))))
        for door in unit.doors.values():
            attach(unit.engine, DOMAIN, door.endpoint_id)
        map_(unit.engine, DOMAIN, IOVA, IOVA + PAGE - 1, GPAS[name])
    return machine.units


def read(unit: Unit, iova: int = IOVA, nbytes: int = 1) -> bytes:
    """What the unit's endpoint reads."""
    (door,) = unit.doors.values()
    return door.read(iova, nbytes)


def test_one_domain_number_and_one_address_are_each_units_own(units: dict[str, Unit]) -> None:
    assert {name: read(unit) for name, unit in units.items()} == {"narrow": b"n", "middle": b"m", "wide": b"w"}


def test_one_endpoint_number_at_two_units_is_two_endpoints() -> None:
    """Not in one PCI segment, where it is an address; the units know nothing of that."""
    first, second = (Engine(UnitSettings(name), ENDPOINTS) for name in ("first", "second"))
    number = ENDPOINTS[0].id
    for engine in (first, second):
        engine.set_features(-1)
    attach(first, DOMAIN, number)
    map_(first, DOMAIN, IOVA, IOVA + PAGE - 1)
    second.set_bypass(False)

    with pytest.raises(TranslationFault, match="no-domain"):
        second.translate(number, IOVA, 1, READ)
    assert first.translate(number, IOVA, 1, READ) == [(0, 1)]


@pytest.mark.parametrize("iova", [NARROW_STOP, 1 << 47, WIDE_STOP - PAGE])
def test_what_is_outside_one_units_range_is_mapped_and_reached_at_another(units: dict[str, Unit], iova: int) -> None:
    mapped = {name: map_(units[name].engine, DOMAIN, iova, iova + PAGE - 1, GPAS[name]) for name in ("narrow", "wide")}

    with pytest.raises(TranslationFault, match="outside-input-range"):
        read(units["narrow"], iova)

    assert mapped == {"narrow": viommu.S_RANGE, "wide": viommu.S_OK}
    assert read(units["wide"], iova, PAGE) == b"w" * PAGE
    faults = {name: unit.engine.describe()["counters"]["faults"] for name, unit in units.items()}
    assert faults == {"narrow": {"outside-input-range": 1}, "middle": {}, "wide": {}}
    assert units["narrow"].doors["narrow0"].refused == {"outside-input-range": 1}


RESETS: dict[str, Callable[[Unit], None]] = {
    "device": lambda unit: unit.device.reset(),
    "system": lambda unit: unit.device.system_reset(),
    "host": lambda unit: unit.device.host_reset(),
}


@pytest.mark.parametrize("kind", RESETS)
@pytest.mark.parametrize("name", ["narrow", "middle"])
def test_a_reset_of_one_unit_takes_its_own_domains_only(units: dict[str, Unit], name: str, kind: str) -> None:
    others = {other: unit for other, unit in units.items() if other != name}
    before = {other: unit.engine.snapshot() for other, unit in others.items()}

    RESETS[kind](units[name])

    assert units[name].engine.snapshot()["domains"] == []
    assert {other: unit.engine.snapshot() for other, unit in others.items()} == before
    assert {other: read(unit) for other, unit in others.items()} == {other: other[:1].encode() for other in others}


def test_dma_that_is_held_at_one_unit_goes_on_at_the_others(units: dict[str, Unit]) -> None:
    units["middle"].freezer.set("rings suspended", True)

    with pytest.raises(DmaError, match="frozen"):
        read(units["middle"])
    assert (read(units["narrow"]), read(units["wide"])) == (b"n", b"w")


def test_the_bypass_byte_of_one_unit_opens_no_other(units: dict[str, Unit]) -> None:
    for unit in units.values():
        unit.device.host_reset()  # nobody is attached any more
        unit.engine.set_bypass(False)

    units["wide"].engine.set_bypass(True)

    assert read(units["wide"], PAGE) == b"m"  # as guest memory has it
    with pytest.raises(TranslationFault, match="no-domain"):
        read(units["narrow"], PAGE)
