"""What the clients of a monitor do while it is measured, and how long. Pure."""

from __future__ import annotations

from dataclasses import dataclass

SPECIAL = ("silent", "malformed", "stopper", "listing")  # the first of many clients, in this order; the rest ask


@dataclass(frozen=True)
class Load:
    """`clients` at once, each with a command every `pause_s`; 0: with its next command as soon as it has a reply."""

    name: str
    title: str
    clients: int
    pause_s: float

    def roles(self) -> list[str]:
        """One a client."""
        if self.clients == 1:
            return ["alternating"]
        return [*SPECIAL, *["asking"] * (self.clients - len(SPECIAL))]


PAUSE_S = 0.05
LOADS = (
    Load("alone", "one client, a command every 50 ms", 1, PAUSE_S),
    Load("crowd", "20 clients, a command every 50 ms each", 20, PAUSE_S),
    Load("flat-out", "20 clients without a pause", 20, 0.0),
)
WAYS = ("direct", "bridge")


@dataclass(frozen=True)
class Row:
    """Something measured, in milliseconds. `role`: whose commands."""

    name: str
    title: str


ROWS = (
    Row("status", "query-status"),
    Row("commands", "query-commands"),
    Row("schema", "query-qmp-schema"),
    Row("stop", "stop, cont"),
)


@dataclass(frozen=True)
class Length:
    """How many rounds, and for how long each load is measured in them."""

    rounds: int
    seconds: dict[str, float]


# In full, malformed JSON comes for a minute in all at the rate people and scripts work at.
LENGTHS = {
    "full": Length(3, {"alone": 4.0, "crowd": 20.0, "flat-out": 4.0}),
    "quick": Length(1, {"alone": 2.0, "crowd": 5.0, "flat-out": 2.0}),
}
SMALLEST = Length(1, dict.fromkeys(LENGTHS["quick"].seconds, 0.5))  # for tests
