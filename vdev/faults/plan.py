"""A fault plan at work: rules in order, what each has met, and the verdict on one occurrence. Pure; time is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

from vdev.errors import ConfigError
from vdev.faults.rule import NS, Occurrence, Rule

MAX_RULES = 256  # each is asked about every occurrence of its point


@dataclass(slots=True)
class Armed:
    """A rule in the plan. `met` counts the occurrences that fitted, `fired` those it did something about."""

    rule: Rule
    since_ns: int
    met: int = 0
    fired: int = 0

    @property
    def is_spent(self) -> bool:
        """Whether it has fired as often as it may."""
        return self.rule.times is not None and self.fired >= self.rule.times


@dataclass(frozen=True, slots=True)
class Firing:
    """Rule `rule` does its `n`-th deed, to `met`."""

    rule: Rule
    n: int
    met: Occurrence


class Plan:
    """Rules by id, in order. `name_of` gives the name of an endpoint of a unit."""

    def __init__(self, name_of: Callable[[str, int], str | None], seed: int = 0) -> None:
        self.seed = seed
        self.numbered = 0  # the highest number that a rule ever had: names those that have no id
        self.rules: dict[str, Armed] = {}
        self._name_of = name_of
        self._at: dict[str, list[Armed]] = {}

    def points(self) -> set[str]:
        """Those that rules stand at."""
        return set(self._at)

    def numbers(self, given: Sequence[object], *, anew: bool = False) -> list[int]:
        """One for each of these (plain data), rising, so that no name made of it is another's; `anew`: the rules that
        are there will go."""
        taken = {one.get("id") for one in given if isinstance(one, Mapping) and isinstance(one.get("id"), str)}
        if not anew:
            taken |= set(self.rules)
        free = (number for number in count(self.numbered + 1) if f"r{number}" not in taken)
        return list(islice(free, len(given)))

    def check_room(self, ids: Iterable[str]) -> None:
        """ConfigError unless rules of these ids can be added."""
        wanted = list(ids)
        for number, name in enumerate(wanted):
            if name in self.rules or name in wanted[:number]:
                raise ConfigError(f"faults.rules[{name}].id", f"there is a rule {name!r} already", "remove it first")
        if len(self.rules) + len(wanted) > MAX_RULES:
            raise ConfigError("faults.rules", f"more than {MAX_RULES} rules", "clear those that are spent")

    def add(self, rule: Rule, now_ns: int) -> Armed:
        """`rule` counts from now on; ConfigError as `check_room`."""
        self.check_room([rule.id])
        armed = self.rules[rule.id] = Armed(rule, now_ns)
        self._at.setdefault(rule.at, []).append(armed)
        return armed

    def remove(self, rule_id: str) -> Rule:
        """ConfigError if it is not there."""
        armed = self.rules.pop(rule_id, None)
        if armed is None:
            known = f"there are: {', '.join(self.rules)}" if self.rules else "there is none"
            raise ConfigError("id", f"there is no rule {rule_id!r}", known)
        rest = [other for other in self._at[armed.rule.at] if other is not armed]
        if rest:
            self._at[armed.rule.at] = rest
        else:
            del self._at[armed.rule.at]
        return armed.rule

    def clear(self) -> int:
        """Forget all rules; how many there were."""
        found = len(self.rules)
        self.rules.clear()
        self._at.clear()
        return found

    def meet(self, met: Occurrence, now_ns: int) -> list[Firing]:
        """The rules that fire: of those that do something to what was met the first, of the others all.

        Every rule counts what fits it, fired or not, so that none depends on the others.
        """
        firings: list[Firing] = []
        is_taken = False
        for armed in self._at.get(met.point, ()):
            rule = armed.rule
            seconds = (now_ns - armed.since_ns) / NS
            if not rule.is_open(seconds) or not rule.fits(met, self._name_of):
                continue
            armed.met += 1
            if armed.is_spent or not rule.is_time(armed.met, self.seed) or (is_taken and not rule.is_free):
                continue
            is_taken = is_taken or not rule.is_free
            armed.fired += 1
            firings.append(Firing(rule, armed.fired, met))
        return firings
