"""No way around: unattached endpoints, the bypass byte, bypass domains, resets, the host, and interrupts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import (
    ATTACH_BYPASS,
    READ,
    WRITE,
    Accel,
    DmaArena,
    EngineStopped,
    Fault,
    Feature,
    Reason,
    RequestRefused,
    Status,
    Viommu,
)
from guest_tests.payload.direct.msix import MsixTable
from guest_tests.payload.direct.wire import BYPASS_OFFSET
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.host import Host, HostRefused

DOMAIN = 1
NOP_WITH_INTERRUPT = Operation(engine.NOP, flags=engine.FLAG_IRQ)


def assert_blocked(viommu: Viommu, accel: Accel) -> None:
    """An access of the unattached endpoint faults, with the reason that it has no domain."""
    accel.start()
    with pytest.raises(EngineStopped):
        accel.nop()
    assert viommu.wait_fault() == Fault(Reason.DOMAIN, READ, accel.endpoint, accel.ring.gpa)


def test_no_bypass_feature_is_offered_and_the_byte_is_zero(viommu: Viommu) -> None:
    assert not viommu.features & (Feature.BYPASS | Feature.BYPASS_CONFIG)
    assert viommu.transport.read_config(BYPASS_OFFSET, 1) == 0


def test_an_unattached_endpoint_reaches_nothing(viommu: Viommu, accel: Accel) -> None:
    assert_blocked(viommu, accel)


def test_a_written_bypass_byte_changes_nothing(viommu: Viommu, accel: Accel) -> None:
    viommu.transport.write_config(BYPASS_OFFSET, 1, 1)

    assert viommu.transport.read_config(BYPASS_OFFSET, 1) == 0
    assert_blocked(viommu, accel)


def test_a_bypass_domain_is_refused(viommu: Viommu, accel: Accel) -> None:
    with pytest.raises(RequestRefused) as caught:
        viommu.attach(domain=DOMAIN, endpoint=accel.endpoint, flags=ATTACH_BYPASS)

    assert caught.value.status == Status.INVAL
    assert_blocked(viommu, accel)


def test_a_detached_endpoint_reaches_nothing(viommu: Viommu, mapped_accel: Accel) -> None:
    viommu.detach(domain=mapped_accel.domain, endpoint=mapped_accel.endpoint)

    assert_blocked(viommu, mapped_accel)


def reset_by_driver(viommu: Viommu, host: Host) -> None:
    viommu.start()


def reset_by_host(viommu: Viommu, host: Host) -> None:
    host.control("reset-unit")


@pytest.mark.parametrize("reset", [reset_by_driver, reset_by_host])
def test_after_a_reset_nothing_passes(
    viommu: Viommu, mapped_accel: Accel, host: Host, reset: Callable[[Viommu, Host], None]
) -> None:
    reset(viommu, host)

    assert_blocked(viommu, mapped_accel)


def test_the_host_cannot_make_it_bypass(viommu: Viommu, accel: Accel, host: Host) -> None:
    with pytest.raises(HostRefused, match=r"does not offer BYPASS_CONFIG.*set vm\.isolation to preferred"):
        host.control("set-bypass", bypass=True)

    assert_blocked(viommu, accel)


def test_the_hosts_queries_say_so(viommu: Viommu, accel: Accel, host: Host) -> None:
    (unit,), (endpoint,) = host.control("query-units"), host.control("query-endpoints")

    assert (host.control("query-status")["isolation"], unit["isolation"]) == ("required", "required")
    assert (unit["bypass"], unit["bypass-offered"], unit["force-aperture"], unit["revalidate"]) == (
        False, False, True, True,
    )  # fmt: skip
    assert endpoint["path"] == "blocked"


def test_a_message_of_an_interrupt_is_no_way_to_memory(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    """A driver chooses where messages are written: here, memory that is mapped for nobody."""
    with closing(MsixTable(mapped_accel.function, dma)) as table:
        mapped_accel.registers.write32(engine.CONTROL, engine.ENABLE | engine.IRQ_ENABLE)

        mapped_accel.do(NOP_WITH_INTERRUPT)

        vector = table.vectors[0]
        assert viommu.wait_fault() == Fault(Reason.MAPPING, WRITE, mapped_accel.endpoint, vector.gpa)
        assert not vector.has_fired


def test_an_injected_fault_meets_a_message_as_it_meets_an_access(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena, faults: Faults
) -> None:
    with closing(MsixTable(mapped_accel.function, dma)) as table:
        vector = table.vectors[0]
        page = vector.gpa & ~0xFFF
        viommu.map(domain=mapped_accel.domain, iova=page, gpa=page, nbytes=4096)
        mapped_accel.registers.write32(engine.CONTROL, engine.ENABLE | engine.IRQ_ENABLE)
        rule = faults.add("translation", "unmapped", match={"iova": f"{vector.gpa:#x}"}, times=1)

        mapped_accel.do(NOP_WITH_INTERRUPT)
        fault, refused = viommu.wait_fault(), vector.has_fired
        mapped_accel.do(NOP_WITH_INTERRUPT)

        assert fault == Fault(Reason.MAPPING, WRITE, mapped_accel.endpoint, vector.gpa)
        assert (refused, rule.fired) == (False, 1)
        assert viommu.faults() == []  # the second passed
