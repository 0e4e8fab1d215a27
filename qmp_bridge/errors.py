"""What can go wrong with a virtual machine once it was to start, and with a command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vdev.errors import VdevError


class VmDied(VdevError):
    """The VM ended, or had to be ended, before it was meant to. `reason` is one line; the rest helps to see why."""

    def __init__(self, reason: str, tail: Sequence[str] = (), logs: Path | None = None) -> None:
        self.reason = reason
        self.tail = list(tail)  # the console's last lines
        self.logs = logs  # where the logs were kept, filled in by the teardown
        self.logs_problem = ""  # why they were not, likewise
        self.trace: list[str] = []  # the last lines of the trace among the logs, likewise
        super().__init__(reason)


class Refused(VdevError):
    """A command fails: `error_class` is one of QMP's five, the text is its `desc`."""

    def __init__(self, error_class: str, desc: str) -> None:
        self.error_class = error_class
        super().__init__(desc)


def the_cause(group: BaseExceptionGroup) -> BaseException:
    """The one exception to report: the VM's death where there was one, since all others follow from it."""
    deaths = group.subgroup(VmDied)
    found: BaseException = deaths or group
    while isinstance(found, BaseExceptionGroup) and (deaths or len(found.exceptions) == 1):
        found = found.exceptions[0]
    return found
