"""PASIDs while the host's authority does not answer: docs/virtio-iommu-pasid.md, P35 and P39."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from asking import EP
from pasid_asking import KERNEL, attach, status

from guest_tests.payload.direct import PASID_LAST, PasidAlloc, Status, Viommu
from guest_tests.payload.host import Host

pytestmark = pytest.mark.machines("*-user")  # in process there is no authority
BACK_S = 20.0


@pytest.fixture
def stop_authority(host: Host) -> Iterator[Callable[[], None]]:
    """Call it, and the authority answers nobody until the test ends."""
    stopped: list[int] = []
    yield lambda: stopped.append(host.step("authority_stops"))
    for pid in stopped:
        host.step("authority_goes_on", pid=pid)


def come_to(host: Host, used: int) -> bool:
    """Whether the authority comes to say that the VM has `used` PASIDs."""
    until = time.monotonic() + BACK_S
    while host.step("authority_has") != used:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def test_p35_an_allocation_that_nobody_answers_is_deverr(
    managed: Viommu, stop_authority: Callable[[], None], host: Host
) -> None:
    before = managed.pasids.config().used
    stop_authority()

    answer = managed.send(PasidAlloc(), nwritable=12, timeout_s=10.0)

    assert (answer.status, answer.written[:8]) == (Status.DEVERR, bytes(8))
    assert managed.pasids.config().used == before


def test_p35_a_grant_that_comes_too_late_goes_back(managed: Viommu, host: Host) -> None:
    pid = host.step("authority_stops")
    managed.send(PasidAlloc(), nwritable=12, timeout_s=10.0)
    host.step("authority_goes_on", pid=pid)

    assert come_to(host, KERNEL)


def test_p39_freeing_needs_no_authority_and_it_learns_of_it_later(managed: Viommu, host: Host) -> None:
    mine = [managed.pasids.alloc().pasid for _ in range(3)]
    managed.pasids.attach(domain=1, endpoint=EP, pasid=mine[0])
    pid = host.step("authority_stops")

    freed = managed.pasids.free(1, PASID_LAST)
    refused = status(managed, attach(mine[1]))
    host.step("authority_goes_on", pid=pid)
    pending = come_to(host, KERNEL + 1)  # one is attached
    managed.pasids.detach(domain=1, endpoint=EP, pasid=mine[0])

    assert (freed, refused, pending) == (3, Status.NOENT, True)
    assert come_to(host, KERNEL)
