"""Where sizes, ranges and flags of a unit end, to the byte and the bit."""

from __future__ import annotations

from dataclasses import replace

from tests.support.iommu_requests import DOORBELL, ENDPOINTS, READ, UNIT, WRITE, probe_request
from vdev.iommu.engine import Engine
from vdev.iommu.fault_queue import FaultQueue, fault_record
from vdev.iommu.settings import RESV_PROPERTY_NBYTES
from vdev.wire import viommu as wire


def test_properties_may_fill_all_of_probe_size() -> None:
    unit = Engine(replace(UNIT, probe_size=RESV_PROPERTY_NBYTES), [ENDPOINTS[1]])

    reply = unit.handle(probe_request(DOORBELL), RESV_PROPERTY_NBYTES + wire.TAIL_NBYTES)

    assert [kind for kind, _ in wire.properties(reply[:RESV_PROPERTY_NBYTES])] == [wire.PROBE_T_RESV_MEM]
    assert reply[RESV_PROPERTY_NBYTES:] == wire.TAILS[wire.S_OK]


def test_a_report_has_no_flag_but_those_of_the_specification() -> None:
    record = wire.Fault.parse(fault_record(wire.FAULT_R_MAPPING, 0xFFFF_FFFF, 1, 0))

    assert record.flags == READ | WRITE | 1 << 8


def test_the_first_fault_lost_after_a_reset_is_told_as_the_first() -> None:
    queue = FaultQueue(1)
    before = [queue.put(b"1"), queue.put(b"2"), queue.put(b"3")]

    queue.replace([b"4"])

    assert before == [False, True, False]
    assert [queue.put(b"5"), queue.put(b"6")] == [True, False]
