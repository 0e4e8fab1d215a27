"""The kinds of steps, one class each: what the file says, and what is done. The table is at the end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from guest_tests.scenario.actions import check_rule
from guest_tests.scenario.expect import ExpectStep
from guest_tests.scenario.kind import Done, Kind, check_within
from guest_tests.scenario.names import NoSuchValue, shown, value_at
from guest_tests.scenario.scene import CallRaised, CommandRefused, Inner, Scene, StepFailed, beside
from vdev.errors import ConfigError

MAX_PAUSE_S = 60.0
MAX_TIMES = 10_000
_FUNCTION = re.compile(r"([A-Za-z_]\w*):([A-Za-z_]\w*)", re.ASCII)
_SAID_ALREADY = ("text", "suppressed", "rule", "n", "at", "do")  # by the line of the firing
_RULE_ID = re.compile(r"[a-z0-9-]{1,40}")


class GuestStep(Kind):
    """Call a function in the guest; `meanwhile` are steps done while it is under way."""

    call: str
    with_: dict[str, Any] = msgspec.field(default_factory=dict, name="with")
    as_: str | None = msgspec.field(default=None, name="as")
    within: float = 30.0
    raises: str | None = None
    meanwhile: tuple[dict[str, Any], ...] = ()

    inner_key: ClassVar[str] = "meanwhile"
    free_keys: ClassVar[tuple[str, ...]] = ("with_", "raises")
    examples: ClassVar[Mapping[str, str]] = {
        "call": "MODULE:FUNCTION of the guest's directory, such as work:copy",
        "with": "the function's arguments by name, such as {nbytes: 4096}",
        "as": "a name for what it returns",
        "within": "seconds, such as 30",
        "raises": "words of what it must raise",
        "meanwhile": "a list of steps",
    }

    def check(self, key: str) -> None:
        if _FUNCTION.fullmatch(self.call) is None:
            raise ConfigError(f"{key}.call", f"{self.call!r} is not MODULE:FUNCTION", self.examples["call"])
        check_within(self.within, f"{key}.within")

    @property
    def saved_as(self) -> str | None:
        return self.as_

    @property
    def module_file(self) -> str:
        return f"{self.call.partition(':')[0]}.py"

    def words(self, scene: Scene) -> str:
        arguments = scene.filled(self.with_)
        return f"{self.call} {shown(arguments)}" if arguments else self.call

    async def do(self, scene: Scene, inner: Inner) -> Done:
        call = scene.machine.call(self.call, scene.filled(self.with_), self.within)
        wanted = None if self.raises is None else str(scene.filled(self.raises))
        try:
            value = await (beside(call, inner, scene.clear) if self.meanwhile else call)
        except CallRaised as raised:
            if wanted is None:
                raise StepFailed(f"{self.call} returns", f"it raised {raised}", raised.traceback) from None
            if wanted not in str(raised):
                raise StepFailed(f"it raises {wanted!r}", f"it raised {raised}", raised.traceback) from None
            return Done(f"raised {raised}", str(raised))
        if wanted is not None:
            raise StepFailed(f"it raises {wanted!r}", f"it returned {shown(value)}")
        return Done("done" if value is None else f"returned {shown(value)}", value)


class RuleGiven(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A rule as `fault-add` takes it: docs/faults.md."""

    at: str
    do: str
    id: str | None = None
    match: dict[str, Any] | None = None
    when: dict[str, Any] | None = None
    with_: dict[str, Any] | None = msgspec.field(default=None, name="with")
    times: int | None = None


class InjectStep(Kind):
    """Add rules for faults: one, or a list."""

    rules: tuple[RuleGiven, ...]

    examples: ClassVar[Mapping[str, str]] = {
        "rules": "a rule, or a list of rules, such as {id: r1, at: request, do: drop}",
        "at": "a point, such as request",
        "do": "an action, such as drop",
        "id": "a name for later steps, such as third-map",
    }

    @classmethod
    def spelled_out(cls, given: Any) -> Any:
        return {"rules": given if isinstance(given, list) else [given]}

    @classmethod
    def own_key(cls, given: Any, key: str) -> str:
        return key.removeprefix("rules") if isinstance(given, list) else key.removeprefix("rules[0]").lstrip(".")

    def check(self, key: str) -> None:
        if not self.rules:
            raise ConfigError(key, "the list is empty", self.examples["rules"])
        for rule in self.rules:
            if rule.id is not None and "{{" not in rule.id and _RULE_ID.fullmatch(rule.id) is None:
                cure = "1 to 40 small letters, digits and -"
                raise ConfigError(f"{key}.id", f"{rule.id!r} is not the id of a rule", cure)
        for given in self.rules_added():
            check_rule(given, key)

    def free(self) -> dict[str, Any]:
        return {"rules": self.rules_added()}

    def rules_added(self) -> Sequence[Mapping[str, Any]]:
        added: list[Mapping[str, Any]] = msgspec.to_builtins(self.rules)
        return added

    def words(self, scene: Scene) -> str:
        return "; ".join(rule_words(rule) for rule in scene.filled(self.rules_added()))

    async def do(self, scene: Scene, inner: Inner) -> Done:
        ids = [(await scene.ours("fault-add", **rule))["id"] for rule in scene.filled(self.rules_added())]
        return Done(f"added {', '.join(ids)}", ids)


class WaitStep(Kind):
    """Wait for an event of the monitor, QEMU's or ours, that no other step has waited for."""

    event: str
    where: dict[str, Any] = msgspec.field(default_factory=dict)
    within: float = 5.0
    as_: str | None = msgspec.field(default=None, name="as")

    free_keys: ClassVar[tuple[str, ...]] = ("where",)
    examples: ClassVar[Mapping[str, str]] = {
        "event": "the name of an event, such as FAULT_INJECTED or STOP",
        "where": "what its data must say, such as {rule: r1}",
        "within": "seconds, such as 5",
        "as": "a name for the event's data",
    }

    def check(self, key: str) -> None:
        check_within(self.within, f"{key}.within")

    @property
    def saved_as(self) -> str | None:
        return self.as_

    def rules_named(self) -> Iterator[tuple[str, str]]:
        if "rule" in self.where:
            yield "where.rule", str(self.where["rule"])

    def words(self, scene: Scene) -> str:
        return self._wanted(scene.filled(self.where))

    def _wanted(self, where: Mapping[str, Any]) -> str:
        return f"{self.event} {shown(dict(where))}" if where else self.event

    async def do(self, scene: Scene, inner: Inner) -> Done:
        where = scene.filled(self.where)
        try:
            data = await scene.machine.event(self.event, lambda data: _has(data, where), self.within)
        except TimeoutError:
            raise StepFailed(f"the event {self._wanted(where)}", f"it did not come within {self.within:g} s") from None
        told = {name: value for name, value in data.items() if name not in _SAID_ALREADY}
        return Done(f"it came: {shown(told)}" if told else "it came", data)


def _has(data: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    try:
        return all(value_at(data, path) == wanted for path, wanted in where.items())
    except NoSuchValue:
        return False


class QmpStep(Kind):
    """Execute a command of the monitor, QEMU's or ours; with `error` it must be refused with these words."""

    execute: str
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    as_: str | None = msgspec.field(default=None, name="as")
    error: str | None = None
    within: float = 10.0

    free_keys: ClassVar[tuple[str, ...]] = ("arguments", "error")
    examples: ClassVar[Mapping[str, str]] = {
        "execute": "a command, such as query-status or __org.vdev_query-units",
        "arguments": "its arguments by name",
        "as": "a name for what it returns",
        "error": "words of the refusal it must get",
        "within": "seconds, such as 10",
    }

    def check(self, key: str) -> None:
        check_within(self.within, f"{key}.within")

    @property
    def saved_as(self) -> str | None:
        return self.as_

    def words(self, scene: Scene) -> str:
        arguments = scene.filled(self.arguments)
        return f"{self.execute} {shown(arguments)}" if arguments else self.execute

    async def do(self, scene: Scene, inner: Inner) -> Done:
        wanted = None if self.error is None else str(scene.filled(self.error))
        try:
            value = await scene.machine.execute(self.execute, scene.filled(self.arguments), self.within)
        except CommandRefused as refusal:
            if wanted is None or wanted not in str(refusal):
                expected = f"it is refused with {wanted!r}" if wanted is not None else f"{self.execute} is done"
                raise StepFailed(expected, f"it is refused: {refusal}") from None
            return Done(f"refused: {refusal}", str(refusal))
        except TimeoutError:
            raise StepFailed(f"{self.execute} is answered", f"no answer within {self.within:g} s") from None
        if wanted is not None:
            raise StepFailed(f"it is refused with {wanted!r}", f"it returned {shown(value)}")
        return Done(f"returned {shown(value)}", value)


class RepeatStep(Kind):
    """Do steps so many times; {{round}} is 1 in the first round."""

    times: int
    steps: tuple[dict[str, Any], ...]

    inner_key: ClassVar[str] = "steps"
    examples: ClassVar[Mapping[str, str]] = {"times": "a number, such as 3", "steps": "a list of steps"}

    def check(self, key: str) -> None:
        if not 1 <= self.times <= MAX_TIMES:
            raise ConfigError(f"{key}.times", f"{self.times} is not in 1..{MAX_TIMES}", self.examples["times"])
        if not self.steps:
            raise ConfigError(f"{key}.steps", "the list is empty", self.examples["steps"])

    def words(self, scene: Scene) -> str:
        return f"{self.times} times"

    async def do(self, scene: Scene, inner: Inner) -> Done:
        outer = scene.values.get("round")
        for number in range(1, self.times + 1):
            scene.values["round"] = number
            await inner()
        scene.values["round"] = outer
        return Done(f"done {self.times} times")


class ReleaseStep(Kind):
    """Let go of what a rule holds; there must be something."""

    rule: str

    free_keys: ClassVar[tuple[str, ...]] = ("rule",)
    examples: ClassVar[Mapping[str, str]] = {"rule": "the id of a rule that holds something"}

    @classmethod
    def spelled_out(cls, given: Any) -> Any:
        return {"rule": given}

    @classmethod
    def own_key(cls, given: Any, key: str) -> str:
        return ""

    def rules_named(self) -> Iterator[tuple[str, str]]:
        yield "rule", self.rule

    def words(self, scene: Scene) -> str:
        return str(scene.filled(self.rule))

    async def do(self, scene: Scene, inner: Inner) -> Done:
        rule = scene.filled(self.rule)
        released = (await scene.ours("fault-release", id=rule))["released"]
        if not released:
            raise StepFailed(f"{rule} holds something", "nothing")
        return Done(f"released {released}", released)


class ClearStep(Kind):
    """Remove all rules and undo what they left."""

    @classmethod
    def spelled_out(cls, given: Any) -> Any:
        return {} if given is None else given

    @property
    def clears_rules(self) -> bool:
        return True

    def words(self, scene: Scene) -> str:
        return "all rules"

    async def do(self, scene: Scene, inner: Inner) -> Done:
        cleared = await scene.clear()
        undone = "; ".join(cleared["undone"]) or "nothing was left to undo"
        return Done(f"removed {cleared['removed']}; {undone}", cleared)


class NoteStep(Kind):
    """A line for the report and for vdev's trace."""

    text: str

    free_keys: ClassVar[tuple[str, ...]] = ("text",)
    examples: ClassVar[Mapping[str, str]] = {"text": "a line of text"}

    @classmethod
    def spelled_out(cls, given: Any) -> Any:
        return {"text": given}

    @classmethod
    def own_key(cls, given: Any, key: str) -> str:
        return ""

    def words(self, scene: Scene) -> str:
        return str(scene.filled(self.text))

    async def do(self, scene: Scene, inner: Inner) -> Done:
        return Done()


class PauseStep(Kind):
    """Let so much time pass; everything goes on meanwhile."""

    seconds: float

    examples: ClassVar[Mapping[str, str]] = {"seconds": "such as 0.5"}

    @classmethod
    def spelled_out(cls, given: Any) -> Any:
        return {"seconds": given}

    @classmethod
    def own_key(cls, given: Any, key: str) -> str:
        return ""

    def check(self, key: str) -> None:
        if not 0 <= self.seconds <= MAX_PAUSE_S:
            raise ConfigError(key, f"{self.seconds:g} is not in 0..{MAX_PAUSE_S:g} s", "seconds, such as 0.5")

    def words(self, scene: Scene) -> str:
        return f"{self.seconds:g} s"

    async def do(self, scene: Scene, inner: Inner) -> Done:
        await asyncio.sleep(self.seconds)
        return Done()


def rule_words(rule: Mapping[str, Any]) -> str:
    """A rule in one line."""
    parts = [f"{rule['id']}:" if rule.get("id") else "", f"at {rule['at']} do {rule['do']}"]
    for name in ("with", "match", "when", "times"):
        value = rule.get(name)
        if isinstance(value, Mapping):
            parts += [f"{name} " + shown(value)] if value else []
        elif value is not None:
            parts.append(f"{name} {value}")
    return " ".join(part for part in parts if part)


KINDS: dict[str, type[Kind]] = {
    "guest": GuestStep,
    "inject": InjectStep,
    "wait": WaitStep,
    "qmp": QmpStep,
    "expect": ExpectStep,
    "repeat": RepeatStep,
    "release": ReleaseStep,
    "clear": ClearStep,
    "note": NoteStep,
    "pause": PauseStep,
}
