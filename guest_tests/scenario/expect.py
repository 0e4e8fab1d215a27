"""The step `expect`: what a result must be, or how often rules must have fired."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import msgspec

from guest_tests.scenario.kind import Done, Kind
from guest_tests.scenario.names import shown
from guest_tests.scenario.scene import Inner, Scene, StepFailed, differs
from vdev.errors import ConfigError

_COUNT = re.compile(r"(>=|<=)?\s*(\d{1,9})")
_UNSET = msgspec.UNSET
_Value = Any | msgspec.UnsetType


class ExpectStep(Kind):
    """Compare a result, or the number of times that rules have fired."""

    that: str | None = None
    is_: _Value = msgspec.field(default=_UNSET, name="is")
    is_not: _Value = msgspec.field(default=_UNSET, name="is-not")
    contains: _Value = _UNSET
    at_least: int | float | str | msgspec.UnsetType = msgspec.field(default=_UNSET, name="at-least")
    at_most: int | float | str | msgspec.UnsetType = msgspec.field(default=_UNSET, name="at-most")
    in_: list[Any] | str | msgspec.UnsetType = msgspec.field(default=_UNSET, name="in")
    fired: dict[str, int | str] | None = None

    examples: ClassVar[Mapping[str, str]] = {
        "that": "a dotted path into a result, such as first.status",
        "at-least": "a number",
        "at-most": "a number",
        "in": "a list",
        "fired": 'a count by rule, such as {r1: 2} or {r1: ">=1"}',
    }

    def _given(self) -> dict[str, Any]:
        return {name: value for name in COMPARISONS if (value := getattr(self, _FIELDS[name])) is not _UNSET}

    def check(self, key: str) -> None:
        given = self._given()
        if self.fired is not None:
            if self.that is not None or given:
                raise ConfigError(key, "`fired` stands alone", "make two steps of it")
            for rule, count in self.fired.items():
                if _COUNT.fullmatch(str(count)) is None:
                    raise ConfigError(f"{key}.fired.{rule}", f"{count!r} is not a count", 'such as 2, ">=1" or "<=3"')
            return
        if self.that is None:
            raise ConfigError(f"{key}.that", "this key is missing", self.examples["that"])
        if not given:
            raise ConfigError(key, "it says nothing about it", "one of " + ", ".join(COMPARISONS))

    def free(self) -> dict[str, Any]:
        return self._given()

    @property
    def looks_at(self) -> str | None:
        return self.that

    def rules_named(self) -> Iterator[tuple[str, str]]:
        yield from ((f"fired.{rule}", rule) for rule in self.fired or ())

    def words(self, scene: Scene) -> str:
        if self.fired is not None:
            return "fired: " + ", ".join(f"{rule} {count}" for rule, count in self.fired.items())
        given = scene.filled(self._given())
        return f"{self.that} " + " and ".join(f"{name} {shown(wanted)}" for name, wanted in given.items())

    async def do(self, scene: Scene, inner: Inner) -> Done:
        if self.fired is not None:
            counts = await scene.fired()
            for rule, wanted in self.fired.items():
                _check_count(rule, str(wanted), counts.get(rule, 0))
            return Done(", ".join(f"{rule} fired {counts.get(rule, 0)}" for rule in self.fired))
        assert self.that is not None
        value = scene.at(self.that)
        given = scene.filled(self._given())
        for name, wanted in given.items():
            _compare(name, self.that, wanted, value)
        return Done("" if "is" in given else f"it is {shown(value)}")


def _check_count(rule: str, wanted: str, count: int) -> None:
    match = _COUNT.fullmatch(wanted)
    assert match is not None
    number = int(match[2])
    good = {">=": count >= number, "<=": count <= number}.get(match[1] or "", count == number)
    if not good:
        raise StepFailed(f"{rule} fired {wanted} times", f"{count} times")


def _compare(name: str, path: str, wanted: Any, value: Any) -> None:
    try:
        good = COMPARISONS[name](value, wanted)
    except TypeError:
        good = False  # what cannot be compared does not fit
    if not good:
        raise differs(f"{path} {name} {shown(wanted)}", value)


COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "is": lambda value, wanted: bool(value == wanted and isinstance(value, bool) == isinstance(wanted, bool)),
    "is-not": lambda value, wanted: bool(value != wanted),
    "contains": lambda value, wanted: wanted in value,
    "at-least": lambda value, wanted: bool(value >= wanted),
    "at-most": lambda value, wanted: bool(value <= wanted),
    "in": lambda value, wanted: value in wanted,
}
_FIELDS = {
    "is": "is_",
    "is-not": "is_not",
    "contains": "contains",
    "at-least": "at_least",
    "at-most": "at_most",
    "in": "in_",
}
