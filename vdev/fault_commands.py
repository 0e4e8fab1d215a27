"""The control socket's commands for fault injection. Texts and members: vdev/qapi/vdev.qapi."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vdev.control.event_log import describe
from vdev.control.iommu_units import check_number
from vdev.control.qemu_wishes import QemuWishes
from vdev.control.server import Command
from vdev.faults.actions import BOUND, FREE, POINTS, Action, Parameter
from vdev.faults.rule import NS
from vdev.injector import MAX_LOG, Injector, Logged

DEFAULT_LOG = 100

Reply = dict[str, Any]


def fault_commands(injector: Injector, wishes: QemuWishes) -> dict[str, Command]:
    """The table; `wishes` is told what bridges have done."""
    handlers = _Handlers(injector, wishes)
    return {
        "fault-add": Command(handlers.add),
        "fault-load": Command(handlers.load),
        "fault-remove": Command(handlers.remove),
        "fault-release": Command(handlers.release),
        "fault-clear": Command(handlers.clear),
        "fault-seed": Command(handlers.seed),
        "query-fault-plan": Command(handlers.plan),
        "query-fault-log": Command(handlers.log),
        "query-fault-actions": Command(known_actions),
        "fault-qemu-done": Command(handlers.qemu_done),
    }


class _Handlers:
    """Parameters and returned members are the schema's."""

    def __init__(self, injector: Injector, wishes: QemuWishes) -> None:
        self._injector = injector
        self._wishes = wishes

    def add(
        self,
        at: str,
        do: str,
        id: str | None = None,
        match: Mapping[str, Any] | None = None,
        when: Mapping[str, Any] | None = None,
        with_: object = None,
        times: int | None = None,
    ) -> Reply:
        """fault-add. ConfigError, and then nothing has changed."""
        given = {"at": at, "do": do, "id": id, "match": match, "when": when, "with": with_, "times": times}
        since = self._injector.next_seq
        rule = self._injector.add({key: value for key, value in given.items() if value is not None})
        return {"id": rule, "since": since}

    def load(self, plan: object, replace: bool = False) -> Reply:
        """fault-load. ConfigError, and then nothing has changed."""
        since = self._injector.next_seq
        return {"ids": self._injector.load(plan, replace=replace), "since": since}

    def remove(self, id: str, release: bool = False) -> Reply:
        """fault-remove. ConfigError if the rule is not there."""
        found: Reply = next((rule for rule in self._injector.describe()["rules"] if rule["id"] == id), {})
        self._injector.remove(id)
        released = self._injector.release(id) if release and found["held"] else 0
        return {"matched": found["matched"], "fired": found["fired"], "released": released}

    def release(self, id: str | None = None) -> Reply:
        """fault-release. ConfigError if the rule is not there, and nothing is held for it."""
        return {"released": self._injector.release(id)}

    def clear(self) -> Reply:
        """fault-clear."""
        cleared = self._injector.clear()
        return {"removed": cleared.removed, "undone": cleared.undone, "terminal": cleared.terminal}

    def seed(self, seed: int) -> Reply:
        """fault-seed."""
        self._injector.seed(seed)
        return {}

    def plan(self) -> Reply:
        """query-fault-plan."""
        return {**self._injector.describe(), "next-seq": self._injector.next_seq}

    def log(self, since: int = 0, limit: int = DEFAULT_LOG, rule: str | None = None) -> list[Reply]:
        """query-fault-log. ConfigError for a limit beyond what is kept."""
        check_number("limit", limit, 1, MAX_LOG)
        return [_firing(logged) for logged in self._injector.log(since, limit, rule)]

    def qemu_done(self, rule: str, n: int, error: str = "") -> Reply:
        """fault-qemu-done. ConfigError if nobody waits for that."""
        self._wishes.done(rule, n, error)
        return {}


def _firing(logged: Logged) -> Reply:
    event = logged.event
    return {
        "seq": logged.seq,
        "time": logged.time_ns / NS,
        "rule": event.rule,
        "n": event.n,
        "at": event.at,
        "do": event.do,
        "text": describe(event),
        "fields": event.fields,
        **({"note": event.note} if event.note else {}),
    }


def known_actions() -> list[Reply]:
    """query-fault-actions: those of each point, in the table's order, then those that may stand at every point."""
    bound = [_action(name, [point], action) for point, actions in BOUND.items() for name, action in actions.items()]
    return [*bound, *(_action(name, list(POINTS), action) for name, action in FREE.items())]


def _action(name: str, points: Sequence[str], action: Action) -> Reply:
    return {
        "do": name,
        "at": points,
        "free": name in FREE,
        "about": action.about,
        "with": [_parameter(known, parameter) for known, parameter in action.parameters.items()],
        "undone": action.undone,
        **({"terminal": action.terminal} if action.terminal else {}),
    }


def _parameter(name: str, parameter: Parameter) -> Reply:
    default = {} if parameter.default is None else {"default": parameter.default}
    return {
        "name": name,
        "about": parameter.about,
        "values": parameter.values,
        "required": parameter.required,
        **default,
    }
