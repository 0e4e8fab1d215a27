"""Whatever a guest does to its rng and its mappings: nothing raises, and no byte lands where it may not write.

Seeded, a few seconds; VDEV_TIER=soak plays many more machines.
"""

from __future__ import annotations

import os
from contextlib import suppress
from random import Random

import pytest

from tests.support.virtio_endpoint import IOVA, PAGE, RW, RngRig
from tests.support.virtio_pci import RAM_GPA, RAM_NBYTES
from vdev.endpoints.virtio import ENDPOINT_FEATURES
from vdev.wire import viommu as wire

MACHINES = 2000 if os.environ.get("VDEV_TIER") == "soak" else 40
MOVES = 200
NPAGES = RAM_NBYTES // PAGE


class Player:
    """A guest at random, with a model of what it has mapped."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.rig = RngRig({"source": "seed:1", "max_bytes": self.random.choice((64, 5000, 1 << 40)), "period": 1})
        self.mapped = {IOVA // PAGE + page: (page, RW) for page in range(NPAGES)}
        self.rig.unmap(IOVA, RAM_NBYTES)
        for page in range(NPAGES):
            self.rig.map(IOVA + page * PAGE, page * PAGE, PAGE)
        self.rig.start(self.random.choice((ENDPOINT_FEATURES, ENDPOINT_FEATURES & ~(3 << 28))))
        self.landed = 0

    def writable_pages(self) -> set[int]:
        """Pages of RAM the device may write now."""
        if not self.rig.rng.dma_enabled or self.rig.door.frozen:
            return set()
        return {page for page, flags in self.mapped.values() if flags & wire.MAP_F_WRITE}

    def slice(self) -> None:
        """One slice; only what was mapped for writing may change."""
        before = bytes(self.rig.driver.ram)
        self.rig.now += self.random.choice((1000, 300_000, 2_000_000))
        self.rig.run()
        after = bytes(self.rig.driver.ram)
        if after == before:
            return
        starts = range(0, RAM_NBYTES, PAGE)
        changed = {at // PAGE for at in starts if after[at : at + PAGE] != before[at : at + PAGE]}
        assert changed <= self.writable_pages()
        self.landed += 1

    def remap(self) -> None:
        """A page changes its place or its permission, or goes."""
        number = self.random.choice(sorted(self.mapped))
        self.mapped.pop(number)
        self.rig.unmap(number * PAGE, PAGE)
        if self.random.random() < 0.9:
            page, flags = self.random.randrange(NPAGES), self.random.choice((RW, RW, RW, 1, 2, 0))
            self.rig.map(number * PAGE, page * PAGE, PAGE, flags)
            self.mapped[number] = (page, flags)

    def post(self) -> None:
        with suppress(IndexError, ValueError):
            sizes = [self.random.choice((0, 1, 64, 64, 200)) for _ in range(self.random.randrange(1, 4))]
            readable = [b"x"] if self.random.random() < 0.1 else []
            self.rig.ring.submit(readable, sizes, indirect=self.random.random() < 0.3)

    def post_anywhere(self) -> None:
        with suppress(IndexError):
            iova = self.random.choice((IOVA + self.random.randrange(RAM_NBYTES), RAM_GPA, self.random.getrandbits(64)))
            nbytes = self.random.choice((8, 64, 9000, 1 << 32 - 1))
            head, flags = self.rig.ring.free[-1], self.random.choice((2, 2, 3, 4))
            self.rig.ring.write_descriptor(head, iova, nbytes & 0xFFFF_FFFF, flags, self.random.randrange(8))
            self.rig.ring.offer(head)
            self.rig.ring.publish()

    def garble(self) -> None:
        at = self.random.randrange(self.rig.ring.stop)
        self.rig.driver.ram[at : at + 2] = self.random.randbytes(2)

    def toggle(self) -> None:
        act = self.random.randrange(5)
        if act == 0:
            self.rig.driver.bus_master(self.random.random() < 0.5)
        elif act == 1:
            self.rig.rng.freeze(self.random.random() < 0.5)
        elif act == 2:
            self.rig.rng.quiesce()
        elif act == 3:
            self.rig.rng.reset()
        else:
            self.rig.driver.write(self.random.randrange(0x40), 1, self.random.randrange(256))

    def restart(self) -> None:
        """A driver that puts its ring where it is mapped, as far as it still is."""
        self.rig.rng.freeze(False)
        self.rig.driver.bus_master(True)
        for page in range(4):
            if self.mapped.pop(IOVA // PAGE + page, None) is not None:
                self.rig.unmap(IOVA + page * PAGE, PAGE)
            self.rig.map(IOVA + page * PAGE, page * PAGE, PAGE)
            self.mapped[IOVA // PAGE + page] = (page, RW)
        self.rig.start()

    def reap(self) -> None:
        with suppress(AssertionError, ValueError):  # a ring that was garbled
            self.rig.ring.reap()

    def move(self) -> None:
        moves = ((30, self.slice), (25, self.post), (10, self.reap), (6, self.remap), (3, self.post_anywhere))
        rare = ((1, self.garble), (2, self.toggle), (3, self.restart))
        acts = moves + rare
        self.random.choices([act for _, act in acts], [weight for weight, _ in acts])[0]()


@pytest.mark.soak(count=MACHINES * MOVES, seed=f"0..{MACHINES - 1}")
@pytest.mark.timeout(600)
def test_no_guest_makes_its_rng_raise_or_write_where_it_may_not() -> None:
    landed = 0
    for seed in range(MACHINES):
        player = Player(seed)
        for _ in range(MOVES):
            player.move()
        landed += player.landed

    assert landed > 5 * MACHINES  # the moves do get as far as bytes
