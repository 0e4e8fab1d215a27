"""What tests of this directory share: traffic, and verdicts on where processors are and on what a reader got."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from guest_tests.payload import checks_hwrng, symbols, vfio
from guest_tests.payload.host import Host
from guest_tests.payload.lab import PAGE, TARGET_IOVA, Lab
from guest_tests.payload.stock import within

NLOOKS = 6
READ_S = 2.0  # a reader who has got nothing by then waits for good
KILLED_S = 5.0
SPINNING = ("__viommu_sync_req", "virtqueue_get_buf")


def map_and_unmap(lab: Lab) -> Callable[[], None]:
    """Work for a Worker: one page mapped and unmapped, with nothing in between."""
    page = vfio.Buffer(PAGE)

    def work() -> None:
        lab.container.map(TARGET_IOVA, page, vfio.READ | vfio.WRITE)
        lab.container.unmap(TARGET_IOVA, PAGE)

    return work


def waits_with_interrupts_off(host: Host, **rule: object) -> bool:
    """Whether, while a request is held because of `rule`, one and the same processor of the guest waits for its answer
    with interrupts off, whenever the host looks; afterwards the plan is clear."""
    known = symbols.places("viommu", "virtqueue")
    looks = host.step("look_while_held", rule=rule, looks=NLOOKS)
    waiting = [
        {
            number
            for number, (address, interrupts) in enumerate(processors)
            if symbols.name_at(address, known).startswith(SPINNING) and not interrupts
        }
        for processors in looks
    ]
    return bool(set.intersection(*waiting))


def read_hwrng() -> bool:
    """Whether somebody who reads /dev/hwrng gets anything; a reader who does not is killed. It must be killable."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if checks_hwrng.draw() else 2
        finally:
            os._exit(status)
    ended = within(READ_S, lambda: _is_over(pid))
    if not ended:
        os.kill(pid, signal.SIGKILL)
        assert within(KILLED_S, lambda: _is_over(pid)), "a reader of /dev/hwrng cannot be killed"
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _is_over(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
