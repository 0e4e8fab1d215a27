"""What happened while a scenario was played, in order, and what came of it. Pure but for the clock it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Sections = list[tuple[str, str]]  # title and text

MAX_LINES = 5_000  # of a timeline; the first ones and all that is about a failure are kept
MAX_TEXT = 400  # characters of one line


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened, `at` seconds after the beginning; `kind` is empty for what came of a step."""

    at: float
    kind: str
    text: str
    step: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a scenario is not green."""

    step: str
    kind: str
    words: str
    expected: str
    found: str
    detail: str = ""


@dataclass
class Timeline:
    """Collects lines; `say` is told each as it is added."""

    clock: Callable[[], float]  # seconds
    say: Callable[[str], None]
    lines: list[Line] = field(default_factory=list)
    left_out: int = 0
    started: float = field(init=False)

    def __post_init__(self) -> None:
        """The clock starts."""
        self.started = self.clock()

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self.clock() - self.started

    def add(self, kind: str, text: str, step: str = "") -> None:
        """One more line."""
        text = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."
        line = Line(self.now, kind, text, step)
        if len(self.lines) >= MAX_LINES:
            self.left_out += 1
        else:
            self.lines.append(line)
        self.say(shown(line))


def shown(line: Line) -> str:
    """A line as people read it; more lines of its text stand below the first."""
    first, *more = line.text.split("\n")
    indent = " " * 22
    return "\n".join([f"{line.at:9.3f}  {line.kind:<9}  {first}".rstrip(), *(f"{indent}{text}" for text in more)])


@dataclass
class Outcome:
    """Everything a scenario left behind."""

    name: str
    about: str
    path: str
    machine: str  # in words
    seed: int
    variables: dict[str, Any]
    lines: list[Line] = field(default_factory=list)
    failure: Failure | None = None
    nsteps: int = 0  # that were done
    seconds: float = 0.0
    firings: list[dict[str, Any]] | None = None  # the fault log, which goes with the backend
    left_out: int = 0
    sections: Sections = field(default_factory=list)  # of a failure: console, QMP, trace
    logs: str = ""

    @property
    def is_green(self) -> bool:
        """Whether all came out as the scenario says."""
        return self.failure is None
