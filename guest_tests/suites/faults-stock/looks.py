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
NBYTES = 512  # of /dev/hwrng, more than the kernel keeps from earlier reads
READ_S = 20.0
SILENT_S = 1.5  # a reader who has got nothing by then waits for good
KILLED_S = 10.0
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


class Reader:
    """Somebody who reads a little from /dev/hwrng, in a process of its own: it may have to wait for good."""

    def __init__(self) -> None:
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                descriptor = os.open(checks_hwrng.DEVICE, os.O_RDONLY)
                status = 0 if len(os.read(descriptor, NBYTES)) == NBYTES else 2
            finally:
                os._exit(status)

    def has_read(self, seconds: float) -> bool:
        """Whether it gets something by then; else it is killed, which must be possible."""
        if not within(seconds, self._is_over):
            os.kill(self._pid, signal.SIGKILL)
            assert within(KILLED_S, self._is_over), "a reader of /dev/hwrng cannot be killed"
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]) == 0

    def _is_over(self) -> bool:
        return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def rng_gives() -> bool:
    """Whether a reader of /dev/hwrng gets something."""
    return Reader().has_read(READ_S)


def rng_is_silent() -> bool:
    """Whether a reader of /dev/hwrng waits in vain."""
    return not Reader().has_read(SILENT_S)
