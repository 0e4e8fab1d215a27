"""QEMU's own test of its virtio-iommu, as a table: each request, and its answer where bytes and where 4 KiB are mapped.

After tests/qtest/virtio-iommu-test.c of QEMU. EP stands for an endpoint of the device. `byte` is what QEMU's device and
ours with a granule of one byte answer, `at_4k` what ours does with a granule of 4 KiB: MAP off the granule is RANGE
(D30), and what was not mapped cannot be split. UNMAP itself may name any range (G16).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from guest_tests.payload.direct.wire import READ, Attach, Detach, Map, Request, Status, Unmap

OK, INVAL, RANGE, NOENT = Status.OK, Status.INVAL, Status.RANGE, Status.NOENT


@dataclass(frozen=True, slots=True)
class Step:
    """A request in words and its answers. `spec` is the number of the specification's UNMAP example (D44)."""

    words: str
    byte: Status
    at_4k: Status
    spec: int = 0

    def request(self, endpoint: int) -> Request:
        """What to send where the endpoint has this number."""
        kind, *numbers = self.words.split()
        return _REQUESTS[kind](*(endpoint if word == "EP" else int(word, 0) for word in numbers))


_REQUESTS: dict[str, Callable[..., Request]] = {
    "ATTACH": lambda domain, endpoint: Attach(domain=domain, endpoint=endpoint),
    "DETACH": lambda domain, endpoint: Detach(domain=domain, endpoint=endpoint),
    "MAP": lambda domain, start, end, phys: Map(
        domain=domain, virt_start=start, virt_end=end, phys_start=phys, flags=READ
    ),
    "UNMAP": lambda domain, start, end: Unmap(domain=domain, virt_start=start, virt_end=end),
}

ATTACH_DETACH = (
    Step("ATTACH 0 EP", OK, OK),
    Step("ATTACH 0 444", NOENT, NOENT),
    Step("DETACH 0 1", NOENT, NOENT),
    Step("ATTACH 1 EP", OK, OK),  # moves
    Step("DETACH 0 EP", INVAL, INVAL),
    Step("DETACH 1 EP", OK, OK),
    Step("ATTACH 1 EP", OK, OK),
    Step("MAP 1 0x0 0xfff 0xa1000", OK, OK),
    Step("MAP 1 0x2000 0x2fff 0xb1000", OK, OK),
    Step("DETACH 1 EP", OK, OK),
)

MAP_UNMAP = (
    Step("ATTACH 1 EP", OK, OK),
    Step("MAP 0 0x0 0xfff 0xa1000", NOENT, NOENT),
    Step("MAP 1 0x0 0xfff 0xa1000", OK, OK),
    Step("MAP 1 0x0 0xffff 0xb1000", INVAL, INVAL),  # overlaps
    Step("UNMAP 4 0x0 0xfff", NOENT, NOENT),
    Step("UNMAP 1 0x10 0xfff", RANGE, RANGE),  # would split
    Step("UNMAP 1 0x0 0x1000", OK, OK),  # more than is mapped
    Step("UNMAP 1 0 4", OK, OK, spec=1),  # nothing is mapped
    Step("MAP 1 0 9 0xa1000", OK, RANGE, spec=2),
    Step("UNMAP 1 0 9", OK, OK, spec=2),
    Step("MAP 1 0 4 0xa1000", OK, RANGE, spec=3),
    Step("MAP 1 5 9 0xb1000", OK, RANGE, spec=3),
    Step("UNMAP 1 0 9", OK, OK, spec=3),
    Step("MAP 1 0 9 0xa1000", OK, RANGE, spec=4),
    Step("UNMAP 1 0 4", RANGE, OK, spec=4),  # would split what only byte granules could map
    Step("UNMAP 1 0 9", OK, OK, spec=4),
    Step("MAP 1 0 4 0xa1000", OK, RANGE, spec=5),
    Step("MAP 1 5 9 0xb1000", OK, RANGE, spec=5),
    Step("UNMAP 1 0 4", OK, OK, spec=5),
    Step("UNMAP 1 5 9", OK, OK, spec=5),
    Step("MAP 1 0 4 0xa1000", OK, RANGE, spec=6),
    Step("UNMAP 1 0 9", OK, OK, spec=6),
    Step("MAP 1 0 4 0xa1000", OK, RANGE, spec=7),
    Step("MAP 1 10 14 0xb1000", OK, RANGE, spec=7),
    Step("UNMAP 1 0 14", OK, OK, spec=7),
    Step("UNMAP 1 0 100", OK, OK),  # nothing is left
    Step("MAP 1 10 14 0xa1000", OK, RANGE),
    Step("UNMAP 1 0 12", RANGE, OK),  # would split
    Step("MAP 1 10 14 0xb1000", INVAL, RANGE),  # so it is mapped still; the granule is looked at first (G15)
)
CASES = {"attach_detach": ATTACH_DETACH, "map_unmap": MAP_UNMAP}
