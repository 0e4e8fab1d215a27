"""Waits that take long, so that they are for VDEV_TIER=soak: the machines of that tier alone run them."""

from __future__ import annotations

import pytest
from test_requests import BOTH, copies, of

from guest_tests.payload import accel, checks_open, guest, vfio
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.guest import KernelLog
from guest_tests.payload.lab import PAGE, TARGET_IOVA, Lab, copy
from guest_tests.payload.stock import newest_kernel, within

HOLD_S = 45
LOG_S = 10.0

pytestmark = pytest.mark.timeout(200)


@pytest.mark.machines("vhost-user", "*-cloud-backports")
def test_after_a_long_wait_older_kernels_complain_and_all_go_on(
    lab: Lab, faults: Faults, kernel_log: KernelLog
) -> None:
    page, mark = vfio.Buffer(PAGE), kernel_log.mark()
    with faults.injected("request", "hold", match=of("MAP"), times=1, seconds=HOLD_S):
        lab.container.map(TARGET_IOVA, page, BOTH)
    lab.container.unmap(TARGET_IOVA, PAGE)

    told = kernel_log.wait_for("rcu:", "self-detected stall", since=mark, timeout_s=LOG_S)
    assert (told is None) is newest_kernel()
    with lab.both_mapped():
        lab.run_ok(copy())


@pytest.mark.machines("vhost-user")
def test_the_kernel_gives_a_removed_function_up_after_a_minute(faults: Faults, kernel_log: KernelLog) -> None:
    lab, mark = Lab(kernel_log), kernel_log.mark()
    checks_open.driver_bound(lab)
    checks_open.own_group(lab)
    checks_open.opens_through_vfio(lab)
    faults.add("timer", "remove", function="accel0")
    assert within(LOG_S, lambda: lab.engine.registers.read32(accel.ID) == 0xFFFF_FFFF)

    lab.close()
    given_up = kernel_log.find(lab.bdf, "not ready 65535ms after FLR; giving up", since=mark)
    faults.clear()
    guest.unbind_driver(lab.bdf)

    assert given_up
    assert copies(kernel_log)
