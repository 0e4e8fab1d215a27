"""One operation of an engine under race: what it was told, what it may have come to, and what it must have done."""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import accel as engine
from ..direct import Accel, Access
from .errors import RaceError
from .ground import Operand

OPERATIONS = {"FILL": engine.FILL, "COPY": engine.COPY, "COMPARE": engine.COMPARE, "CHECKSUM": engine.CHECKSUM}


@dataclass(slots=True, eq=False)
class Job:
    """`data` is what lands in `dst` if all goes well. The flags say what else than OK may become of it."""

    accel: Accel
    name: str
    src: Operand | None
    dst: Operand | None
    data: bytes
    arg: int = 0
    may_fault: bool = False
    may_abort: bool = False
    may_vanish: bool = False  # no completion and no error: its engine was reset
    halts: frozenset[int] = frozenset()  # values of ERROR with which its engine may stand still instead
    gone: list[tuple[Operand, int, int]] = field(default_factory=list)  # bytes of operands that are mapped no longer
    index: int = -1
    ring: bytes = b""  # the ring's memory when it was taken away
    record: tuple[int, int, int, int] = (engine.PENDING, 0, 0, 0)  # status, result, fault_iova, access
    error: int = 0
    landed: int = 0

    @property
    def operands(self) -> list[Operand]:
        """Those it has."""
        return [operand for operand in (self.src, self.dst) if operand is not None]

    @property
    def writes(self) -> bool:
        """Whether anything lands anywhere."""
        return self.name in ("FILL", "COPY")

    def start(self) -> None:
        """Ring the doorbell."""
        operand = self.src or self.dst
        assert operand is not None
        operation = engine.Operation(
            OPERATIONS[self.name],
            self.src.iova if self.src else 0,
            self.dst.iova if self.dst else 0,
            operand.nbytes,
            self.arg,
        )
        self.index = self.accel.engine.submit(operation)

    @property
    def has_ended(self) -> bool:
        """Whether there is a completion, or the engine stands still."""
        if self.ring:
            return bool(self._status(self.ring)) or not self.accel.is_running
        return self.accel.engine.status_of(self.index) != engine.PENDING or not self.accel.is_running

    def look(self) -> None:
        """Read the completion, which does not change any more, and the ERROR register."""
        memory = self.ring or self.accel.ring.memory
        at = engine.COMPLETIONS_OFFSET + self.index * engine.COMPLETION.size
        _, status, _, _, result, iova, access, _ = engine.COMPLETION.unpack_from(memory, at)
        self.record = (status, result, iova, access)
        self.error = self.accel.error

    def judge(self, slice_nbytes: int) -> None:
        """RaceError unless the completion is one of those it may have; sets `landed`, but for `engine.PENDING`."""
        status, result, iova, access = self.record
        nbytes = self.operands[0].nbytes
        if status == engine.OK:
            wanted = self.arg if self.name == "CHECKSUM" else nbytes
            self._must(result == wanted, f"OK with result {result:#x}, expected {wanted:#x}")
            self.landed = nbytes
        elif status == engine.TRANSLATION_FAULT:
            self._must(self.may_fault, "faulted, and nothing was taken from it")
            self._must(result < nbytes, f"{result} bytes of {nbytes} done, and a fault")
            candidates = [found for operand in self.operands if (found := self._refused(operand, result, slice_nbytes))]
            words = ", ".join(f"{at:#x} for {wanted!r}" for at, wanted in candidates) or "none"
            self._must((iova, Access(access)) in candidates, f"faulted at {iova:#x}, {access}; expected: {words}")
            self.landed = result
        elif status == engine.ABORTED:
            self._must(self.may_abort, "aborted, and nobody asked for it")
            self._must(result <= nbytes, f"{result} bytes of {nbytes} done")
            self.landed = result
        elif status == engine.PENDING:
            stands = not self.accel.is_running and (self.error in self.halts or self.may_abort)  # or was never fetched
            allowed = self.may_vanish or stands
            self._must(allowed, f"no completion; running {self.accel.is_running}, ERROR {self.error}")
        else:
            self._must(False, "completed as it never may")

    def _refused(self, operand: Operand, done: int, slice_nbytes: int) -> tuple[int, Access] | None:
        """Where a slice that begins after `done` bytes must be refused for `operand`, and for what."""
        first = min((max(start, done) for of, start, stop in self.gone if of is operand and stop > done), default=None)
        if first is None or first >= min(done + slice_nbytes, operand.nbytes):
            return None
        wanted = Access.WRITE if operand is self.dst and self.writes else Access.READ
        return operand.iova + first, wanted

    def _status(self, ring: bytes) -> int:
        return ring[engine.COMPLETIONS_OFFSET + self.index * engine.COMPLETION.size + engine.STATUS_OFFSET]

    def _must(self, holds: bool, words: str) -> None:
        if not holds:
            raise RaceError(f"{self}: {words}")

    def __str__(self) -> str:
        """For people."""
        status, result, iova, access = self.record
        sides = " ".join(
            f"{name} {side.iova:#x}+{side.nbytes:#x} in {len(side.pieces)} mappings"
            for name, side in (("src", self.src), ("dst", self.dst))
            if side is not None
        )
        name = engine.STATUS_NAMES[status] if status < len(engine.STATUS_NAMES) else f"status {status}"
        came_to = f"{name}, result {result}, fault {iova:#x} for {access}, ERROR {self.error}"
        return f"{self.name} of {self.accel.function.bdf}, {sides}: {came_to}"
