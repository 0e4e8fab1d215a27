"""What a scenario file says. Every mistake is a ConfigError with key, rule and cure, before anything is started."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from guest_tests.runner.suite import Driver
from guest_tests.scenario.kind import Ends, Kind
from guest_tests.scenario.names import NAME, check_path, fill, marks, only
from guest_tests.scenario.steps import KINDS, RepeatStep
from vdev.config import Attach, Config, boot_kernel, config_from, load_config
from vdev.config.faults import check_seed
from vdev.config.text import WHOLE, closest, convert, parse_yaml
from vdev.errors import ConfigError

MAX_STEPS = 10_000  # done in all, each round of a repeat counted
MAX_TIMEOUT_S = 3600.0
_ENDS = "ends"
_OWN_NAMES = ("round", "seed", "attach")
_AFTER_THE_END = ("note", "expect")  # what may still be done when the machine is gone
_EXAMPLES = {
    "scenario": "a name of small letters, digits and -, such as quota-runs-out",
    "about": "one sentence for people",
    "machine": "the path of a vdev configuration, or a configuration itself",
    "steps": "give a list such as - note: nothing happens",
    "guest": "a directory with the modules that guest steps call",
    "timeout": "seconds, such as 120",
    "seed": "a number, such as 7",
    "vars": "give names with plain values, such as {driver: right}",
}


class ScenarioFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    scenario: str
    machine: str | dict[str, Any]  # a path relative to the file, or the configuration itself
    steps: tuple[dict[str, Any], ...]
    about: str = ""
    attach: Attach | None = None  # instead of what the configuration says
    driver: Driver = "none"
    guest: str = ""  # the directory of modules that guest steps call, relative to the file
    seed: int = 0
    vars: dict[str, str | int | float | bool] = {}
    timeout: float = 300.0  # seconds all steps together may take


@dataclass(frozen=True, slots=True)
class Step:
    """One step; `key` is what errors and reports call it, `does` what its kind says, `inner` the steps inside it."""

    key: str
    kind: str
    does: Kind
    ends: Ends | None = None
    inner: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario, ready to be played."""

    name: str
    about: str
    path: Path
    config: Config
    attach: Attach | None
    driver: Driver
    inside: Path | None
    seed: int
    variables: Mapping[str, Any]
    timeout: float
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a command line says instead of the file."""

    attach: Attach | None = None
    seed: int | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)


def load_scenario(path: Path, overrides: Overrides) -> Scenario:
    """The scenario in the file at `path`. Raises ConfigError, naming the file."""
    try:
        return _scenario(path, parse_yaml(path.read_text(encoding="utf-8")), overrides)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}", "make it readable UTF-8") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.key}", error.problem, error.cure) from None


def _scenario(path: Path, data: Any, overrides: Overrides) -> Scenario:
    file = convert(data, ScenarioFile, _EXAMPLES)
    _check_file(file)
    seed = file.seed if overrides.seed is None else overrides.seed
    check_seed(seed, "seed")
    variables = _variables(file, overrides.variables)
    attach = overrides.attach or file.attach
    config = _machine(path.parent, file.machine)
    constants = {**variables, "seed": seed, "attach": attach or config.units[0].attach}
    steps = _Reader(constants).steps(file.steps, "steps", ())
    return Scenario(
        name=file.scenario,
        about=file.about,
        path=path,
        config=config,
        attach=attach,
        driver=file.driver,
        inside=_inside(path.parent, file.guest, steps),
        seed=seed,
        variables=variables,
        timeout=file.timeout,
        steps=steps,
    )


def _check_file(file: ScenarioFile) -> None:
    if re.fullmatch(r"[a-z0-9-]{1,60}", file.scenario) is None:
        raise ConfigError("scenario", f"{file.scenario!r} is not a scenario's name", _EXAMPLES["scenario"])
    if not 0 < file.timeout <= MAX_TIMEOUT_S:
        raise ConfigError("timeout", f"{file.timeout:g} is not in 0..{MAX_TIMEOUT_S:g} s", _EXAMPLES["timeout"])
    if not file.steps:
        raise ConfigError("steps", "the list is empty", _EXAMPLES["steps"])
    for name in file.vars:
        _check_name(name, f"vars.{name}")


def _check_name(name: str, key: str) -> None:
    if NAME.fullmatch(name) is None:
        raise ConfigError(key, f"{name!r} is not a name", "a small letter, then small letters, digits, - and _")
    if name in _OWN_NAMES:
        raise ConfigError(key, f"{name!r} is a name of the runner's own", "choose another")


def _variables(file: ScenarioFile, given: Mapping[str, Any]) -> dict[str, Any]:
    for name in given:
        if name not in file.vars:
            problem = f"the scenario has no variable {name!r}"
            raise ConfigError(f"vars.{name}", problem, closest(name, list(file.vars)) if file.vars else "it has none")
    return {**file.vars, **given}


def _machine(directory: Path, given: str | dict[str, Any]) -> Config:
    config = load_config(directory / given) if isinstance(given, str) else config_from(given, "machine")
    if boot_kernel(config.vm) is None or config.vm.initrd is not None:
        what = "vm.initrd" if config.vm.initrd is not None else "vm.disk"
        problem = f"with {what} the guest has nobody who could do the scenario's guest steps"
        raise ConfigError(
            f"machine: {what}", problem, "leave it out, or set vm.kernel: the runner brings its own initrd"
        )
    return config


def _inside(directory: Path, given: str, steps: tuple[Step, ...]) -> Path | None:
    if given:
        inside = (directory / given).resolve()
        if not inside.is_dir():
            raise ConfigError("guest", f"{inside} is not a directory", _EXAMPLES["guest"])
        for step in walk(steps):
            if (file := step.does.module_file) is not None and not (inside / file).is_file():
                problem = f"{inside} has no {file}"
                raise ConfigError(f"{step.key}.guest.call", problem, "write MODULE:FUNCTION of a file there")
        return inside
    calling = next((step for step in walk(steps) if step.does.module_file is not None), None)
    if calling is not None:
        raise ConfigError("guest", f"{calling.key} calls a function, and this key is missing", _EXAMPLES["guest"])
    return None


def walk(steps: Sequence[Step]) -> Iterator[Step]:
    """All steps, those inside others as well, in the file's order."""
    for step in steps:
        yield step
        yield from walk(step.inner)


class _Reader:
    """Makes steps of what the file says. It knows what earlier steps call their results and rules."""

    def __init__(self, constants: Mapping[str, Any]) -> None:
        self._constants = constants
        self._fixed = only(constants)
        self._results: list[str] = []
        self._rules: set[str] = set()  # so far
        self._live: set[str] = set()  # of these, the ones that are not cleared
        self._any_rule = False  # a rule's id is known only when the scenario runs, or given by vdev
        self._rounds = 1
        self._count = 0
        self._is_over = False

    def steps(self, given: Sequence[dict[str, Any]], key: str, inside: tuple[str, ...]) -> tuple[Step, ...]:
        """The steps of one list; `inside` are the kinds of the steps around it."""
        return tuple(self._step(one, f"{key}[{number}]", inside) for number, one in enumerate(given))

    def _step(self, given: Mapping[str, Any], key: str, inside: tuple[str, ...]) -> Step:
        kind, does, ends = self._one(fill(given, "", self._fixed), key)
        key_of = f"{key}.{kind}"
        self._count += self._rounds
        if self._count > MAX_STEPS:
            raise ConfigError(key, f"with it more than {MAX_STEPS} steps are done", "repeat less often")
        if self._is_over and kind not in _AFTER_THE_END:
            raise ConfigError(key, "the machine is gone after the step with `ends`", "only note and expect follow")
        if kind == "guest" and "guest" in inside:
            raise ConfigError(key, "a guest does one thing at a time", "meanwhile has no guest steps")
        self._check_marks(does, key_of, "repeat" in inside)
        does.check(key_of)
        self._check_rules(does, key_of)
        inner = self._inner(does, key_of, (*inside, kind))
        self._take_names(does, key_of)
        self._is_over = self._is_over or ends is not None
        return Step(key, kind, does, ends, inner)

    def _one(self, given: Mapping[str, Any], key: str) -> tuple[str, Kind, Ends | None]:
        kinds = [name for name in given if name != _ENDS]
        if len(kinds) != 1:
            problem = f"a step says one thing, this says {len(kinds)}: {', '.join(kinds) or 'nothing'}"
            raise ConfigError(key, problem, "one of " + ", ".join(KINDS))
        kind = kinds[0]
        if kind not in KINDS:
            raise ConfigError(f"{key}.{kind}", "there is no such step", closest(kind, list(KINDS)))
        shape = KINDS[kind]
        try:
            does = convert(shape.spelled_out(given[kind]), shape, shape.examples)
            ends = convert({_ENDS: given.get(_ENDS)}, _Ending, {}).ends
        except ConfigError as error:
            inner = f"{key}.{_ENDS}" if error.key == _ENDS else f"{key}.{kind}"
            own = shape.own_key(given[kind], "" if error.key in (_ENDS, WHOLE) else error.key)
            raise ConfigError(f"{inner}{_joined(own)}", error.problem, error.cure) from None
        return kind, does, ends

    def _check_marks(self, does: Kind, key: str, repeats: bool) -> None:
        known = [*self._results, *(["round"] if repeats else [])]
        for name, value in does.free().items():
            for path in marks(value):
                check_path(path, f"{key}.{name}", [*known, *self._constants])
        if (seen := does.looks_at) is not None:
            check_path(seen, f"{key}.that", known)

    def _check_rules(self, does: Kind, key: str) -> None:
        """A rule is named by a step only after one that injects it."""
        for where, named in does.rules_named():
            if not self._any_rule and named not in self._rules and not any(marks(named)):
                cure = closest(named, sorted(self._rules)) if self._rules else "give the inject step an id"
                raise ConfigError(f"{key}.{where}", f"nothing before this step injects {named!r}", cure)
        for given in does.rules_added():
            if "id" not in given or any(marks(rule := given["id"])):
                self._any_rule = True
                continue
            if rule in self._live:
                raise ConfigError(f"{key}.id", f"{rule!r} is the id of an earlier rule", "ids are unique")
            self._rules.add(rule)
            self._live.add(rule)
        if does.clears_rules:
            self._live.clear()

    def _inner(self, does: Kind, key: str, inside: tuple[str, ...]) -> tuple[Step, ...]:
        self._rounds *= does.times if isinstance(does, RepeatStep) else 1
        inner = self.steps(does.inner(), f"{key}.{does.inner_key}", inside)
        self._rounds //= does.times if isinstance(does, RepeatStep) else 1
        return inner

    def _take_names(self, does: Kind, key: str) -> None:
        if (name := does.saved_as) is not None:
            _check_name(name, f"{key}.as")
            if name in self._constants:
                raise ConfigError(f"{key}.as", f"{name!r} is a variable", "choose another name")
            self._results.append(name)


def _joined(key: str) -> str:
    return f".{key}" if key and not key.startswith("[") else key


class _Ending(msgspec.Struct, frozen=True):
    ends: Ends | None = None
