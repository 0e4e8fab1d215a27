"""What a series of races came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from .job import Job


@dataclass(slots=True)
class Tally:
    """What a series of races came to, to show that they were races."""

    rounds: int = 0
    whole: int = 0  # everything had landed
    cut: int = 0  # a part had
    nothing: int = 0
    waited: int = 0  # an answer that did not come at once

    def include(self, other: Tally) -> None:
        """And those of `other`."""
        self.rounds += other.rounds
        self.whole += other.whole
        self.cut += other.cut
        self.nothing += other.nothing
        self.waited += other.waited

    def describe(self) -> dict[str, int]:
        """Plain data."""
        return asdict(self)

    def add(self, job: Job, waited: bool) -> None:
        """One more."""
        self.rounds += 1
        self.waited += waited
        if job.landed == job.operands[0].nbytes:
            self.whole += 1
        elif job.landed:
            self.cut += 1
        else:
            self.nothing += 1
