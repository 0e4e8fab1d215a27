"""The guest's driver of the PASID extension against our own device, in one process; clauses for drivers are here."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack_into

import pytest

from guest_tests.payload.direct import (
    ATTACH_PASID_MIRROR_RID,
    PASID_LAST,
    READ,
    Accel,
    Answer,
    AttachPasid,
    Feature,
    Granted,
    Layout,
    NotNegotiated,
    PasidAlloc,
    PasidFlag,
    PasidPool,
    PasidWidth,
    Probe,
    Reason,
    RequestRefused,
    ResvMem,
    ResvPasid,
    Space,
    Status,
    Subtype,
    Viommu,
)
from guest_tests.payload.direct.answers import DIRECT
from guest_tests.payload.direct.function import PASID_ENABLE, PASID_EXECUTE, PASID_PRIVILEGED
from guest_tests.payload.direct.wire import Request
from guest_tests.payload.direct.wire_pasid import FEATURES, PasidType
from tests.support.direct import SimMachine
from vdev.config import Config, EndpointConfig, PasidsConfig, UnitConfig, VmConfig
from vdev.iommu.pasid_set import Refusal

ENDPOINT, NARROW = 0x100, 0x200  # 20 bits, and 4 with some of its own
QUOTA = 4
CONFIG = Config(
    vm=VmConfig(pasids=PasidsConfig(quota=QUOTA)),
    units=(UnitConfig(name="iommu0"),),
    endpoints=(
        EndpointConfig(name="accel0", options={"pasid_execute": True}),
        EndpointConfig(name="accel1", bdf="02:00.0", reserved_pasids=("3..5",), options={"pasid_bits": 4}),
    ),
)
PAGE = 4096
MSI = ResvMem(Subtype.MSI, 0xFEE0_0000, 0xFEF0_0000)


class Rig:
    """A machine with PASIDs, and its unit started with `also`."""

    def __init__(self, also: int = FEATURES, **options: int | bool) -> None:
        self.machine = SimMachine(CONFIG)
        self.viommu = Viommu.open(self.machine.functions["iommu0"], self.machine.pool, also=also, **options)  # type: ignore[arg-type]
        self.pasids = self.viommu.pasids
        self.sent: list[bytes] = []
        self._send = self.viommu.send
        self.viommu.send = self._watched  # type: ignore[method-assign]

    @property
    def types(self) -> list[int]:
        """Of the requests so far."""
        return [request[0] for request in self.sent]

    def answer_short(self, used_nbytes: int, pasid: int = 0x100) -> None:
        """From now on the device writes its answer and tells another used length: no device of ours would."""

        def shortened(request: Request | bytes, nwritable: int = 4, layout: Layout = DIRECT, **_: float) -> Answer:
            written = bytearray(self._send(request, nwritable, layout).written)
            pack_into("<I", written, 0, pasid)
            return Answer(used_nbytes, bytes(written))

        self.viommu.send = shortened  # type: ignore[method-assign]

    def _watched(
        self, request: Request | bytes, nwritable: int = 4, layout: Layout = DIRECT, **options: float
    ) -> Answer:
        self.sent.append(request if isinstance(request, bytes) else request.pack())
        return self._send(request, nwritable, layout, **options)


def refusal(call: Callable[..., object], *args: int, **named: int) -> Status | int | None:
    """How it was refused."""
    with pytest.raises(RequestRefused) as caught:
        call(*args, **named)
    return caught.value.status


# requests, properties, configuration


def test_pasids_are_asked_for_and_are_not_among_the_defaults() -> None:
    machine = SimMachine(CONFIG)
    viommu = Viommu.open(machine.functions["iommu0"], machine.pool)

    assert viommu.transport.offered() & FEATURES == FEATURES
    assert not viommu.features & FEATURES
    assert viommu.probe(ENDPOINT) == [MSI]


def test_a_unit_without_them_cannot_be_started_with_them() -> None:
    machine = SimMachine()

    with pytest.raises(NotNegotiated, match=r"does not offer .*PASID"):
        Viommu.open(machine.functions["iommu0"], machine.pool, also=FEATURES)


def test_a_pasid_is_allocated_attached_detached_and_freed() -> None:
    pasids = Rig().pasids

    granted = pasids.alloc(first=7)
    pasids.attach(domain=1, endpoint=ENDPOINT, pasid=7)
    pasids.detach(domain=1, endpoint=ENDPOINT, pasid=7)

    assert granted == Granted(7, QUOTA - 1)
    assert (pasids.free(1, PASID_LAST), pasids.free(7)) == (1, 0)


def test_a_refusal_carries_status_and_request() -> None:
    pasids = Rig().pasids

    assert refusal(pasids.alloc, 0) == Status.INVAL
    assert refusal(pasids.free, 9, 8) == Status.RANGE
    assert refusal(pasids.attach, domain=1, endpoint=ENDPOINT, pasid=9) == Status.NOENT
    assert refusal(pasids.mirror, endpoint=ENDPOINT, pasid=9) == Status.NOENT
    assert refusal(pasids.detach, domain=1, endpoint=ENDPOINT, pasid=9) == Status.INVAL


def test_a_refused_allocation_has_an_answer_of_zeros() -> None:
    rig = Rig()
    rig.machine.allocator.refuse = Refusal.SUPPLY

    answer = rig.pasids.send(PasidAlloc())

    assert (answer.status, answer.used_nbytes, answer.written[:8]) == (Status.NOMEM, 12, bytes(8))


def test_the_configuration_is_read_as_one_generation_and_half_open() -> None:
    rig = Rig()
    rig.pasids.alloc()

    config = rig.pasids.config()

    assert (config.quota, config.used, config.start, config.stop) == (QUOTA, 1, 1, 1 << 20)
    assert config.space == Space.PER_GUEST
    assert config.raw[17:] == bytes(7)


def test_probe_tells_width_rights_and_what_is_reserved() -> None:
    viommu = Rig().viommu

    assert viommu.probe(ENDPOINT) == [MSI, PasidWidth(20, PasidFlag.EXECUTE)]
    assert viommu.probe(NARROW) == [MSI, PasidWidth(4, PasidFlag(0)), ResvPasid(3, 6)]


def test_the_capability_gives_the_width_and_enables_what_it_has() -> None:
    function = Rig().machine.functions["accel0"]

    assert function.pasid_bits == 20
    assert function.enable_pasids(PASID_ENABLE | PASID_EXECUTE | PASID_PRIVILEGED) == PASID_ENABLE | PASID_EXECUTE
    assert function.enable_pasids(0) == 0


@pytest.mark.parametrize("nbytes", [24, 48, 64])
def test_q8_a_fault_is_understood_in_either_length(nbytes: int) -> None:
    rig = Rig(nevents=0)
    rig.viommu.events.post(1, nbytes)
    function = rig.machine.functions["accel0"]
    function.enable_pasids()
    engine = Accel.open(function, rig.machine.pool).start_in(rig.viommu)

    with engine.refused(0x5000, READ):
        engine.checksum(0x5000, 8, pasid=9)

    fault = rig.viommu.wait_fault()
    assert (fault.reason, fault.pasid, fault.address, fault.endpoint) == (Reason.PASID, 9, 0x5000, ENDPOINT)
    assert len(fault.raw) == min(nbytes, 48)


def test_q8_the_driver_posts_buffers_of_48_bytes_where_it_knows_of_pasids() -> None:
    assert Rig().viommu.events.fault_nbytes == 48
    assert Rig(also=0).viommu.events.fault_nbytes == 24


# a driver that keeps the rules


@pytest.mark.parametrize("missing", [Feature.MAP_UNMAP, Feature.PROBE], ids=str)
def test_q1_no_feature_is_accepted_without_what_it_depends_on(missing: Feature) -> None:
    assert not Rig(without=missing).viommu.features & FEATURES


def test_q1_no_allocation_is_accepted_without_pasids() -> None:
    assert not Rig(also=Feature.PASID_ALLOC).viommu.features & FEATURES
    assert Rig(also=Feature.PASID).viommu.features & FEATURES == Feature.PASID


def test_a_pool_needs_pasids() -> None:
    with pytest.raises(NotNegotiated, match="PASID was not negotiated"):
        PasidPool(Rig(also=0).viommu)


def test_q2_use_ends_then_pairs_go_then_the_pasid_is_freed() -> None:
    rig = Rig()
    own = PasidPool(rig.viommu).take(last=2)
    own.attach(domain=1, endpoint=ENDPOINT, stop=lambda: rig.sent.append(b"1"))
    own.mirror(endpoint=NARROW, stop=lambda: rig.sent.append(b"2"))
    rig.sent.clear()

    own.release()

    detach, free = PasidType.DETACH_PASID, PasidType.PASID_FREE
    assert rig.types == [ord("2"), ord("1"), detach, detach, free]
    assert rig.pasids.config().used == 0


def test_q2_unmanaged_the_last_detach_is_the_end_of_it() -> None:
    rig = Rig(also=Feature.PASID)
    own = PasidPool(rig.viommu).take()
    own.attach(domain=1, endpoint=ENDPOINT)
    used = rig.pasids.config().used
    rig.sent.remove(Probe(endpoint=ENDPOINT).pack())

    own.release()

    assert rig.types == [PasidType.ATTACH_PASID, PasidType.DETACH_PASID]
    assert (used, rig.pasids.config().used) == (1, 0)


def test_q3_a_pasid_that_was_not_allocated_here_is_not_used() -> None:
    rig = Rig()
    pool = PasidPool(rig.viommu)
    freed = pool.take()
    freed.release()
    rig.sent.clear()

    with pytest.raises(ValueError, match="was not allocated here"):
        freed.attach(domain=1, endpoint=ENDPOINT)

    assert rig.sent == []


def test_q3_a_system_space_is_used_managed_or_not_at_all() -> None:
    machine = SimMachine(CONFIG)
    machine.allocator.change(space="system")
    viommu = Viommu.open(machine.functions["iommu0"], machine.pool, also=FEATURES)

    assert viommu.pasids.config().space == Space.SYSTEM
    assert PasidPool(viommu).take().number in machine.allocator.granted


def test_q4_reserved_fields_are_zero_and_a_mirroring_pair_has_no_domain() -> None:
    rig = Rig()
    own = PasidPool(rig.viommu).take()
    own.mirror(endpoint=ENDPOINT)
    own.release()

    alloc, attach, detach, free = (request for request in rig.sent if request[0] >= PasidType.ATTACH_PASID)
    assert (alloc[1:4], alloc[12:]) == (bytes(3), bytes(8))
    assert (attach[1:8], attach[16:]) == (bytes(7), ATTACH_PASID_MIRROR_RID.to_bytes(4, "little") + bytes(8))
    assert (detach[1:8], detach[16:]) == (bytes(7), bytes(12))
    assert (free[1:4], free[12:]) == (bytes(3), bytes(8))


def test_q5_the_quota_is_read_again_when_the_configuration_has_changed() -> None:
    rig = Rig(msix=True)
    pool = PasidPool(rig.viommu)
    before = pool.quota
    reads = len(rig.machine.functions["iommu0"].accesses)
    unread = pool.quota
    assert len(rig.machine.functions["iommu0"].accesses) == reads  # nothing has changed

    rig.machine.allocator.change(quota=9)
    rig.machine.run()

    assert (before, unread, pool.quota) == (QUOTA, QUOTA, 9)


def test_q5_without_interrupts_the_quota_is_read_each_time() -> None:
    rig = Rig()
    pool = PasidPool(rig.viommu)
    before = pool.quota

    rig.machine.allocator.change(quota=9)

    assert (before, pool.quota) == (QUOTA, 9)


def test_q5_it_asks_whatever_was_left_the_last_time() -> None:
    rig = Rig()
    pool = PasidPool(rig.viommu)
    for _ in range(QUOTA):
        pool.take()
    assert refusal(pool.take) == Status.NOMEM

    rig.machine.allocator.change(quota=QUOTA + 1)

    assert len({*pool.owned, pool.take().number}) == QUOTA + 1


@pytest.mark.parametrize("used_nbytes", [0, 4, 8, 11])
def test_q6_a_short_answer_is_a_failure_and_the_pasid_in_it_none(used_nbytes: int) -> None:
    # The device says 0x100, whose first byte looks like the status OK where the tail is sought at the used length.
    rig = Rig()
    pool = PasidPool(rig.viommu)
    rig.answer_short(used_nbytes)

    with pytest.raises(RequestRefused):
        pool.take()

    assert pool.owned == {}


def test_q7_a_pasid_that_is_too_wide_or_the_endpoints_own_is_not_attached() -> None:
    rig = Rig()
    pool = PasidPool(rig.viommu)
    wide, narrow, reserved = pool.take(16, 16), pool.take(2, 2), pool.take(4, 4)
    narrow.attach(domain=1, endpoint=NARROW)
    rig.sent.clear()

    with pytest.raises(ValueError, match="does not fit the 4 bits"):
        wide.attach(domain=1, endpoint=NARROW)
    with pytest.raises(ValueError, match="is reserved for endpoint"):
        reserved.mirror(endpoint=NARROW)

    assert rig.sent == []


def test_requests_are_packed_as_the_document_has_them() -> None:
    request = AttachPasid(domain=0x11, endpoint=0x22, pasid=0x33, flags=1).pack()

    assert request.hex() == "4000000011000000220000003300000001000000" + "00" * 8
