"""Each kind of record as the line a person reads, made of JSON alone."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from tests.support.trace import ATTACH, DECODER, ENDPOINT, FAULT, HEADER, MAP, MAPPED, REFUSED, UNMAP
from vdev import events
from vdev.control.pasid_events import PasidLease, PasidsReclaimed
from vdev.control.run_state import RunStateChanged
from vdev.faults.events import FaultInjected, FaultQemuDone, FaultsCleared, FaultWantsQemu
from vdev.functions.virtio_words import feature_words
from vdev.iommu.events import (
    BypassChanged,
    EndpointAdded,
    EndpointRemoved,
    EndpointStage,
    FaultRaised,
    FaultsDropped,
    PasidAllocated,
    PasidAttached,
    PasidDetached,
    PasidEnded,
    PasidFreed,
    PasidQuotaChanged,
    PasidQuotaExceeded,
    PasidRefused,
    ReplyHeld,
    RequestHandled,
    UnitReset,
)
from vdev.trace.records import Entry, Lost, Note, Recording
from vdev.trace.text import header_lines, line, size_words
from vdev.wire import viommu as wire
from vdev.wire.viommu_pasid import AttachPasid, DetachPasid, PasidAlloc, PasidFree
from vdev.wire.virtio_pci import F_VERSION_1

Z3 = bytes(3)

DETACH = wire.Detach(wire.T_DETACH, bytes(3), 1, ENDPOINT)
BYPASS = wire.Attach(wire.T_ATTACH, bytes(3), 2, 0x300, wire.ATTACH_F_BYPASS)
MMIO = wire.Map(wire.T_MAP, bytes(3), 1, 0, 0xFFF, 0xFEE0_0000, wire.MAP_F_MMIO | 0x40)
BACKWARDS = wire.Unmap(wire.T_UNMAP, bytes(3), 1, 0x2000, 0x1000)

LINES: list[tuple[object, str]] = [
    (MAPPED, "iommu0    MAP      domain 1 0x0010000000..0x00100fffff    1M -> 0x001f400000 rw-  OK            12.3 us"),
    (
        REFUSED,
        "iommu0    MAP      domain 1 0x0010000000..0x00100fffff    1M -> 0x001f400000 rw-  "
        "INVAL         12.3 us  overlaps a mapping",
    ),
    (
        RequestHandled("iommu0", "MAP", wire.S_INVAL, MMIO, "flags 0x44 are not all known"),
        "iommu0    MAP      domain 1 0x0000000000..0x0000000fff    4K -> 0x00fee00000 --m+0x40  "
        "INVAL         12.3 us  flags 0x44 are not all known",
    ),
    (
        RequestHandled("iommu0", "UNMAP", wire.S_OK, UNMAP),
        "iommu0    UNMAP    domain 1 0x0010000000..0x0010000fff    4K                     OK            12.3 us",
    ),
    (
        RequestHandled("iommu0", "UNMAP", wire.S_RANGE, BACKWARDS, "empty"),
        "iommu0    UNMAP    domain 1 0x0000002000..0x0000001000 (ends before it starts)   RANGE         12.3 us  empty",
    ),
    (
        RequestHandled("iommu0", "ATTACH", wire.S_OK, ATTACH),
        "iommu0    ATTACH   01:00.0 (accel0) to domain 1                                  OK            12.3 us",
    ),
    (
        RequestHandled("iommu0", "ATTACH", wire.S_NOENT, BYPASS, "no endpoint 0x300"),
        "iommu0    ATTACH   03:00.0 to domain 2 BYPASS                                    "
        "NOENT         12.3 us  no endpoint 0x300",
    ),
    (
        RequestHandled("iommu0", "DETACH", wire.S_OK, DETACH),
        "iommu0    DETACH   01:00.0 (accel0) from domain 1                                OK            12.3 us",
    ),
    (
        RequestHandled("iommu0", "PROBE", wire.S_OK, wire.Probe(wire.T_PROBE, bytes(3), ENDPOINT)),
        "iommu0    PROBE    01:00.0 (accel0)                                              OK            12.3 us",
    ),
    (
        RequestHandled("iommu0", "0x2a", None, None, "unknown type", (20, 4)),
        "iommu0    0x2a     readable_nbytes=20 writable_nbytes=4                          "
        "UNWRITTEN     12.3 us  unknown type",
    ),
    (
        ReplyHeld("iommu0", "UNMAP", {"domain": 1, "virt_start": 0x1000_0000, "virt_end": 0x1000_0FFF}, 9_812_345, 2),
        "iommu0    UNMAP    domain 1 0x0010000000..0x0010000fff    4K  "
        "answered now, held 9812.3 us for 2 accesses in flight",
    ),
    (
        ReplyHeld("iommu0", "DETACH", {"domain": 1, "endpoint": ENDPOINT}, 4_000, 1),
        "iommu0    DETACH   01:00.0 (accel0) from domain 1  answered now, held 4.0 us for 1 access in flight",
    ),
    (
        FAULT,
        "iommu0    FAULT    01:00.0 (accel0) write 0x0020000000                           not-mapped",
    ),
    (FaultsDropped("iommu0", 9), "iommu0    DROPPED  the queue of faults is full, 9 dropped so far"),
    (
        events.DmaDone(ENDPOINT, 0x1000, 0x2000, True, 2),
        "accel0    DMA      write 0x0000001000..0x0000002fff    8K in 2 pieces            OK",
    ),
    (
        events.DmaDone(ENDPOINT, 0x1000, 33, False, 0, "bus-master-off"),
        "accel0    DMA      read  0x0000001000..0x0000001020    33                        bus-master-off",
    ),
    (
        events.RegisterWritten("iommu0", "device_status", 3, "ACKNOWLEDGE|DRIVER"),
        "iommu0    REG      device_status = 0x3  ACKNOWLEDGE|DRIVER",
    ),
    (events.RegisterWritten("iommu0", "notify", 1, "queue 1 (events)"), "iommu0    REG      notify  queue 1 (events)"),
    (events.FunctionReset("accel0", "function-level"), "accel0    RESET    function-level (FLR)"),
    (events.FunctionReset("iommu0", "virtio"), "iommu0    RESET    by the driver: status 0 was written"),
    (UnitReset("iommu0", "system"), "iommu0    RESET    no endpoint is attached any more, bypass as at boot"),
    (
        UnitReset("iommu0", "host"),
        "iommu0    RESET    no endpoint is attached any more, bypass as at boot (reset-unit)",
    ),
    (BypassChanged("iommu0", True), "iommu0    BYPASS   endpoints without a domain pass untranslated"),
    (BypassChanged("iommu0", False), "iommu0    BYPASS   endpoints without a domain pass not at all"),
    (events.InterruptRaised("accel0", 1), "accel0    IRQ      vector 1"),
    (events.DeviceError("accel0", "BAD_TAIL", 0), "accel0    ERROR    the device says BAD_TAIL"),
    (
        events.DeviceError("accel0", "RING_FETCH", 0x1000),
        "accel0    ERROR    the device says RING_FETCH at 0x0000001000",
    ),
    (events.ConnectionChanged("iommu0", 7, True), "iommu0    CONNECT  process 7"),
    (events.ConnectionChanged("iommu0", 7, False), "iommu0    HANGUP   process 7"),
    (events.InterruptRaised("iommu0", None, "queue 1 (events)"), "iommu0    IRQ      queue 1 (events)"),
    (
        events.FunctionReset("iommu0", "new-driver"),
        "iommu0    RESET    by the driver: a start that is no resume proves it",
    ),
    (events.FunctionReset("accel0", "power-on"), "accel0    RESET    by power-on: it was removed, and is back"),
    (events.RingsChanged("iommu0", "resumed", "as before"), "iommu0    RINGS    resumed: as before"),
    (
        FaultRaised("iommu0", ENDPOINT, "pasid-not-attached", 1, 0x2000, 0x11),
        "iommu0    FAULT    01:00.0 (accel0) read  0x0000002000 PASID 0x11                pasid-not-attached",
    ),
    (
        events.DmaDone(ENDPOINT, 0x1000, 0x2000, True, 1, pasid=0x11),
        "accel0    DMA      write 0x0000001000..0x0000002fff    8K PASID 0x11             OK",
    ),
    (
        RequestHandled("iommu0", "ATTACH_PASID", wire.S_OK, AttachPasid(0x40, Z3, 7, ENDPOINT, 0x11)),
        "iommu0    ATTACH_PASID  01:00.0 (accel0) PASID 0x11 to domain 7                       OK            12.3 us",
    ),
    (
        RequestHandled("iommu0", "ATTACH_PASID", wire.S_OK, AttachPasid(0x40, Z3, 7, ENDPOINT, 0x11, 1)),
        "iommu0    ATTACH_PASID  01:00.0 (accel0) PASID 0x11 to domain 7 BYPASS                OK            12.3 us",
    ),
    (
        RequestHandled("iommu0", "ATTACH_PASID", wire.S_OK, AttachPasid(0x40, Z3, 0, ENDPOINT, 0x11, 2)),
        "iommu0    ATTACH_PASID  01:00.0 (accel0) PASID 0x11 follows the endpoint              OK            12.3 us",
    ),
    (
        RequestHandled("iommu0", "DETACH_PASID", wire.S_OK, DetachPasid(0x41, Z3, 7, ENDPOINT, 0x11)),
        "iommu0    DETACH_PASID  01:00.0 (accel0) PASID 0x11 from domain 7                     OK            12.3 us",
    ),
    (
        RequestHandled("iommu0", "DETACH_PASID", wire.S_OK, DetachPasid(0x41, Z3, 0, ENDPOINT, 0x11)),
        "iommu0    DETACH_PASID  01:00.0 (accel0) PASID 0x11 from what the endpoint is attached to  "
        "OK            12.3 us",
    ),
    (
        RequestHandled("iommu0", "PASID_ALLOC", wire.S_NOMEM, PasidAlloc(0x42, Z3, 1, 0xFFFFF), "no PASID: quota"),
        "iommu0    PASID_ALLOC  one of 0x1..0xfffff                                           "
        "NOMEM         12.3 us  no PASID: quota",
    ),
    (
        RequestHandled("iommu0", "PASID_FREE", wire.S_OK, PasidFree(0x43, Z3, 1, 0x20)),
        "iommu0    PASID_FREE  0x1..0x20                                                     OK            12.3 us",
    ),
    (
        ReplyHeld("iommu0", "PASID_ALLOC", {"first": 1, "last": 0xFFFFF}, 312_000, 0),
        "iommu0    PASID_ALLOC  one of 0x1..0xfffff  answered now, held 312.0 us for the host's PASID authority",
    ),
    (PasidAllocated("iommu0", 0x11), "iommu0    PASID    0x11 is the VM's, allocated through iommu0"),
    (PasidAllocated("", 0x11), "-         PASID    0x11 is the VM's, allocated for the host itself"),
    (PasidRefused("iommu0", "supply"), "iommu0    PASID    none to be had through iommu0: supply"),
    (PasidFreed("iommu0", (1, 2, 9), (2,)), "iommu0    PASID    0x1..0x2, 0x9 freed; in use still: 0x2"),
    (PasidFreed("iommu0", (1,), ()), "iommu0    PASID    0x1 freed"),
    (PasidEnded((1, 9)), "-         PASID    0x1, 0x9 not the VM's any more"),
    (
        PasidEnded(tuple(range(1, 40, 2))),
        "-         PASID    0x1, 0x3, 0x5, 0x7, 0x9, 0xb, 0xd, 0xf and 12 more not the VM's any more",
    ),
    (
        PasidAttached("iommu0", ENDPOINT, 0x11, 7),
        "iommu0    PASID    01:00.0 (accel0) PASID 0x11 attached to domain 7",
    ),
    (
        PasidAttached("iommu0", ENDPOINT, 0x11, None),
        "iommu0    PASID    01:00.0 (accel0) PASID 0x11 follows the endpoint",
    ),
    (
        PasidDetached("iommu0", ENDPOINT, 0x11, 0),
        "iommu0    PASID    01:00.0 (accel0) PASID 0x11 detached from domain 0",
    ),
    (
        PasidDetached("iommu0", ENDPOINT, 0x11, None),
        "iommu0    PASID    01:00.0 (accel0) PASID 0x11 follows no longer the endpoint",
    ),
    (PasidQuotaChanged(1000, 10), "-         PASID    the quota was 1000, now it is 10"),
    (PasidQuotaExceeded(10, 12), "-         PASID    the quota of 10 is used up (12 used)"),
    (PasidLease("held"), "-         PASID    the lease is held"),
    (PasidLease("lost", "it is gone"), "-         PASID    the lease is lost: it is gone"),
    (PasidsReclaimed((4, 5), "stuck"), "-         PASID    0x4..0x5 taken by an administrator: stuck"),
    (PasidsReclaimed((4,), ""), "-         PASID    0x4 taken by an administrator"),
    (EndpointAdded("iommu0", 0x200, "new"), "new       ADDED    02:00.0 (new) waits for QEMU"),
    (EndpointStage("iommu0", 0x200, "new", "probed"), "new       STAGE    02:00.0 (new) probed"),
    (EndpointRemoved("iommu0", 0x200, "new"), "new       REMOVED  02:00.0 (new) is gone"),
    (
        FaultInjected(
            "r1",
            2,
            "request",
            "status",
            {"unit": "iommu0", "type": "MAP", "domain": 1, "iova": 0x1000, "iova_end": 0x1FFF},
            "",
            {"status": "NOMEM", "perform": False},
        ),
        "iommu0    INJECT   rule r1, 2: status (status=NOMEM, perform=false) at request: "
        "MAP domain 1 iova 0x0000001000..0x0000001fff",
    ),
    (
        FaultInjected("r1", 1, "dma", "delay", {"unit": "iommu0", "endpoint": ENDPOINT, "pasid": 0x11}, "too many"),
        "iommu0    INJECT   rule r1, 1: delay at dma: 01:00.0 (accel0) pasid 0x11; too many",
    ),
    (
        FaultInjected("r1", 1, "register", "stuck", {"function": "accel0", "register": 0x10}),
        "iommu0    INJECT   rule r1, 1: stuck at register: 01:00.0 (accel0) register 0x10",
    ),
    (FaultInjected("r1", 1, "timer", "die", {}), "-         INJECT   rule r1, 1: die at timer"),
    (
        FaultWantsQemu("r1", 1, "pcie_aer_inject_error accel0 UNSUP"),
        "-         QEMU     rule r1, 1: QEMU is to do pcie_aer_inject_error accel0 UNSUP",
    ),
    (FaultQemuDone("r1", 1), "-         QEMU     rule r1, 1: QEMU has done its part"),
    (FaultQemuDone("r1", 1, "nobody"), "-         QEMU     rule r1, 1: not done by QEMU: nobody"),
    (
        FaultsCleared(2, ("accel0 is back",), ("die: it is dead",)),
        "-         CLEARED  2 rules cleared; accel0 is back; for good: die: it is dead",
    ),
    (RunStateChanged(True, "me"), "-         STOPPED  nothing of vdev touches guest memory (me)"),
    (RunStateChanged(False, ""), "-         RUNNING  work on guest memory goes on"),
    (Note("a check starts"), "-         NOTE     a check starts"),
    (Lost(12), "-         LOST     12 records: the reader was too slow for them"),
    (Recording(True, "recorded in memory"), "-         START    recorded in memory"),
    (Recording(False), "-         STOP"),
]


@dataclass
class PageRequested:
    """An event of a version to come."""

    unit: str
    endpoint: int
    pasid: int


def text_of(event: object, *, duration_ns: int | None = 12_345, colour: bool = False) -> str:
    record = DECODER.record(Entry(3, 412_731_499, event, duration_ns))
    if not isinstance(event, RequestHandled):
        record.pop("duration_us", None)
    return line(json.loads(json.dumps(record)), colour=colour)


@pytest.mark.parametrize(("event", "text"), LINES, ids=range(len(LINES)))
def test_every_kind_of_record_has_its_line(event: object, text: str) -> None:
    assert text_of(event) == f"    0.412731  {text}"


def test_an_event_without_words_of_its_own_shows_what_it_holds() -> None:
    record = DECODER.record(Entry(0, 0, PageRequested("iommu0", ENDPOINT, 5)))

    assert (record["kind"], record["endpoint"]) == ("event", "01:00.0")
    assert line(record).endswith("accel0    PageRequested  pasid=5")


def test_colour_is_there_only_when_asked_for_and_marks_what_was_refused() -> None:
    assert "\x1b" not in text_of(REFUSED)
    assert "\x1b[31m" in text_of(REFUSED, colour=True)
    assert "\x1b[31m" not in text_of(MAPPED, colour=True)


def test_a_record_keeps_numbers_as_numbers_and_addresses_as_hex_in_the_width_of_the_unit() -> None:
    record = DECODER.record(Entry(3, 1_500, MAPPED, 2_000, (ENDPOINT,)))

    assert record == {
        "seq": 3, "t": 0.000002, "kind": "request", "type": "MAP", "unit": "iommu0", "status": "OK",
        "fields": {
            "domain": 1, "virt_start": "0x0010000000", "virt_end": "0x00100fffff", "phys_start": "0x001f400000",
            "flags": "READ|WRITE",
        },
        "endpoints": ["01:00.0"], "duration_us": 2.0,
    }  # fmt: skip


def test_an_address_wider_than_the_unit_is_shown_whole() -> None:
    wide = wire.Map(wire.T_MAP, bytes(3), 1, 0, (1 << 64) - 1, MAP.phys_start, 0)

    assert "0xffffffffffffffff" in text_of(RequestHandled("iommu0", "MAP", wire.S_RANGE, wide, "outside"))


def test_the_header_says_what_the_trace_is_of() -> None:
    assert header_lines(HEADER) == [
        "# VM test, vdev 0.1.0; 0 is 2026-01-01T00:00:00.000Z",
        "# iommu0 is 00:10.0, accel0 is 01:00.0 behind iommu0",
    ]


@pytest.mark.parametrize(
    ("nbytes", "words"), [(0, "0"), (1, "1"), (1023, "1023"), (4096, "4K"), (3 << 20, "3M"), (1 << 39, "512G")]
)
def test_sizes_are_short_only_where_nothing_is_lost(nbytes: int, words: str) -> None:
    assert size_words(nbytes) == words


def test_features_are_named_and_those_without_a_name_numbered() -> None:
    assert (
        feature_words(wire.DEVICE_ID, F_VERSION_1 | wire.F_PROBE | 1 << 50 | 1 << 61) == "PROBE|VERSION_1|PASID|bit 61"
    )
    assert feature_words(4, F_VERSION_1 | 1) == "bit 0|VERSION_1"
    assert feature_words(4, 0) == "none"
