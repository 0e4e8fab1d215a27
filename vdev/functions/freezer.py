"""Who holds an endpoint's DMA: it runs while nobody does."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Freezer:
    """The DMA of `freeze`s, held by any number of holders at once; each knows only its own word."""

    def __init__(self, freezes: Callable[[], Iterable[Callable[[bool], None]]]) -> None:
        """`freezes` gives `Endpoint.freeze` of all endpoints there are."""
        self._freezes = freezes
        self.holders: set[str] = set()

    def set(self, holder: str, held: bool) -> None:
        """`holder` holds the DMA from now on, or no longer. Idempotent."""
        before = bool(self.holders)
        if held:
            self.holders.add(holder)
        else:
            self.holders.discard(holder)
        if bool(self.holders) != before:
            for freeze in self._freezes():
                freeze(bool(self.holders))
