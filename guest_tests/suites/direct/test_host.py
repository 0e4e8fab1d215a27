"""Tests on both sides: what the guest does, the host sees; what the host does to the machine, the guest survives."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import (
    ATTACH_BYPASS,
    READ,
    WRITE,
    Accel,
    DmaArena,
    RequestRefused,
    TranslationFault,
    Viommu,
    wait,
)
from guest_tests.payload.direct.wire import Map
from guest_tests.payload.fixtures import OpenAccel
from guest_tests.payload.host import Host, HostRefused

SOURCE, TARGET, NOTHING, PAGE = 0x1_0000, 0x2_0000, 0x70_0000, 4096
MIB = 1 << 20


def seen(host: Host, unit: int = 0) -> dict[str, Any]:
    """A unit as vdev describes it."""
    described: dict[str, Any] = host.control("query-iommu")[unit]
    return described


def next_event(host: Host) -> int:
    """The number the next event will have."""
    (newest,) = host.control("query-events", limit=1)
    return int(newest["seq"]) + 1


def test_the_host_sees_the_domains_the_guest_made(viommu: Viommu, open_accel: OpenAccel, host: Host) -> None:
    first, second = (open_accel(number).endpoint for number in range(2))
    viommu.attach(domain=5, endpoint=first)
    viommu.attach(domain=9, endpoint=second, flags=ATTACH_BYPASS)
    viommu.map(domain=5, iova=SOURCE, gpa=0, nbytes=PAGE)
    viommu.map(domain=5, iova=TARGET, gpa=0, nbytes=PAGE)

    domains = sorted(seen(host)["domains"], key=lambda domain: int(domain["id"]))

    assert domains == [
        {"id": 5, "bypass": False, "endpoints": [first], "mappings": 2},
        {"id": 9, "bypass": True, "endpoints": [second], "mappings": 0},
    ]


def test_the_host_sees_mappings_come_and_go(viommu: Viommu, mapped_accel: Accel, host: Host) -> None:
    counts = [seen(host)["mappings"]]
    for number in range(10):
        viommu.map(domain=mapped_accel.domain, iova=SOURCE + number * PAGE, gpa=0, nbytes=PAGE)
    counts.append(seen(host)["mappings"])
    viommu.unmap(domain=mapped_accel.domain, iova=SOURCE, nbytes=4 * PAGE)
    counts.append(seen(host)["mappings"])
    viommu.detach(domain=mapped_accel.domain, endpoint=mapped_accel.endpoint)
    counts.append(seen(host)["mappings"])

    assert counts == [1, 11, 7, 0]


def test_the_host_counts_every_request_once(viommu: Viommu, mapped_accel: Accel, host: Host) -> None:
    before = seen(host)["counters"]["requests"]

    for _ in range(7):
        viommu.map(domain=mapped_accel.domain, iova=SOURCE, gpa=0, nbytes=PAGE)
        viommu.unmap(domain=mapped_accel.domain, iova=SOURCE, nbytes=PAGE)

    after = seen(host)["counters"]["requests"]
    assert {kind: after[kind] - before[kind] for kind in before if after[kind] != before[kind]} == {
        "MAP": 7,
        "UNMAP": 7,
    }


def test_the_host_counts_refused_requests_by_their_status(viommu: Viommu, host: Host) -> None:
    before = seen(host)["counters"]["refused"].get("NOENT", 0)

    for _ in range(3):
        with pytest.raises(RequestRefused):
            viommu.unmap(domain=77, iova=0, nbytes=PAGE)

    assert seen(host)["counters"]["refused"]["NOENT"] - before == 3


def test_the_host_counts_faults_by_their_reason(viommu: Viommu, mapped_accel: Accel, dma: DmaArena, host: Host) -> None:
    viommu.map_buffer(mapped_accel.domain, SOURCE, dma.alloc(PAGE), READ)
    before = seen(host)["counters"]["faults"]

    mapped_accel.run_all([Operation(engine.FILL, dst=iova, nbytes=8) for iova in (NOTHING, SOURCE, NOTHING)])

    after = seen(host)["counters"]["faults"]
    counted = {reason: after[reason] - before.get(reason, 0) for reason in ("not-mapped", "no-write")}
    assert counted == {"not-mapped": 2, "no-write": 1}


def test_the_hosts_events_have_the_fault_the_guest_got(viommu: Viommu, mapped_accel: Accel, host: Host) -> None:
    since = next_event(host)
    with pytest.raises(TranslationFault):
        mapped_accel.fill(NOTHING + 24, 8, 0)

    (event,) = host.control("query-events", since=since, kinds=["FaultRaised"])

    fault = viommu.wait_fault()
    assert (event["endpoint"], event["iova"], event["access"]) == (fault.endpoint, fault.address, WRITE)
    assert (event["unit"], event["reason"]) == ("iommu0", "not-mapped")


def test_the_hosts_events_have_requests_in_their_order(viommu: Viommu, accel: Accel, host: Host) -> None:
    since = next_event(host)
    viommu.attach(domain=2, endpoint=accel.endpoint)
    viommu.map(domain=2, iova=SOURCE, gpa=0, nbytes=PAGE)
    viommu.detach(domain=2, endpoint=accel.endpoint)

    events = host.control("query-events", since=since, kinds=["RequestHandled"])

    assert [event["type_name"] for event in events] == ["ATTACH", "MAP", "DETACH"]
    assert {event["domain"] for event in events} == {2}


def test_the_host_sees_the_bypass_byte_the_guest_wrote(viommu: Viommu, host: Host) -> None:
    viommu.bypass = False
    try:
        off = seen(host)["bypass"]
    finally:
        viommu.bypass = True

    assert (off, seen(host)["bypass"]) == (False, True)


def test_the_host_sees_the_features_that_were_negotiated(viommu: Viommu, host: Host) -> None:
    iommu_bits = 0x7F

    assert seen(host)["features"]["accepted"] == int(viommu.features) & iommu_bits


def test_qemu_sees_in_memory_what_dma_wrote(viommu: Viommu, mapped_accel: Accel, dma: DmaArena, host: Host) -> None:
    source, target = dma.random(16 * PAGE), dma.alloc(16 * PAGE)
    viommu.map_buffer(mapped_accel.domain, MIB, source, READ)
    viommu.map_buffer(mapped_accel.domain, 2 * MIB, target, WRITE)

    mapped_accel.copy(MIB, 2 * MIB, 16 * PAGE)

    digest = host.step("sha256_of_ram", gpa=target.gpa, nbytes=target.nbytes)
    assert digest == hashlib.sha256(source.read()).hexdigest()


def test_a_word_of_dma_memory_is_where_we_think_it_is(dma: DmaArena, host: Host) -> None:
    page = dma.alloc(PAGE)
    page.write((0xCAFE_F00D).to_bytes(4, "little"), 128)

    assert host.step("expect_word", gpa=page.gpa + 128, word=0xCAFE_F00D) == "0xcafef00d"


def test_operations_under_way_stand_still_in_a_pause_and_go_on_after_it(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena, host: Host
) -> None:
    target, total = dma.alloc(2 * MIB), 50
    for number in range(16):  # the same memory again and again: an operation takes long
        viommu.map_buffer(mapped_accel.domain, (64 + 2 * number) * MIB, target)
    work = [Operation(engine.FILL, dst=64 * MIB, nbytes=32 * MIB, arg=number) for number in range(1, total + 1)]
    last = mapped_accel.engine.submit(*work)
    records_gpa = mapped_accel.ring.gpa + engine.COMPLETIONS_OFFSET

    images = host.step("ram_twice_during_pause", gpa=records_gpa, nbytes=PAGE, seconds=0.1)

    first, second = (bytes.fromhex(image)[engine.STATUS_OFFSET :: engine.COMPLETION.size] for image in images)
    assert sum(first) < total * engine.OK  # it was in the middle of it
    assert first == second
    assert wait.until(lambda: mapped_accel.engine.status_of(last) != engine.PENDING, 20.0)
    assert mapped_accel.registers.read32(engine.COMPLETED) == total
    assert target.read() == total.to_bytes(8, "little") * (2 * MIB // 8)


def test_requests_in_the_ring_survive_a_pause(viommu: Viommu, accel: Accel, host: Host) -> None:
    viommu.attach(domain=1, endpoint=accel.endpoint)
    queue = viommu.requests
    for number in range(100):
        start = SOURCE + number * PAGE
        request = Map(domain=1, virt_start=start, virt_end=start + PAGE - 1, phys_start=0, flags=READ)
        queue.ring.post(viommu.chain(request))
    queue.publish()

    host.pause(0.1)

    assert len(queue.wait_used(100)) == 100
    assert seen(host)["mappings"] == 100


def test_mappings_and_domains_survive_a_pause(viommu: Viommu, mapped_accel: Accel, dma: DmaArena, host: Host) -> None:
    source, target = dma.random(PAGE), dma.alloc(PAGE)
    viommu.map_buffer(mapped_accel.domain, SOURCE, source, READ)
    viommu.map_buffer(mapped_accel.domain, TARGET, target, WRITE)

    host.pause(0.1)

    mapped_accel.copy(SOURCE, TARGET, PAGE)
    assert target.read() == source.read()


def test_a_step_may_look_while_the_machine_stands_still(viommu: Viommu, mapped_accel: Accel, host: Host) -> None:
    viommu.map(domain=mapped_accel.domain, iova=SOURCE, gpa=0, nbytes=PAGE)

    assert host.step("mappings_during_pause", unit="iommu0") == [2, 2, 2]


def test_a_fault_of_before_a_pause_is_not_lost(viommu: Viommu, mapped_accel: Accel, host: Host) -> None:
    mapped_accel.engine.submit(Operation(engine.FILL, dst=NOTHING, nbytes=8))

    host.pause(0.1)

    assert viommu.wait_fault().address == NOTHING


def test_an_assertion_of_a_step_reaches_the_test_with_its_text(dma: DmaArena, host: Host) -> None:
    page = dma.alloc(PAGE)

    with pytest.raises(HostRefused, match=r"0x00000000 is at .*, the guest says 0x00000001"):
        host.step("expect_word", gpa=page.gpa, word=1)


def test_an_error_of_qemu_reaches_the_test_with_its_text(host: Host) -> None:
    with pytest.raises(HostRefused, match="/nowhere"):
        host.qmp("qom-get", path="/nowhere", property="type")


def test_a_step_that_is_not_there_is_refused_by_its_name(host: Host) -> None:
    with pytest.raises(HostRefused, match="no `async def make_coffee"):
        host.step("make_coffee")


def test_a_step_with_wrong_arguments_is_refused(host: Host) -> None:
    with pytest.raises(HostRefused, match="unexpected keyword argument 'sugar'"):
        host.step("expect_word", sugar=2)


def test_a_control_command_that_is_not_there_is_refused(host: Host) -> None:
    with pytest.raises(HostRefused, match="no command 'query-coffee'"):
        host.control("query-coffee")


def test_a_stop_that_nobody_could_end_is_refused(host: Host) -> None:
    with pytest.raises(HostRefused, match=r"host\.pause"):
        host.qmp("stop")
