"""A fault plan connected to one VM's machine: it puts the hooks of a point in place while rules stand there, and owns
everything that is to happen later.

It is a worker of the scheduler, so what comes later comes in a slice: guest memory may be touched, and nothing happens
while the VM is stopped. `clear` takes all rules away and undoes what they left; the cores then run as if there had
never been a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from vdev.assemble import Machine, Unit, Wrap
from vdev.config import Config, format_bdf
from vdev.config.faults import check_seed
from vdev.control.iommu_units import endpoint_name
from vdev.errors import ConfigError
from vdev.faults.agenda import MAX_DUE, Agenda, Entry
from vdev.faults.deeds import DEEDS, Deeds
from vdev.faults.detours import Detours
from vdev.faults.dma import DmaPoint
from vdev.faults.events import FaultInjected, FaultsCleared, FaultWantsQemu
from vdev.faults.events_queue import EventPoint
from vdev.faults.interrupts import InterruptPoint
from vdev.faults.invalidation import InvalidationPoint
from vdev.faults.orders import ORDERS, Orders
from vdev.faults.pasids import PasidPoint
from vdev.faults.plan import Firing, Plan
from vdev.faults.point import Hooks
from vdev.faults.registers import RegisterPoint
from vdev.faults.requests import RequestPoint
from vdev.faults.rule import NS, Occurrence, Rule, World, parse_rule
from vdev.faults.translation import TranslationPoint
from vdev.functions.base import Progress
from vdev.iommu.pasid_set import PasidSet
from vdev.qemu.machine import port_of

MAX_LOG = 4096  # firings kept
TIMER = "timer"
SEED_KEY = "faults.seed"
NOT_DONE = "not done"  # how the words of an action begin that had no effect


@dataclass(frozen=True, slots=True)
class Around:
    """What the injector needs of the process it is in. `order` carries out an administrator's order of the PASID
    authority some time later; `stall` and `die` are what they say."""

    emit: Callable[[object], None]
    clock_ns: Callable[[], int]
    wake_at: Callable[[Injector, int], None]
    order: Callable[[str, Mapping[str, Any]], None]
    stall: Callable[[float], None]
    die: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Cleared:
    """What `clear` did."""

    removed: int
    undone: list[str]
    terminal: list[str]


@dataclass(frozen=True, slots=True)
class Logged:
    """A firing as it is kept."""

    seq: int
    time_ns: int
    event: FaultInjected


class PlanShape(msgspec.Struct, forbid_unknown_fields=True):
    """A plan as its author writes it."""

    seed: int | None = None
    rules: list[Any] = []


def _no_words(firing: Firing) -> str:
    return ""


class Injector:
    """Implements `faults.point.Services`, `functions.base.Worker`."""

    name = "faults"

    def __init__(self, machine: Machine, config: Config, around: Around, pasids: PasidSet | None = None) -> None:
        """No rules, nothing in place. `pasids` is the VM's set."""
        self._machine = machine
        self._config = config
        self._around = around
        self._pasids = pasids
        self._plan = Plan(lambda unit, number: endpoint_name(machine.units, unit, number))
        self._agenda = Agenda()
        self._timers: dict[str, Entry] = {}
        self._log: list[Logged] = []
        self._next_seq = 0
        self._terminal: dict[str, str] = {}  # action -> why it stays, of those done since the last clear
        self._orders = Orders(around, pasids)
        self._deeds = Deeds(self)
        self._hooks: dict[str, Hooks] = self._make_hooks()
        self._armed: set[str] = set()
        self._is_doing = False
        machine.changed = self._arm_anew

    def _make_hooks(self) -> dict[str, Hooks]:
        detours = Detours(self)
        return {
            "request": RequestPoint(self),
            "invalidation": InvalidationPoint(self),
            "translation": TranslationPoint(self, detours),
            "dma": DmaPoint(detours),
            "event": EventPoint(self),
            "interrupt": InterruptPoint(self),
            "pasid": PasidPoint(self, self._pasids),
            "register": RegisterPoint(self),
        }

    # what people ask for

    def add(self, given: Mapping[str, Any]) -> str:
        """Add one rule; its id. ConfigError, and then nothing has changed."""
        return self.load({"rules": [given]})[0]

    def load(self, given: object, *, replace: bool = False) -> list[str]:
        """Add the rules of a plan, instead of those there are if `replace`; their ids. All or none: ConfigError."""
        try:
            plan = msgspec.convert(given, PlanShape)
        except msgspec.ValidationError as error:
            raise ConfigError("faults", str(error), "a plan has seed and rules") from None
        if plan.seed is not None:
            check_seed(plan.seed, SEED_KEY)
        world, numbers = self._world(), self._plan.numbers(plan.rules, anew=replace)
        rules = [parse_rule(one, number, world) for number, one in zip(numbers, plan.rules, strict=True)]
        if replace:
            Plan(lambda unit, number: None).check_room(rule.id for rule in rules)
            self.clear()
        else:
            self._plan.check_room(rule.id for rule in rules)
            self._check_timers(rules)
        if plan.seed is not None:
            self._plan.seed = plan.seed
        self._plan.numbered = max(self._plan.numbered, *numbers, 0)
        for rule in rules:
            self._plan.add(rule, self._around.clock_ns())
        self._arm_anew()
        for rule in rules:
            if rule.at == TIMER:
                self._start_timer(rule)
        return [rule.id for rule in rules]

    def remove(self, rule_id: str) -> None:
        """Take one rule away; what it holds is still held. ConfigError if it is not there."""
        self._plan.remove(rule_id)
        self._stop_timer(rule_id)
        self._arm_anew()

    def release(self, rule_id: str | None = None) -> int:
        """Let go of what is held because of a rule, or of all; how many things. ConfigError: it is not there."""
        if rule_id is not None and rule_id not in self._plan.rules and rule_id not in self._held():
            raise ConfigError("id", f"there is no rule {rule_id!r}, and nothing is held for it")
        return sum(hooks.release(rule_id) for hooks in self._hooks.values())

    def clear(self) -> Cleared:
        """Take all rules away and undo what they left; what cannot be undone is said."""
        removed = self._plan.clear()
        for rule_id in list(self._timers):
            self._stop_timer(rule_id)
        self._arm_anew()
        undone = [line for hooks in self._hooks.values() for line in hooks.clear()]
        undone += [*self._deeds.clear(), *self._orders.clear()]
        terminal = [f"{action}: {why}" for action, why in self._terminal.items()]
        self._terminal.clear()
        if removed or undone or terminal:
            self._around.emit(FaultsCleared(removed, tuple(undone), tuple(terminal)))
        return Cleared(removed, undone, terminal)

    def seed(self, number: int) -> None:
        """Another seed from now on. ConfigError."""
        check_seed(number, SEED_KEY)
        self._plan.seed = number

    def describe(self) -> dict[str, Any]:
        """Seed and rules with their counts: plain data."""
        held = self._held()
        rules = [
            {**armed.rule.describe(), "matched": armed.met, "fired": armed.fired, "held": held.get(name, 0)}
            for name, armed in self._plan.rules.items()
        ]
        gone = sum(number for name, number in held.items() if name not in self._plan.rules)
        return {
            "seed": self._plan.seed,
            "rules": rules,
            "held-by-none": gone,
            "waiting": self._agenda.nwaiting,
        }

    def log(self, since: int = 0, limit: int = 100, rule: str | None = None) -> list[Logged]:
        """Firings numbered `since` or later, the oldest `limit` of them."""
        found = [one for one in self._log if one.seq >= since and rule in (None, one.event.rule)]
        return found[: max(limit, 0)]

    @property
    def next_seq(self) -> int:
        """The number of the next firing."""
        return self._next_seq

    # what points ask for

    @property
    def units(self) -> Mapping[str, Unit]:
        """As `faults.point.Services`."""
        return self._machine.units

    def meet(self, met: Occurrence, words: Callable[[Firing], str] = _no_words) -> Firing | None:
        """As `faults.point.Services`. What an action itself causes meets nothing: or a rule could set itself off."""
        if self._is_doing:
            return None
        bound = None
        for firing in self._plan.meet(met, self._around.clock_ns()):
            if firing.rule.is_free:
                self._do(firing)
            else:
                bound = firing
                self._tell(firing, words(firing))
        return bound

    @property
    def has_room(self) -> bool:
        """As `faults.point.Services`."""
        return self._agenda.has_room

    def later(self, seconds: float, what: Callable[[], None]) -> Entry | None:
        """As `faults.point.Services`."""
        entry = self._agenda.add(self._around.clock_ns() + round(seconds * NS), what)
        self._set_alarm()
        return entry

    def ask_qemu(self, firing: Firing, command_line: str) -> None:
        """As `faults.point.Services`."""
        self._around.emit(FaultWantsQemu(firing.rule.id, firing.n, command_line))

    def port_of(self, function: str) -> str | None:
        """As `faults.point.Services`."""
        doors = (unit.doors.get(function) for unit in self._machine.units.values())
        number = next((door.endpoint_id for door in doors if door is not None), 0)
        return port_of(format_bdf(number))

    def answer_with(self, unit: str, rank: int, wrap: Wrap | None) -> None:
        """As `faults.point.Services`."""
        self._machine.answer_with(unit, rank, wrap)

    # Worker

    def run_slice(self, now_ns: int) -> Progress:
        """Do what is due, a bounded number of things."""
        self._agenda.run(now_ns)
        next_ns = self._agenda.next_ns
        if next_ns is not None and next_ns <= now_ns:
            return Progress.BUSY
        self._set_alarm()
        return Progress.IDLE

    def _set_alarm(self) -> None:
        next_ns = self._agenda.next_ns
        if next_ns is not None:
            self._around.wake_at(self, next_ns)

    # inside

    def _world(self) -> World:
        endpoints = {
            name: (unit.config.name, door.endpoint_id)
            for unit in self._machine.units.values()
            for name, door in unit.doors.items()
        }
        units = {name: unit.config.attach for name, unit in self._machine.units.items()}
        return World(units, endpoints, bool(self._config.slots), self._pasids is not None)

    def _arm_anew(self) -> None:
        """Hooks where rules stand, and nowhere else."""
        wanted = self._plan.points()
        for point, hooks in self._hooks.items():
            if point in wanted:
                hooks.arm()
            elif point in self._armed:
                hooks.disarm()
        self._armed = wanted

    def _held(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for hooks in self._hooks.values():
            for name, number in hooks.held().items():
                found[name] = found.get(name, 0) + number
        return found

    def _check_timers(self, rules: Sequence[Rule]) -> None:
        """ConfigError if there is no room for all that are to wait for their time."""
        count = sum(rule.at == TIMER for rule in rules)
        if count and self._agenda.nwaiting + count > MAX_DUE:
            problem = f"{self._agenda.nwaiting} things wait for their time already, {MAX_DUE} may"
            raise ConfigError("faults.rules", problem, "release or clear what is held")

    def _start_timer(self, rule: Rule) -> None:
        due = self.later(rule.when.delay or 0.0, lambda: self._time_has_come(rule))
        if due is not None:
            self._timers[rule.id] = due

    def _stop_timer(self, rule_id: str) -> None:
        due = self._timers.pop(rule_id, None)
        if due is not None:
            due.cancel()

    def _time_has_come(self, rule: Rule) -> None:
        armed = self._plan.rules.get(rule.id)
        if armed is None or armed.rule is not rule:
            return
        armed.met += 1
        armed.fired += 1
        if rule.when.period is not None and not armed.is_spent:
            due = self.later(rule.when.period, lambda: self._time_has_come(rule))
            if due is not None:
                self._timers[rule.id] = due
        self._do(Firing(rule, armed.fired, Occurrence(TIMER)))

    def _do(self, firing: Firing) -> None:
        """A free action."""
        do = firing.rule.do
        if do == "die":
            self._tell(firing, "")
        self._is_doing = True
        try:
            note = (self._orders if do in ORDERS else self._deeds).do(firing)
        finally:
            self._is_doing = False
        self._tell(firing, note)

    def _tell(self, firing: Firing, note: str) -> None:
        rule = firing.rule
        if rule.action.terminal and not note.startswith(NOT_DONE):
            self._terminal[rule.do] = rule.action.terminal
        event = FaultInjected(rule.id, firing.n, rule.at, rule.do, firing.met.fields(), note, rule.parameters)
        self._log.append(Logged(self._next_seq, self._around.clock_ns(), event))
        self._next_seq += 1
        del self._log[:-MAX_LOG]
        self._around.emit(event)


def known_actions() -> Sequence[str]:
    """All free actions that somebody carries out: a test holds them against the table."""
    return [*ORDERS, *DEEDS]
