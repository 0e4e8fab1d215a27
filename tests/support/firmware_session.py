"""The session that docs/firmware-dma.md has for a person, typed by a test."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.bare_machine import BareMachine
from vdev.wire.accelerator import Register, Status

PAGE = Path(__file__).parents[2] / "docs" / "firmware-dma.md"
REGISTERS = 0xFE20_0000  # as the page says
RING = 0x0100_0000
DOORBELL = f"{REGISTERS + Register.RING_TAIL:x}@1W"
_ROW = re.compile(r"^\| `([^`|]+)` \|[^|]+\| (?:`([^`]+)`)? ?\| (?:`([^`]+)`)? ?\|$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the session; what is answered under each policy, or nothing where that does not matter."""

    typed: str
    preferred: list[int]
    required: list[int]


def session() -> list[Row]:
    """The rows of the page's table."""
    rows = _ROW.findall(PAGE.read_text(encoding="utf-8"))
    return [Row(typed, _numbers(preferred), _numbers(required)) for typed, preferred, required in rows]


def _numbers(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def type_in(machine: BareMachine) -> list[list[int]]:
    """Type all of it; the answers, row by row. The row of the doorbell waits: a person is slower than the engine."""
    answers = []
    for row in session():
        answers.append(machine.type_in(row.typed))
        if row.typed == DOORBELL:
            _let_it_work(machine)
    return answers


def _let_it_work(machine: BareMachine) -> None:
    for _ in range(1000):
        if machine.read(REGISTERS + Register.RING_HEAD, 4) or (
            machine.read(REGISTERS + Register.STATUS, 4) & Status.HALTED
        ):
            return
    raise TimeoutError("the engine neither ends nor halts")
