"""Watching the processes of sets: the kernel tells when one has ended."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from vdev.authority.ledger import LedgerError

AGAIN_S = 1.0  # where an end could not be written down

log = logging.getLogger(__name__)


class Watch:
    """A pidfd for each set, of its own. `died` is called in the event loop; again later where it raises LedgerError."""

    def __init__(self) -> None:
        self.died: Callable[[int], None]
        self._pidfds: dict[int, int] = {}
        self._is_started = False

    def start(self) -> None:
        """Tell what has ended so far, and from now on."""
        self._is_started = True
        for set_id, own in self._pidfds.items():
            asyncio.get_running_loop().add_reader(own, self._readable, set_id)

    def add(self, set_id: int, pidfd: int) -> None:
        """Watch the process of `pidfd`, which is duplicated. Nothing happens where the set is watched already."""
        if set_id in self._pidfds:
            return
        own = self._pidfds[set_id] = os.dup(pidfd)
        if self._is_started:
            asyncio.get_running_loop().add_reader(own, self._readable, set_id)

    def _readable(self, set_id: int) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfds[set_id])
        try:
            self.died(set_id)
        except LedgerError as error:
            log.error("the end of a VM waits: %s", error)
            loop.call_later(AGAIN_S, self._again, set_id)
        else:
            os.close(self._pidfds.pop(set_id))

    def _again(self, set_id: int) -> None:
        if set_id in self._pidfds:
            self._readable(set_id)

    def close(self) -> None:
        """Watch nothing any more."""
        for own in self._pidfds.values():
            if self._is_started:
                asyncio.get_running_loop().remove_reader(own)
            os.close(own)
        self._pidfds.clear()
