"""What fault injection tells the log, the trace and the monitor."""

from __future__ import annotations

from dataclasses import dataclass

from vdev.faults.actions import Value


@dataclass(slots=True)
class FaultInjected:
    """Rule `rule` has fired for the `n`-th time. `fields` is what it met, by name; `note` what came of it, if that
    needs words."""

    rule: str
    n: int
    at: str
    do: str
    fields: dict[str, Value]
    note: str = ""


@dataclass(slots=True)
class FaultWantsQemu:
    """A part of what rule `rule` does for the `n`-th time is QEMU's: somebody with its monitor has to run
    `command_line` there."""

    rule: str
    n: int
    command_line: str


@dataclass(slots=True)
class FaultsCleared:
    """All rules are gone. `undone` says what was undone, `terminal` what could not be."""

    rules: int
    undone: tuple[str, ...]
    terminal: tuple[str, ...]
