"""One rule of a fault plan: its text, checked, as data.

Every mistake is a ConfigError that names `faults.rules[ID].KEY`, the rule that is broken and the value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec

from vdev.errors import ConfigError
from vdev.faults.actions import FREE, POINTS, TYPES, U64, Action, Parameter, Value, find_action, names_at

NS = 1_000_000_000
MAX_COUNT = (1 << 63) - 1
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_RANGE = re.compile(r"(0[xX][0-9a-fA-F]+|\d+)(?:-(0[xX][0-9a-fA-F]+|\d+))?")
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
ACCESSES = ("read", "write")


@dataclass(slots=True)
class Occurrence:
    """Something a rule can meet. What does not apply to its point is None, or empty. `start`..`stop` is half-open."""

    point: str
    unit: str = ""
    type: str = ""  # of the request
    endpoint: int | None = None
    domain: int | None = None
    pasid: int | None = None
    start: int | None = None  # IOVA
    stop: int | None = None
    access: str = ""
    function: str = ""
    vector: int | None = None
    register: int | None = None

    def fields(self) -> dict[str, Value]:
        """What there is of it, by name; the range with its end."""
        known = ("unit", "type", "endpoint", "domain", "pasid", "access", "function", "vector", "register")
        found: dict[str, Value] = {name: getattr(self, name) for name in known if getattr(self, name) not in (None, "")}
        if self.start is not None and self.stop is not None:
            found["iova"], found["iova_end"] = self.start, self.stop - 1
        return found


class MatchShape(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """`match`: all that is given must fit."""

    unit: str | None = None
    type: str | None = None
    endpoint: str | None = None
    domain: int | None = None
    pasid: int | None = None
    iova: str | int | None = None  # one address, or first-last
    access: str | None = None
    function: str | None = None
    vector: int | None = None
    register: int | None = None


class WhenShape(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """`when`: all that is given must hold. `delay` and `period` are of the point timer."""

    nth: int | list[int] | None = None
    every: int | None = None
    after: int | None = None
    probability: float | None = None
    window: tuple[float, float] | None = None
    delay: float | None = None
    period: float | None = None


class RuleShape(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, rename={"with_": "with"}):
    """A rule as its author writes it."""

    at: str
    do: str
    id: str | None = None
    match: MatchShape = msgspec.field(default_factory=MatchShape)
    when: WhenShape = msgspec.field(default_factory=WhenShape)
    with_: dict[str, Any] = {}
    times: int | None = None


@dataclass(frozen=True, slots=True)
class World:
    """What names a rule may use. `functions` has units and endpoints; `endpoint_ids` are by unit and name."""

    units: Mapping[str, str]  # name -> attachment
    endpoints: Mapping[str, tuple[str, int]]  # name -> unit, endpoint id
    may_grow: bool = False  # endpoints may be plugged in later, so an unknown name may become one
    has_pasids: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A checked rule. `parameters` has every key of the action that was given or has a default."""

    id: str
    at: str
    do: str
    action: Action
    match: MatchShape
    iova: tuple[int, int] | None  # half-open
    when: WhenShape
    parameters: Mapping[str, Value]
    times: int | None

    @property
    def is_free(self) -> bool:
        """Whether it does something by itself, whatever it met."""
        return self.do in FREE

    def number(self, name: str) -> int:
        """An integer parameter that was given or has a default."""
        return int(self.parameters[name])

    def seconds(self, name: str = "seconds") -> float | None:
        """A time parameter; None where it was left out."""
        value = self.parameters.get(name)
        return None if value is None else float(value)

    def fits(self, met: Occurrence, name_of: Callable[[str, int], str | None]) -> bool:
        """Whether `match` fits; `name_of` gives the name of an endpoint of a unit."""
        match = self.match
        for key in ("unit", "type", "domain", "pasid", "access", "function", "vector", "register"):
            wanted = getattr(match, key)
            if wanted is not None and wanted != getattr(met, key):
                return False
        if match.endpoint is not None and (met.endpoint is None or name_of(met.unit, met.endpoint) != match.endpoint):
            return False
        if self.iova is None:
            return True
        return met.start is not None and met.stop is not None and met.start < self.iova[1] and self.iova[0] < met.stop

    def is_time(self, n: int, seed: int) -> bool:
        """Whether it fires at the `n`-th (from 1) occurrence that fits."""
        when = self.when
        n -= when.after or 0
        if n < 1:
            return False
        nth = when.nth
        if nth is not None and (n != nth if isinstance(nth, int) else n not in nth):
            return False
        if when.every is not None and n % when.every:
            return False
        return when.probability is None or chance(seed, self.id, n) < when.probability

    def is_open(self, seconds: float) -> bool:
        """Whether `seconds` after it was added lies in its window."""
        window = self.when.window
        return window is None or window[0] <= seconds < window[1]

    def describe(self) -> dict[str, Any]:
        """As its author could have written it: plain data."""
        shape = {"match": msgspec.to_builtins(self.match), "when": msgspec.to_builtins(self.when)}
        times = {} if self.times is None else {"times": self.times}
        return {"id": self.id, "at": self.at, "do": self.do, **shape, "with": dict(self.parameters), **times}


def chance(seed: int, rule: str, n: int) -> float:
    """A number in [0, 1) that depends on nothing else: the same traffic meets the same fate."""
    digest = blake2b(f"{seed}/{rule}/{n}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / (1 << 56)


def parse_rule(given: object, number: int, world: World) -> Rule:
    """The rule that `given` (plain data) says; `number` names one without an id. ConfigError as the module says."""
    where = f"faults.rules[{_name_of(given, number)}]"
    try:
        shape = msgspec.convert(given, RuleShape)
    except msgspec.ValidationError as error:
        raise _shape_error(where, str(error)) from None
    if shape.id is not None and not _ID.fullmatch(shape.id):
        raise ConfigError(f"{where}.id", f"{shape.id!r} is no name", "lower case, digits and hyphens, 40 at most")
    if shape.at not in POINTS:
        raise ConfigError(f"{where}.at", f"{shape.at!r} is no point", f"there are: {', '.join(POINTS)}")
    action = find_action(shape.at, shape.do)
    if action is None:
        known = ", ".join(names_at(shape.at))
        raise ConfigError(f"{where}.do", f"{shape.do!r} is no action at the point {shape.at}", f"there are: {known}")
    iova = _check_match(where, shape, world)
    _check_when(where, shape)
    parameters = _parameters(where, shape, action, world)
    times = _check_times(where, shape)
    rule_id = shape.id or f"r{number}"
    return Rule(rule_id, shape.at, shape.do, action, shape.match, iova, shape.when, parameters, times)


def _name_of(given: object, number: int) -> str:
    found = given.get("id") if isinstance(given, Mapping) else None
    return found if isinstance(found, str) and _ID.fullmatch(found) else f"r{number}"


def _shape_error(where: str, text: str) -> ConfigError:
    path = _PATH.search(text)
    key = f"{where}.{path.group(1)}" if path and path.group(1) else where
    return ConfigError(key, _PATH.sub("", text))


def _check_match(where: str, shape: RuleShape, world: World) -> tuple[int, int] | None:
    match = shape.match
    allowed = POINTS[shape.at][1]
    for key in MatchShape.__struct_fields__:
        if getattr(match, key) is not None and key not in allowed:
            known = f"it has: {', '.join(sorted(allowed))}" if allowed else "leave match out"
            raise ConfigError(f"{where}.match.{key}", f"an occurrence at the point {shape.at} has none", known)
    for key in ("domain", "pasid", "vector", "register"):
        value = getattr(match, key)
        if value is not None and not 0 <= value <= 0xFFFFFFFF:
            raise ConfigError(f"{where}.match.{key}", f"{value} is not within 0..4294967295")
    if match.access is not None and match.access not in ACCESSES:
        raise ConfigError(f"{where}.match.access", f"{match.access!r} is neither read nor write")
    _check_type(where, shape)
    _check_name(f"{where}.match.unit", match.unit, world.units, "unit")
    _check_name(f"{where}.match.endpoint", match.endpoint, world.endpoints, "endpoint", world.may_grow)
    _check_name(f"{where}.match.function", match.function, _functions(world), "function", world.may_grow)
    return None if match.iova is None else _iova_range(f"{where}.match.iova", str(match.iova))


def _check_type(where: str, shape: RuleShape) -> None:
    """What is done to PROBE only meets PROBE only."""
    match, known = shape.match, TYPES.get(shape.at, ())
    if shape.do in ("probe-truncate", "probe-corrupt"):
        match.type, known = match.type or "PROBE", ("PROBE",)
    if match.type is not None and match.type not in known:
        raise ConfigError(
            f"{where}.match.type", f"{match.type!r} is no request of it", f"there are: {', '.join(known)}"
        )


def _functions(world: World) -> dict[str, object]:
    return {**world.units, **world.endpoints}


def _check_name(key: str, name: str | None, known: Mapping[str, object], what: str, may_grow: bool = False) -> None:
    if name is not None and name not in known and not may_grow:
        raise ConfigError(key, f"there is no {what} {name!r}", f"there are: {', '.join(known)}")


def _iova_range(key: str, text: str) -> tuple[int, int]:
    found = _RANGE.fullmatch(text)
    if found is None:
        raise ConfigError(key, f"{text!r} is neither an address nor a range", "such as 0x1000-0x1fff")
    first = int(found.group(1), 0)
    last = int(found.group(2), 0) if found.group(2) else first
    if not first <= last <= U64:
        raise ConfigError(key, f"{text!r} ends before it begins, or beyond 64 bits")
    return first, last + 1


_TIMER_KEYS = ("delay", "period")


def _check_when(where: str, shape: RuleShape) -> None:
    when, is_timer = shape.when, shape.at == "timer"
    for key in WhenShape.__struct_fields__:
        if getattr(when, key) is not None and (key in _TIMER_KEYS) is not is_timer:
            cure = "a timer has delay and period" if is_timer else "delay and period are of the point timer"
            raise ConfigError(f"{where}.when.{key}", f"it has no meaning at the point {shape.at}", cure)
    nths = [] if when.nth is None else when.nth if isinstance(when.nth, list) else [when.nth]
    for key, value, low in (
        *(("nth", nth, 1) for nth in nths), ("every", when.every, 1), ("after", when.after, 0),
    ):  # fmt: skip
        if value is not None and not low <= value <= MAX_COUNT:
            raise ConfigError(f"{where}.when.{key}", f"{value} is not a number from {low} on")
    if when.probability is not None and not 0 <= when.probability <= 1:
        raise ConfigError(f"{where}.when.probability", f"{when.probability} is not within 0..1")
    if when.window is not None and not 0 <= when.window[0] < when.window[1]:
        raise ConfigError(f"{where}.when.window", f"{list(when.window)} is not [from, until] in seconds, rising")
    if when.delay is not None and not 0 <= when.delay <= MAX_TIMER_SECONDS:
        raise ConfigError(f"{where}.when.delay", f"{when.delay} is not within 0..{MAX_TIMER_SECONDS:.0f} seconds")
    if when.period is not None and not MIN_PERIOD_SECONDS <= when.period <= MAX_TIMER_SECONDS:
        problem = f"{when.period} is not within {MIN_PERIOD_SECONDS}..{MAX_TIMER_SECONDS:.0f} seconds"
        raise ConfigError(f"{where}.when.period", problem)


MAX_TIMER_SECONDS = 86400.0
MIN_PERIOD_SECONDS = 0.001


def _check_times(where: str, shape: RuleShape) -> int | None:
    if shape.times is not None:
        if not 1 <= shape.times <= MAX_COUNT:
            raise ConfigError(f"{where}.times", f"{shape.times} is not a number from 1 on")
        return shape.times
    is_once = shape.do in FREE and shape.when.period is None
    return 1 if is_once else None


def _parameters(where: str, shape: RuleShape, action: Action, world: World) -> dict[str, Value]:
    for key in shape.with_:
        if key not in action.parameters:
            known = f"it has: {', '.join(action.parameters)}" if action.parameters else "leave with out"
            raise ConfigError(f"{where}.with.{key}", f"the action {shape.do} has no such parameter", known)
    found: dict[str, Value] = {}
    for key, parameter in action.parameters.items():
        value = shape.with_.get(key)
        if value is None and parameter.required:
            raise ConfigError(f"{where}.with.{key}", f"the action {shape.do} needs it", parameter.about)
        if value is None:
            if parameter.default is not None:
                found[key] = parameter.default
            continue
        found[key] = _checked(f"{where}.with.{key}", parameter, value)
    _check_target(where, shape, found, world)
    return found


def _checked(key: str, parameter: Parameter, value: object) -> Value:
    if parameter.kind == "boolean":
        if isinstance(value, bool):
            return value
        raise ConfigError(key, f"{value!r} is neither true nor false")
    if parameter.kind == "word":
        if isinstance(value, str) and (not parameter.words or value in parameter.words):
            return value
        raise ConfigError(key, f"{value!r} is no word for it", f"one of: {', '.join(parameter.words) or 'a name'}")
    if parameter.kind == "seconds":
        if not isinstance(value, bool) and isinstance(value, int | float) and parameter.low <= value <= parameter.high:
            return value
        raise ConfigError(key, f"{value!r} is not {parameter.low:g}..{parameter.high:g} seconds")
    if not isinstance(value, bool) and isinstance(value, int) and parameter.low <= value <= parameter.high:
        return value
    raise ConfigError(key, f"{value!r} is not a whole number in {int(parameter.low)}..{int(parameter.high):#x}")


# Free actions by what they are done to: a unit, an endpoint, either.
_TO_UNIT = frozenset({"needs-reset", "config-change", "flood"})
_TO_ENDPOINT = frozenset({"aer"})
_TO_EITHER = frozenset({"remove", "flr", "spurious"})


def _check_target(where: str, shape: RuleShape, found: dict[str, Value], world: World) -> None:
    """Who a free action is done to must be known: by name, or by what the occurrence will be about."""
    do = shape.do
    if do in ("reclaim", "quota-order") and not world.has_pasids:
        raise ConfigError(f"{where}.do", f"{do} needs PASIDs, and this VM has none", "set vm.pasids")
    if shape.at == "pasid" and not world.has_pasids:
        raise ConfigError(f"{where}.at", "the VM has no PASIDs", "set vm.pasids")
    known: Mapping[str, object]
    if do in _TO_UNIT:
        key, known, what = ("unit" if do == "flood" else "function"), world.units, "unit"
    elif do in _TO_ENDPOINT:
        key, known, what = "function", world.endpoints, "endpoint"
    elif do in _TO_EITHER:
        key, known, what = "function", _functions(world), "function"
    else:
        return
    name = found.get(key)
    if name is None and do in _TO_UNIT and len(world.units) == 1:
        found[key] = next(iter(world.units))
    elif name is None and shape.at in ("timer", "pasid"):
        raise ConfigError(f"{where}.with.{key}", f"a {shape.at} is about no {what}", f"one of: {', '.join(known)}")
    _check_name(f"{where}.with.{key}", None if name is None else str(name), known, what, world.may_grow)
    if do == "flood" and found.get("endpoint") is not None:
        _check_name(f"{where}.with.endpoint", str(found["endpoint"]), world.endpoints, "endpoint", world.may_grow)
    target = str(found.get(key, ""))
    if do in ("needs-reset", "remove", "flr") and world.units.get(target) == "vhost-user":
        problem = f"{target} is attached by vhost-user, where that is QEMU's"
        raise ConfigError(f"{where}.with.{key}", problem, "attach: vfio-user")
