"""An AER error at the root port in front of an endpoint: the kernel reports it as the port's own, and goes on."""

from __future__ import annotations

import time
from typing import Any

import pytest

from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.guest import KernelLog
from guest_tests.payload.host import Host

PORT = "0000:00:02.0"  # in front of accel0
WAIT_S = 20.0


def outcome(host: Host, rule: str) -> dict[str, Any]:
    """What was said to have come of QEMU's part."""
    deadline = time.monotonic() + WAIT_S
    while not (said := [one for one in host.control("query-events", kinds=["FaultQemuDone"]) if one["rule"] == rule]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return dict(said[-1])


@pytest.mark.parametrize(
    ("error", "severity", "name"),
    [
        ("unsupported-request", "Uncorrectable (Non-Fatal)", "UnsupReq"),
        ("bad-tlp", "Correctable", "BadTLP"),
        ("completion-timeout", "Uncorrectable (Non-Fatal)", "CmpltTO"),
    ],
)
def test_the_kernel_reports_an_error_of_the_port_in_front_of_the_endpoint(
    faults: Faults, host: Host, kernel_log: KernelLog, error: str, severity: str, name: str
) -> None:
    mark = kernel_log.mark()

    faults.add("timer", "aer", id=f"at-port-{error}", function="accel0", error=error)

    assert outcome(host, f"at-port-{error}")["error"] == ""
    received = kernel_log.wait_for(PORT, severity, f"received from {PORT}", since=mark, timeout_s=WAIT_S)
    assert received is not None
    assert kernel_log.wait_for(PORT, name, since=mark, timeout_s=WAIT_S) is not None
