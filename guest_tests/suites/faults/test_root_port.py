"""An AER error at the root port in front of an endpoint, which QEMU has to make: a bridge has it do so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from guest_tests.payload.direct import PciFunction
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.host import Host

PORT, PORT_ID = "0000:00:02.0", 0x10  # in front of accel0
WAIT_S = 20.0
EXPRESS, AER = 0x10, 0x01  # capabilities
DEVCTL, REPORTING = 0x08, 0xF
UNCORRECTABLE, CORRECTABLE, ROOT_COMMAND, ROOT_STATUS, SOURCES = 0x04, 0x10, 0x2C, 0x30, 0x34
ALL_ERRORS = 0x7
CORRECTABLE_RECEIVED, UNCORRECTABLE_RECEIVED = 1 << 0, 1 << 2


class Port:
    """The port's own registers about errors; the kernel's port driver is not there in this suite's guests."""

    def __init__(self, function: PciFunction) -> None:
        self._function = function
        self._at = function.capability(AER, extended=True).offset
        control = function.capability(EXPRESS).offset + DEVCTL
        function.write_config(control, 2, function.read_config(control, 2) | REPORTING)
        function.write_config(self._at + ROOT_COMMAND, 4, ALL_ERRORS)

    def read(self, register: int) -> int:
        """One of them."""
        return self._function.read_config(self._at + register, 4)

    def wipe(self) -> None:
        """Each status bit is cleared by writing it."""
        for register in (UNCORRECTABLE, CORRECTABLE, ROOT_STATUS):
            self._function.write_config(self._at + register, 4, self.read(register))


@pytest.fixture
def port() -> Iterator[Port]:
    with PciFunction(PORT) as function:
        port = Port(function)
        port.wipe()
        yield port
        port.wipe()


def outcome(host: Host, rule: str) -> str:
    """Why QEMU did not do its part of a rule; empty if it did."""
    deadline = time.monotonic() + WAIT_S
    while not (said := [one for one in host.control("query-events", kinds=["FaultQemuDone"]) if one["rule"] == rule]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return str(said[-1]["error"])


@pytest.mark.parametrize(
    ("error", "register", "bit", "received"),
    [
        ("unsupported-request", UNCORRECTABLE, 20, UNCORRECTABLE_RECEIVED),
        ("completion-timeout", UNCORRECTABLE, 14, UNCORRECTABLE_RECEIVED),
        ("bad-tlp", CORRECTABLE, 6, CORRECTABLE_RECEIVED),
    ],
)
def test_the_port_has_the_error_and_names_itself_as_its_source(
    faults: Faults, host: Host, port: Port, error: str, register: int, bit: int, received: int
) -> None:
    faults.add("timer", "aer", id=f"at-port-{error}", function="accel0", error=error)

    came = outcome(host, f"at-port-{error}")

    sources = port.read(SOURCES)
    assert came == ""
    assert port.read(register) == 1 << bit
    assert port.read(ROOT_STATUS) & received
    assert PORT_ID in (sources & 0xFFFF, sources >> 16)


def test_without_the_root_port_qemu_is_not_asked(faults: Faults, host: Host, port: Port) -> None:
    def told() -> list[dict[str, Any]]:
        return list(host.control("query-events", kinds=["FaultQemuDone", "FaultWantsQemu"]))

    before = told()

    rule = faults.add("timer", "aer", function="accel0", root=False)
    deadline = time.monotonic() + WAIT_S
    while not rule.fired:
        assert time.monotonic() < deadline

    assert rule.log()[0].get("note", "") == ""
    assert told() == before
    assert (port.read(UNCORRECTABLE), port.read(ROOT_STATUS) & ALL_ERRORS) == (0, 0)
