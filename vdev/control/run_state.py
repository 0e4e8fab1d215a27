"""Whether the VM is stopped, as its launcher tells us: nothing of ours touches guest memory then.

QEMU tells a vfio-user server nothing of `stop` and `cont`, so somebody who sees QEMU's monitor has to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vdev.errors import ConfigError

SOMEBODY = "a control client"
MAX_BY = 200  # characters of a name that ends up in queries and the log


@dataclass(slots=True)
class RunStateChanged:
    """All work on guest memory stopped (`frozen`) or goes on; `by` is who asked for it."""

    frozen: bool
    by: str


class RunState:
    """Frozen or not. The state is the VM's: it outlives the client that asked for it, and any client may end it."""

    def __init__(
        self, clock: Callable[[], float], emit: Callable[[object], None], apply: Callable[[bool], None]
    ) -> None:
        """`apply` gets every change and must have put it into effect when it returns; `clock` is in seconds."""
        self._clock = clock
        self._emit = emit
        self._apply = apply
        self._since = 0.0
        self._by = ""
        self.frozen = False

    def freeze(self, by: str = SOMEBODY) -> dict[str, Any]:
        """Stop touching guest memory: in effect when this returns. Frozen already: who was first stays named."""
        self._change(True, by)
        return self.describe()

    def thaw(self, by: str = SOMEBODY) -> dict[str, Any]:
        """Go on. Idempotent."""
        self._change(False, by)
        return self.describe()

    def describe(self) -> dict[str, Any]:
        """Under "frozen" since when (on the clock of events), for how long and by whom; empty when we are not."""
        if not self.frozen:
            return {}
        return {"frozen": {"since": self._since, "seconds": self._clock() - self._since, "by": self._by}}

    def _change(self, frozen: bool, by: str) -> None:
        if len(by) > MAX_BY:
            raise ConfigError("by", f"{len(by)} characters", f"at most {MAX_BY} are kept")
        if frozen == self.frozen:
            return
        self._apply(frozen)
        self.frozen, self._since, self._by = frozen, self._clock(), by
        self._emit(RunStateChanged(frozen, by))
