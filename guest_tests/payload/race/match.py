"""One race: an operation is under way, at a chosen time what it needs is taken away, and then everything is looked at.

As soon as the answer is there, or the register access has returned, what was taken belongs to somebody else: it is
copied and overwritten with a canary. When everything has come to rest the copy must be what the completion says, and
the canary must be whole: no byte landed late. What was read late would be a canary at the place it was copied to.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from random import Random

from .. import accel as engine
from ..direct import Map, Unmap
from ..direct.answers import Answer
from ..direct.wire import Access
from .field import DOMAIN, SPARE_IOVA, Field
from .ground import Operand, Piece, canary, draw, noise
from .job import Job
from .judge import Judge, Taken, Wish

LIMIT_NS = 10_000_000_000
TARGET_IOVA, SOURCE_IOVA, BESIDE_IOVA = 0x1000_0000, 0x4000_0000, 0x10_0000_0000


class Match(Judge):
    """One race on a field, all of it drawn from `rng`."""

    def __init__(self, field: Field, rng: Random) -> None:
        super().__init__(field)
        self.rng = rng
        self.scale = rng.choice(field.scales)
        self.mapped: list[tuple[int, int, int]] = []  # domain, iova, stop: to be unmapped at the end
        self.shared = False  # two engines have the same target
        self.has_rings = True
        self.restarted = False
        self._pending: dict[int, Wish] = {}
        self.main = self._draw_job()
        self.jobs.append(self.main)

    # the operations

    def _draw_job(self) -> Job:
        rng, field = self.rng, self.field
        name = rng.choice(("FILL", "FILL", "COPY", "COPY", "COMPARE", "CHECKSUM"))
        at = rng.randrange(1 << 16) * self.scale.granule
        dst = src = None
        if name != "CHECKSUM":
            dst = draw(rng, field.target, TARGET_IOVA + at, self.scale)
        if name != "FILL":
            src = draw(rng, field.source, SOURCE_IOVA + at, self.scale, dst.nbytes if dst else None)
        return self.prepare(Job(field.accels[0], name, src, dst, b""))

    def prepare(self, job: Job) -> Job:
        """Known bytes in all of its memory."""
        for operand in job.operands:
            operand.fill(noise(self.rng, operand.area_nbytes))
        if job.name == "FILL":
            assert job.dst is not None
            job.arg = self.rng.getrandbits(64)
            job.data = (job.arg.to_bytes(8, "little") * (job.dst.nbytes // 8 + 1))[: job.dst.nbytes]
        elif job.name == "COPY":
            assert job.src is not None
            job.data = job.src.content
        elif job.name == "COMPARE":
            assert job.src is not None
            assert job.dst is not None
            job.dst.put(job.src.content)
        else:
            assert job.src is not None
            job.arg = zlib.crc32(job.src.content)
        return job

    def add_beside(self) -> None:
        """Another engine of the domain works as well: on memory of its own, or on the same, by the same pattern."""
        accel = self.field.accels[1]
        if self.shared and self.main.name == "FILL":
            job = Job(accel, "FILL", None, self.main.dst, self.main.data, self.main.arg)
        else:
            dst = draw(self.rng, self.field.beside, BESIDE_IOVA, self.scale)
            job = self.prepare(Job(accel, "FILL", None, dst, b""))
            self.map(DOMAIN, dst)
        self.jobs.append(job)

    # mappings

    def map(self, domain: int, operand: Operand, access: int = 3) -> None:
        """Map all pieces of `operand` where nothing is under way."""
        self.field.send_all(list(self.maps(domain, operand, access)))

    def maps(self, domain: int, operand: Operand, access: int = 3) -> list[Map | Unmap]:
        """The requests for that."""
        gpa = operand.buffer.gpa
        self.mapped.append((domain, operand.pieces[0].iova, operand.pieces[-1].stop))
        return [
            Map(domain=domain, virt_start=p.iova, virt_end=p.stop - 1, phys_start=gpa + p.at, flags=access)
            for p in operand.pieces
        ]

    def map_operands(self) -> None:
        """Those of the main operation, with no more rights than it needs, or with all."""
        for operand in self.main.operands:
            least = Access.WRITE if operand is self.main.dst and self.main.writes else Access.READ
            self.map(DOMAIN, operand, self.rng.choice((3, int(least))))

    # requests

    def post(self, wishes: Sequence[Wish]) -> None:
        """Send all by one doorbell; nothing is waited for."""
        queue = self.field.viommu.requests
        now = self.clock.now()
        for wish in wishes:
            wish.asked_ns = now
            self.told.append((now, wish.request))
            chain = queue.chain(wish.request)
            queue.ring.post(chain)
            self._pending[id(chain)] = wish
            self.wishes.append(wish)
        queue.publish()
        self.clock.look()
        self.reap()

    def reap(self) -> None:
        """Whatever is answered: what its wish takes is taken."""
        if not self.has_rings:
            return
        queue = self.field.viommu.requests
        for used in queue.ring.reap():
            wish = self._pending.pop(id(used.chain))
            written = used.chain.written()
            queue.ring.recycle(used.chain)
            answer = Answer(used.nbytes, written)
            self.must(answer.ok, f"{wish.request} was answered {answer}")
            wish.answered_ns = self.clock.now()
            self.told.append((wish.answered_ns, wish))
            wish.taken()

    def wait(self) -> None:
        """Until everything is answered."""
        limit = self.clock.now() + LIMIT_NS
        while self._pending:
            self.must(self.clock.now() < limit, f"no answer to {[w.request for w in self._pending.values()]}")
            self.clock.step()
            self.reap()

    def take_rings(self, memories: Sequence[memoryview]) -> None:
        """The unit's rings belong to somebody else, and what waits in them is never answered."""
        self._pending.clear()
        self.has_rings = False
        for memory in memories:
            self._take(memory, None, 0)
            self.taken[-1].is_ring = True

    def give_rings_back(self) -> None:
        """A new driver begins: the old rings must be as they were left until now."""
        self.let_land()
        self.judge_canaries()
        self.taken = [taken for taken in self.taken if not taken.is_ring]
        self.field.viommu.start()
        self.has_rings = True

    @property
    def unanswered(self) -> bool:
        """Whether a request still waits."""
        return bool(self._pending)

    def restart(self) -> None:
        """A new driver of the engine, with a ring of its own, works with it at once."""
        accel, field = self.main.accel, self.field
        self.restarted = self.main.may_vanish = True
        accel.function.awake()
        driver = engine.Accelerator(accel.registers, field.spare.memory, SPARE_IOVA)
        if self.rng.random() < 0.5:
            driver.start()
        else:
            driver.start_without_reset()
        index = driver.submit(engine.Operation(engine.NOP))
        limit = self.clock.now() + LIMIT_NS
        while driver.status_of(index) == engine.PENDING:
            self.must(self.clock.now() < limit, "the engine does not work again")
            self.clock.step()

    # what changes hands

    def take(self, operand: Operand, pieces: Sequence[Piece]) -> None:
        """These mappings' memory belongs to somebody else from now on, if all of it does not anyway."""
        if any(taken.operand is operand and not taken.at for taken in self.taken):
            return
        for piece in pieces:
            self._take(operand.buffer.memory[piece.at : piece.at + piece.nbytes], operand, piece.at)

    def take_everything(self, job: Job, *, ring: bool = True) -> None:
        """So does all memory of `job`: gaps, and its ring, included."""
        for operand in job.operands:
            mine = [taken for taken in self.taken if taken.operand is operand]
            if all(taken.at for taken in mine):
                for taken in mine:
                    taken.passed_on = True
                self._take(operand.buffer.memory[: operand.area_nbytes], operand, 0)
        if ring and not job.ring:
            job.ring = bytes(job.accel.ring.memory)
            self._take(job.accel.ring.memory, None, 0)

    def take_memory(self, memory: memoryview) -> None:
        """So does this."""
        self._take(memory, None, 0)

    def _take(self, memory: memoryview, operand: Operand | None, at: int) -> None:
        mine = canary(self.rng, len(memory))
        self.taken.append(Taken(memory, bytes(memory), mine, operand, at))
        memory[:] = mine

    # the end

    def settle(self) -> None:
        """Until all operations have ended, and as much longer as anything could still land."""
        clock = self.clock
        limit = clock.now() + LIMIT_NS
        while not all(job.may_vanish or job.has_ended for job in self.jobs):
            self.must(clock.now() < limit, "an operation never ends")
            clock.step()
        self.let_land()

    def let_land(self) -> None:
        """As much time as anything in flight needs that must not land."""
        self.clock.until(self.clock.now() + self.field.latency_ns + self.field.slack_ns)

    def clean_up(self) -> None:
        """Nothing of it stays mapped."""
        if self.mapped:
            self.field.send_all(
                [Unmap(domain=domain, virt_start=iova, virt_end=stop - 1) for domain, iova, stop in self.mapped]
            )
