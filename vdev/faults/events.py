"""What fault injection tells the log, the trace and the monitor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vdev.faults.actions import Value


@dataclass(slots=True)
class FaultInjected:
    """Rule `rule` has fired for the `n`-th time. `fields` is what it met, by name; `note` what came of it, if that
    needs words; `parameters` are the action's."""

    rule: str
    n: int
    at: str
    do: str
    fields: dict[str, Value]
    note: str = ""
    parameters: Mapping[str, Value] = field(default_factory=dict)


@dataclass(slots=True)
class FaultWantsQemu:
    """A part of what rule `rule` does for the `n`-th time is QEMU's: somebody with its monitor has to run
    `command_line` there."""

    rule: str
    n: int
    command_line: str


@dataclass(slots=True)
class FaultQemuDone:
    """What became of a `FaultWantsQemu`: it was done, or `error` says why not."""

    rule: str
    n: int
    error: str = ""


@dataclass(slots=True)
class FaultsCleared:
    """All rules are gone. `undone` says what was undone, `terminal` what could not be."""

    rules: int
    undone: tuple[str, ...]
    terminal: tuple[str, ...]
