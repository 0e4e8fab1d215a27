"""Requests in one go, and what comes back of them as it lies in the used ring, whatever a driver would think of it."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from guest_tests.payload.direct import Map, Probe, Viommu
from guest_tests.payload.direct.wait import until
from guest_tests.payload.direct.wire import TAIL_NBYTES

EP, DOMAIN = 0x100, 1
FIRST_IOVA, FIRST_GPA, PAGE = 0x1000_0000, 0x20_0000, 0x1000
COME_S = 10.0  # within which must come what comes at all
ELEMENT = Struct("<II")
FENCE = -1  # the number of the request behind a burst


def map_pages(count: int, domain: int = DOMAIN) -> list[Map]:
    """MAPs of so many pages, which are nobody's."""
    spans = [(FIRST_IOVA + at * PAGE, FIRST_GPA + at * PAGE) for at in range(count)]
    return [
        Map(domain=domain, virt_start=iova, virt_end=iova + PAGE - 1, phys_start=gpa, flags=3) for iova, gpa in spans
    ]


class Burst:
    """Requests that were published at once, and a PROBE behind them. They are taken in their order, so whatever is to
    be answered at once has been when the PROBE is."""

    def __init__(self, viommu: Viommu, requests: Sequence[Map], *, fenced: bool = True) -> None:
        """Nothing else may be out. Raises RingFull."""
        queue = viommu.requests
        self._ring = ring = queue.ring
        self._first = self._published
        self.chains = [queue.chain(request) for request in requests]
        self._numbers = {chain.head: number for number, chain in enumerate(self.chains)}
        if fenced:
            fence = queue.chain(Probe(endpoint=EP), viommu.config.probe_size + TAIL_NBYTES)
            self._numbers[fence.head] = FENCE
        for chain in [*self.chains, *([fence] if fenced else [])]:
            ring.post(chain)
        queue.publish()
        if fenced and not until(lambda: FENCE in self.numbers(), COME_S):
            raise AssertionError(
                f"no answer to the request behind the burst; {queue.describe(viommu.transport.status)}"
            )

    def used(self) -> list[tuple[int, int]]:
        """Number of the request (from 0) and used length of every used element since, in their order."""
        ring, count = self._ring, (self._published - self._first) & 0xFFFF
        at = ring.used_gpa - ring.buffer.gpa + 4
        slots = [(self._first + number) % ring.size for number in range(count)]
        found = [ELEMENT.unpack_from(ring.buffer.memory, at + ELEMENT.size * slot) for slot in slots]
        return [(self._numbers[head], nbytes) for head, nbytes in found]

    def numbers(self) -> list[int]:
        """The requests alone."""
        return [number for number, _ in self.used()]

    def wait(self, count: int) -> list[int]:
        """As `numbers`, as soon as there are so many, the fence among them."""
        if not until(lambda: len(self.used()) >= count, COME_S):
            raise AssertionError(f"{count} used elements were wanted, there are {self.used()}")
        return self.numbers()

    @property
    def _published(self) -> int:
        ring = self._ring
        words = ring.buffer.memory[ring.used_gpa - ring.buffer.gpa :][:4].cast("H")
        return int(words[1])
