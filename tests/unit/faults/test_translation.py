"""The point translation: what an endpoint's access is told by a faulty IOMMU."""

from __future__ import annotations

import pytest

from tests.support import injected_endpoints
from tests.support.accelerator import descriptor
from tests.support.injected_endpoints import (
    ACCEL,
    BASE,
    CONTENT,
    DST,
    PAGE,
    SLOW,
    SRC,
    InjectedEndpoints,
    InjectedRng,
)
from vdev.config import Config, EndpointConfig, UnitConfig, VmConfig
from vdev.faults.events import FaultInjected
from vdev.functions.explain import Access, explain_access
from vdev.wire import viommu as wire
from vdev.wire.accelerator import CompletionStatus, Op

REFUSED = CompletionStatus.TRANSLATION_FAULT
READ, WRITE = wire.MAP_F_READ, wire.MAP_F_WRITE


scene = injected_endpoints.scene  # a fixture


def test_unmapped_is_refused_as_if_nothing_were_there(scene: InjectedEndpoints) -> None:
    scene.add("translation", "unmapped", match={"iova": hex(SRC)}, times=1)

    done = scene.copy()

    assert (done.status, done.fault_iova, done.access) == (REFUSED, SRC, READ)
    assert scene.faults() == [(wire.FAULT_R_MAPPING, SRC, READ)]
    assert scene.door.refused == {"not-mapped": 1}
    assert scene.target() == bytes(PAGE)
    assert scene.works()


@pytest.mark.parametrize(("iova", "access", "word"), [(SRC, READ, "no-read"), (DST, WRITE, "no-write")])
def test_no_permission_is_refused_as_the_mapping_would(
    scene: InjectedEndpoints, iova: int, access: int, word: str
) -> None:
    scene.add("translation", "no-permission", match={"iova": hex(iova)})

    done = scene.copy()

    assert (done.status, done.fault_iova, done.access) == (REFUSED, iova, access)
    assert scene.faults() == [(wire.FAULT_R_MAPPING, iova, access)]
    assert scene.door.refused == {word: 1}


def other_domain(scene: InjectedEndpoints) -> None:
    """Domain 2, where SRC leads a page further, half of it mapped by itself."""
    scene.ask(wire.Attach(wire.T_ATTACH, bytes(3), 2, 0x200))
    scene.map(2, SRC, SRC - BASE + PAGE, PAGE)
    scene.map(2, SRC + PAGE, SRC - BASE + 8 * PAGE, PAGE)


def test_wrong_domain_reads_by_the_mappings_of_another(scene: InjectedEndpoints) -> None:
    other_domain(scene)
    scene.add("translation", "wrong-domain", match={"iova": hex(SRC)}, with_={"domain": 2})
    scene.fill_source(2 * PAGE)
    scene.ram[SRC - BASE + PAGE : SRC - BASE + 2 * PAGE] = b"\x5a" * PAGE

    done = scene.do(descriptor(Op.COPY, src=SRC, dst=DST, nbytes=PAGE))

    assert done.status == CompletionStatus.OK
    assert scene.target() == b"\x5a" * PAGE


def test_wrong_domain_cuts_an_access_that_straddles_mappings(scene: InjectedEndpoints) -> None:
    other_domain(scene)
    scene.ram[SRC - BASE + 8 * PAGE :][:16] = b"\x11" * 16
    scene.ram[SRC - BASE + 2 * PAGE - 16 :][:16] = b"\x22" * 16
    scene.add("translation", "wrong-domain", match={"access": "read", "iova": hex(SRC + PAGE)}, with_={"domain": 2})

    scene.do(descriptor(Op.COPY, src=SRC + PAGE - 16, dst=DST, nbytes=32))

    assert scene.target(32) == b"\x22" * 16 + b"\x11" * 16


def test_wrong_domain_where_there_is_none_is_a_domain_fault(scene: InjectedEndpoints) -> None:
    scene.add("translation", "wrong-domain", match={"iova": hex(DST)}, with_={"domain": 77})

    done = scene.copy()

    assert (done.status, done.fault_iova) == (REFUSED, DST)
    assert scene.faults() == [(wire.FAULT_R_DOMAIN, DST, WRITE)]
    assert scene.door.refused == {"no-domain": 1}


def test_an_unmap_in_the_wrong_domain_waits_for_what_it_translated() -> None:
    scene = InjectedEndpoints(SLOW)
    other_domain(scene)
    scene.add("translation", "wrong-domain", match={"iova": hex(SRC)}, with_={"domain": 2})
    scene.submit(descriptor(Op.CHECKSUM, src=SRC, nbytes=PAGE))
    scene.accel.run_slice(scene.now_ns)

    scene.ask(wire.Unmap(wire.T_UNMAP, bytes(3), 2, SRC, SRC + PAGE - 1, bytes(4)))

    wait = scene.unit.engine.wait
    assert wait is not None
    assert [(flight.domain, flight.start) for flight in wait.flights] == [(2, SRC)]


@pytest.mark.parametrize(
    ("start", "end", "fault"),
    [
        (SRC, SRC + PAGE - 1, None),
        (SRC + 1, SRC + PAGE - 1, SRC),
        (SRC, SRC + PAGE - 2, SRC + PAGE - 1),
        (0, SRC - 1, SRC),
    ],
)
def test_aperture_refuses_what_leaves_it_and_nothing_else(
    scene: InjectedEndpoints, start: int, end: int, fault: int | None
) -> None:
    scene.add("translation", "aperture", match={"iova": hex(SRC)}, with_={"start": start, "end": end})

    done = scene.copy()

    if fault is None:
        assert (done.status, scene.target()) == (CompletionStatus.OK, CONTENT)
    else:
        assert (done.status, done.fault_iova) == (REFUSED, fault)
        assert scene.door.refused == {"outside-input-range": 1}


def test_an_access_is_met_once_whatever_its_slice_does_later(scene: InjectedEndpoints) -> None:
    scene.add("translation", "aperture", id="all", with_={"end": (1 << 64) - 1})

    scene.copy()

    (rule,) = scene.injector.describe()["rules"]
    assert rule["matched"] == 5  # descriptor, source, target, record, status


def test_what_was_met_says_whose_access_it_was(scene: InjectedEndpoints) -> None:
    scene.add("translation", "unmapped", match={"endpoint": "accel0", "domain": 1, "access": "write", "iova": hex(DST)})

    scene.copy()

    (event,) = [event for event in scene.events if isinstance(event, FaultInjected)]
    assert event.fields == {
        "unit": "iommu0",
        "endpoint": ACCEL,
        "domain": 1,
        "access": "write",
        "function": "accel0",
        "iova": DST,
        "iova_end": DST + PAGE - 1,
    }


def test_questions_meet_no_rules(scene: InjectedEndpoints) -> None:
    scene.add("translation", "unmapped", id="all")

    told = explain_access(scene.unit.engine, scene.door, Access("accel0", SRC, PAGE, READ))

    assert told.reason == ""
    assert scene.firings == []


def test_looks_at_a_ring_meet_no_rules_and_buffers_do() -> None:
    scene = InjectedRng()
    scene.add("translation", "unmapped", match={"endpoint": "rng0"}, when={"nth": 2})

    assert len(scene.draw()) == 1
    assert scene.draw() == []
    assert scene.rng.describe()["needs-reset"]
    scene.injector.clear()
    scene.bring_up()
    assert len(scene.draw()) == 1


def test_without_a_rule_doors_ask_the_engine_again(scene: InjectedEndpoints) -> None:
    rule = scene.add("translation", "unmapped", match={"iova": "0x0"})
    between = scene.door.translator

    scene.injector.remove(rule)

    assert between is not scene.unit.engine
    assert scene.door.translator is scene.unit.engine
    assert scene.door.detour is None
    assert scene.works()


def test_a_message_goes_the_same_way_under_required() -> None:
    config = Config(
        vm=VmConfig(isolation="required"),
        units=(UnitConfig(name="iommu0"),),
        endpoints=(EndpointConfig(name="accel0"),),
    )
    scene = InjectedEndpoints(config)
    doorbell = BASE + 0x30_0000
    scene.accel.bar_write(4, 0, doorbell.to_bytes(8, "little") + bytes(8))
    control = scene.accel.config.find(pci_msix()) + 2
    scene.accel.config_write(control, (0x8000).to_bytes(2, "little"))
    sent: list[tuple[int, int, int]] = []
    scene.accel.raise_message = lambda *message: sent.append(message)
    scene.add("translation", "unmapped", match={"iova": hex(doorbell)}, times=1)

    scene.accel.signal(0)
    scene.accel.signal(0)

    assert sent == [(0, 0x30_0000, 0)]
    assert scene.faults() == [(wire.FAULT_R_MAPPING, doorbell, WRITE)]


def pci_msix() -> int:
    """The id of the MSI-X capability, which QEMU is shown as another."""
    return 0x11


def test_an_access_that_is_asked_about_again_as_it_lands_is_found_to_be_translated_wrongly() -> None:
    scene = InjectedEndpoints(Config(vm=VmConfig(isolation="required"), units=SLOW.units, endpoints=SLOW.endpoints))
    other_domain(scene)
    scene.add("translation", "wrong-domain", match={"iova": hex(SRC)}, with_={"domain": 2})

    done = scene.copy()

    assert done.status == REFUSED
    assert scene.door.refused == {"translation-changed": 1}
    assert scene.target() == bytes(PAGE)
