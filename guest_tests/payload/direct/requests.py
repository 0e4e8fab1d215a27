"""The request queue: any bytes in any layout go in, an Answer comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .answers import DIRECT, Answer, Layout
from .errors import NoAnswer, RingViolation
from .queue import TIMEOUT_S, Queue
from .vring import Chain, Used
from .wire import TAIL_NBYTES, Request


class RequestQueue(Queue):
    """Queue 0 of a unit."""

    explain: Callable[[], str] = str  # added to the text of NoAnswer

    def chain(self, request: Request | bytes, nwritable: int = TAIL_NBYTES, layout: Layout = DIRECT) -> Chain:
        """The descriptors of a request, good ones, not posted yet. Raises RingFull, ValueError."""
        data = to_bytes(request)
        chain = self.ring.chain(layout.segments(len(data), nwritable), indirect=layout.indirect)
        chain.set_readable(data)
        return chain

    def send_chain(self, chain: Chain, timeout_s: float = TIMEOUT_S) -> Answer:
        """Post a chain as it stands and wait for it. Raises NoAnswer, DeviceBroken, RingViolation.

        After NoAnswer the chain is given up: an answer that comes later is nobody's.
        """
        (used,) = self._exchange([chain], timeout_s)
        return self._answer(used)

    def submit(
        self,
        requests: Sequence[Request | bytes],
        nwritable: int = TAIL_NBYTES,
        layout: Layout = DIRECT,
        timeout_s: float = TIMEOUT_S,
    ) -> list[Answer]:
        """Send many, one kick for as many as the ring holds; answers in the requests' order, as in `send_chain`."""
        answers: list[Answer] = []
        for batch in self._batches(requests, nwritable, layout):
            chains = [self.chain(request, nwritable, layout) for request in batch]
            used = {id(one.chain): one for one in self._exchange(chains, timeout_s)}
            answers += [self._answer(used[id(chain)]) for chain in chains]
        return answers

    def _exchange(self, chains: Sequence[Chain], timeout_s: float) -> list[Used]:
        for chain in chains:
            self.ring.post(chain)
        self.publish()
        try:
            return self.wait_used(len(chains), timeout_s, self.explain)
        except NoAnswer:
            for chain in chains:
                self.ring.give_up(chain)
            raise

    def _batches(
        self, requests: Sequence[Request | bytes], nwritable: int, layout: Layout
    ) -> list[Sequence[Request | bytes]]:
        longest = max((len(to_bytes(request)) for request in requests), default=1)
        cost = 1 if layout.indirect else len(layout.segments(longest, nwritable))
        step = max(1, self.ring.size // cost)
        return [requests[at : at + step] for at in range(0, len(requests), step)]

    def _answer(self, used: Used) -> Answer:
        chain = used.chain
        written = chain.written()
        answer = Answer(used.nbytes, written)
        self.ring.recycle(chain)
        if used.nbytes > chain.nwritable:
            raise RingViolation(f"used length {used.nbytes} for a chain with {chain.nwritable} writable bytes")
        return answer


def to_bytes(request: Request | bytes) -> bytes:
    """The device-readable bytes of a request."""
    return request if isinstance(request, bytes) else request.pack()
