"""Five drivers with one mistake each. Every one is caught by a scenario of `configs/scenarios`: docs/scenarios.md."""

from __future__ import annotations

from dataclasses import replace

from ..direct import Answer, Fault, Map, RequestRefused, Status
from ..direct.memory import PAGE_NBYTES
from ..direct.wire import TAIL_NBYTES, Request
from .driver import Driver, Loan, User


class ForgetsUnmap(Driver):
    """Gives memory to the next owner while the device still reaches it."""

    def take_back(self, loan: Loan) -> None:
        self.free(loan.buffer)


class ReusesPasid(Driver):
    """Asks for the end of a user, and lets the next one have its PASID and its memory before the answer is there."""

    def dismiss(self, user: User) -> None:
        ring = self.viommu.requests.ring
        ring.post(self.viommu.chain(self.detach_of(user)))
        self.viommu.requests.publish()
        self._forget(user)

    def ask(self, request: Request) -> Answer:
        """Its own answer, whatever answers to earlier requests come before it."""
        queue = self.viommu.requests
        chain = queue.chain(request)
        queue.ring.post(chain)
        queue.publish()
        while True:
            (used,) = queue.wait_used(1)
            answer = Answer(used.nbytes, used.chain.written())
            queue.ring.recycle(used.chain)
            if used.chain is chain:
                break
        if not answer.ok:
            raise RequestRefused(request, answer)
        return answer


class IgnoresUsedLength(Driver):
    """Looks for the status where it would be, however little the device says it wrote."""

    def ask(self, request: Request) -> Answer:
        answer = self.viommu.send(request)
        if answer.written[-TAIL_NBYTES] != Status.OK:
            raise RequestRefused(request, answer)
        return answer


class MapsShort(Driver):
    """Takes the first byte of the last page for the end."""

    def map_of(self, loan: Loan) -> Map:
        whole = super().map_of(loan)
        return replace(whole, virt_end=max(whole.virt_end - PAGE_NBYTES, whole.virt_start + PAGE_NBYTES - 1))


class LosesEventBuffer(Driver):
    """Gives the device one buffer less back each time."""

    def faults(self) -> list[Fault]:
        events = self.viommu.events
        events.reposts = False
        found = events.take()
        events.post(max(0, len(found) - 1))
        return found
