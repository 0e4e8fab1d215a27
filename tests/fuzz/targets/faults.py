"""Fault plans of any text at a VM at work: rules come and go while its driver asks, engines move bytes, time passes.

Input: a byte that chooses the VM (`Player.__init__`), then moves: a byte that names each, and its operands (`_MOVES`).
Beside "nothing raises": a plan that is refused changes nothing; a rule, as it is described, is accepted again and is
the same; what waits, is held and is logged stays within its bounds; and after `clear` nothing is held, nothing waits,
and a driver that starts anew finds everything as it was without a plan.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from tests.fuzz.reader import Reader
from tests.support.fault_scene import FaultScene
from tests.support.flight import BUFFER, ENGINES, FILLED, OK, PAGE, RING_SIZE
from tests.support.pasid_allocator import PlainAllocator
from tests.support.virtio_pci import RAM_GPA
from vdev.errors import ConfigError
from vdev.faults.actions import POINTS, TYPES, Parameter, find_action, names_at
from vdev.faults.agenda import MAX_DUE
from vdev.functions.vhost import VhostCarrier
from vdev.injector import MAX_LOG
from vdev.iommu.pasid_set import PasidSet, Refusal
from vdev.wire import viommu_pasid as pasid_wire

LONGEST = 400  # bytes of the text of a plan
MOST_RULES = 12  # at once: one input is to end soon
MOST_RECORDS = 300  # of one flood, for the same reason
STEPS_S = (0.0, 0.001, 0.01, 0.05)
SECONDS = (0, 0.001, 0.01, 60, 3600, 3601, -1)
NUMBERS = (1, 0, 2, 3, 8, 0xFF, 0x100, 0xFFFF, 0x8_0000, 0xFFFF_FFFF, 1 << 32, (1 << 64) - 1, 1 << 64, -1)
NAMES = ("accel0", "accel1", "iommu0", "accel9", "")
WHENS: tuple[dict[str, Any], ...] = (
    {}, {"nth": 1}, {"nth": [1, 3]}, {"every": 2}, {"after": 1}, {"probability": 0.5}, {"window": [0, 0.02]},
    {"delay": 0.01}, {"delay": 0, "period": 0.01}, {"every": 0}, {"after": 2, "every": 3, "probability": 1},
)  # fmt: skip
MATCHES: tuple[dict[str, Any], ...] = (
    {}, {"unit": "iommu0"}, {"endpoint": "accel0"}, {"domain": 1}, {"pasid": 1}, {"iova": "0x80000-0x80fff"},
    {"access": "write"}, {"function": "accel1"}, {"vector": 0}, {"register": 8}, {"iova": 0x8_1000}, {"type": "UNMAP"},
)  # fmt: skip


class Player:
    """One VM, its driver, and who injects faults."""

    def __init__(self, kind: int) -> None:
        self.allocator = PlainAllocator()
        self.scene = FaultScene(
            "vhost-user" if kind & 1 else "vfio-user",
            latency_us=1000 if kind & 2 else 0,
            pasids=PasidSet(self.allocator) if kind & 4 else None,
            process=lambda *_: None,
        )
        self.faults = self.scene.faults
        self.since = 0  # firings before belong to an earlier start of the unit
        self.scene.set_up("accel0", "accel1")

    # people

    def shaped(self, given: Reader) -> None:
        """A rule that is probably right."""
        self._load({"rules": [_rule(given)]}, replace=False)

    def plan(self, given: Reader) -> None:
        """A seed and some rules, of which one may be wrong."""
        choice = given.byte()
        rules = [_rule(given) for _ in range(choice & 3)]
        self._load({"seed": choice >> 3, "rules": rules}, replace=bool(choice & 4))

    def text(self, given: Reader) -> None:
        """What somebody wrote, if it is JSON."""
        choice = given.byte()
        try:
            plan = json.loads(given.take(given.number(2) % LONGEST))
        except (ValueError, RecursionError):
            return
        self._load(plan, replace=bool(choice & 1))

    def _load(self, plan: Any, *, replace: bool) -> None:
        before = self.faults.describe()
        if not _is_short(plan) or (not replace and len(before["rules"]) >= MOST_RULES):
            return
        try:
            ids = self.faults.load(plan, replace=replace)
        except ConfigError as error:
            self._is_refused(error, before)
            return
        for name in ids:
            self._add_again(name)

    def _is_refused(self, why: ConfigError, before: dict[str, Any]) -> None:
        assert why.key.startswith("faults"), f"it does not say where: {why}"
        assert self.faults.describe() == before, "a plan that was refused changed something"

    def _add_again(self, name: str) -> None:
        """Nothing has met the rule yet."""
        (rule,) = (rule for rule in self.faults.describe()["rules"] if rule["id"] == name)
        own = {key: value for key, value in rule.items() if key not in ("matched", "fired", "held")}
        self.faults.remove(name)
        assert self.faults.load(json.loads(json.dumps({"rules": [own]}))) == [name]
        assert self.faults.describe()["rules"][-1] == rule, "it is not described as it is"

    def forget(self, given: Reader) -> None:
        """A rule goes, or what it holds."""
        rules, choice = self.faults.describe()["rules"], given.byte()
        if rules:
            (self.faults.remove if choice & 0x80 else self.faults.release)(rules[choice % len(rules)]["id"])
        elif choice & 1:
            self.faults.release()

    def clear(self, given: Reader) -> None:
        """All of it goes."""
        self.faults.clear()
        self.scene.run()
        left = self.faults.describe()
        assert (left["rules"], left["held-by-none"], left["waiting"]) == ([], 0, 0), left
        unit = self.scene.unit
        assert all(door.translator is unit.engine for door in unit.doors.values()), "a detour is left"

    # the driver and the host

    def ask(self, given: Reader) -> None:
        """A request, if there is room in the ring."""
        scene, choice = self.scene, given.byte()
        if len(scene.requests.free) < 2 or not self._is_on_bus():
            return
        page = BUFFER + (choice >> 3 & 7) * PAGE
        scene.post(
            (
                scene.map(page, RAM_GPA + page), scene.unmap(page), scene.attach(), scene.detach(),
                scene.map(page, RAM_GPA + page, domain=2), scene.attach("accel1", 2), scene.unmap(0, 1 << 39),
                pasid_wire.PasidAlloc(pasid_wire.T_PASID_ALLOC, bytes(3), 1, 0xF_FFFF),
            )[choice & 7]
        )  # fmt: skip
        self._take_answers()

    def _take_answers(self) -> None:
        """A driver that was answered twice starts its unit anew."""
        try:
            self.scene.answers()
        except AssertionError:
            assert any(logged.event.do == "twice" for logged in self.faults.log(self.since, MAX_LOG))
            self.restart(Reader(b""))

    def access(self, given: Reader) -> None:
        """An engine fills a page."""
        scene, choice = self.scene, given.byte()
        name = f"accel{choice & 1}"
        function: Any = scene.accels[name].function
        if not function.removed:
            scene.fill(BUFFER + (choice >> 1 & 7) * PAGE, nbytes=8 << (choice >> 4) % 10, name=name)

    def look(self, given: Reader) -> None:
        """A register is read."""
        choice = given.byte()
        self.scene.accels[f"accel{choice & 1}"].read(choice >> 1 << 2 & 0xFC)
        self.scene.run()

    def wait(self, given: Reader) -> None:
        """Time passes, and the host answers."""
        choice = given.byte()
        self.allocator.refuse = (None, None, *Refusal)[(choice >> 2) % 6]
        self.allocator.answer()
        self.scene.pass_time(STEPS_S[choice & 3])
        self._take_answers()

    def restart(self, given: Reader) -> None:
        """The unit's driver starts it anew."""
        if self._is_on_bus():
            self.since = self.faults.next_seq
            if isinstance(self.scene.function, VhostCarrier):
                self.scene.suspend_rings()
            else:
                self.scene.pci_driver.bus_master(True)  # it is off after a reset of the function
            self.scene.start_unit()

    def _is_on_bus(self) -> bool:
        function = self.scene.function
        return isinstance(function, VhostCarrier) or not function.removed

    # afterwards

    def check(self) -> None:
        """Everything is as it was without a plan."""
        self.clear(Reader(b""))
        self.scene.pass_time(1)
        self.allocator.refuse = None
        self.restart(Reader(b""))
        self.faults.clear()
        for name, accel in self.scene.accels.items():
            accel.cycle_bus_master()
            self._works(name, 9 + int(name[-1]))

    def _works(self, name: str, domain: int) -> None:
        """An engine in a new domain."""
        scene = self.scene
        scene.ram[BUFFER : BUFFER + PAGE] = bytes(PAGE)
        buffer = scene.map(BUFFER, RAM_GPA + BUFFER, domain=domain)
        assert scene.ask(scene.attach(name, domain), scene.map_ring(name, domain), buffer) == [OK] * 3
        scene.accels[name].start(ENGINES[name])
        scene.fill(name=name)
        scene.pass_time(0.01)
        assert scene.buffer() == FILLED, f"{name} does not work any more"


_MOVES: tuple[Callable[[Player, Reader], None], ...] = (
    Player.shaped, Player.ask, Player.access, Player.wait, Player.text, Player.look, Player.forget, Player.clear,
    Player.restart, Player.plan, Player.ask, Player.access,
)  # fmt: skip
MOST_MOVES = 60


def one_input(data: bytes) -> None:
    """Play one input to a new VM."""
    given = Reader(data)
    player = Player(given.byte())
    for _ in range(MOST_MOVES):
        if not given.more:
            break
        _MOVES[given.byte() % len(_MOVES)](player, given)
        plan = player.faults.describe()
        assert plan["waiting"] <= MAX_DUE
        assert len(player.faults.log(limit=MAX_LOG + 1)) <= MAX_LOG
        assert player.scene.held() <= MAX_DUE + RING_SIZE  # without a time requests only, which keep their descriptors
    player.check()


def _rule(given: Reader) -> dict[str, Any]:
    points = list(POINTS)
    at = points[given.byte() % len(points)]
    names = names_at(at)
    do = names[given.byte() % len(names)]
    action = find_action(at, do)
    assert action is not None
    choice = given.byte()
    parameters = {
        key: _value(key, one, given) for key, one in action.parameters.items() if one.required or choice & 0x80
    }
    rule: dict[str, Any] = {"at": at, "do": do, "with": parameters, "when": WHENS[(choice & 0x1F) % len(WHENS)]}
    if choice & 0x40:
        rule["match"] = MATCHES[given.byte() % len(MATCHES)]
        if "type" in rule["match"] and at not in TYPES:
            del rule["match"]
    if choice & 0x20:
        number = given.byte()
        rule |= {"id": f"r{number % 8}", "times": number >> 3 & 3}
    return rule


def _value(key: str, wanted: Parameter, given: Reader) -> Any:
    choice = given.byte()
    match wanted.kind:
        case "boolean":
            return bool(choice & 1)
        case "word":
            words = wanted.words or NAMES
            return words[choice % len(words)]
        case "seconds":
            return SECONDS[choice % len(SECONDS)]
    return choice if key == "records" else NUMBERS[choice % len(NUMBERS)]


def _is_short(plan: Any) -> bool:
    """Whether what it asks for takes no time."""
    if not isinstance(plan, dict) or not isinstance(plan.get("rules"), list):
        return True
    rules = [rule for rule in plan["rules"] if isinstance(rule, dict)]
    given = [rule["with"] for rule in rules if isinstance(rule.get("with"), dict)]
    counts = [one["records"] for one in given if isinstance(one.get("records"), int)]
    return len(rules) <= MOST_RULES and all(number <= MOST_RECORDS for number in counts)


def seeds() -> Iterator[bytes]:
    """Every action once, with traffic; and plans as people write them."""
    traffic = bytes([1, 0, 2, 0, 1, 1, 2, 2, 2, 14, 5, 4, 3, 3, 1, 7, 3, 0, 6, 0, 3, 1])
    for at, point in enumerate(POINTS):
        for do, name in enumerate(names_at(point)):
            action = find_action(point, name)
            assert action is not None
            for kind in (0, 7):
                values = range(len(action.parameters))
                yield bytes([kind, 0, at, do, 0x80 | (8 if point == "timer" else 0), *values]) + traffic
    yield bytes([7, 9, 0x3A, 0, 0, 0, 1, 0, 1, 0]) + traffic
    plans = (
        {"seed": 7, "rules": [{"id": "late", "at": "request", "do": "hold", "match": {"type": "UNMAP"}}]},
        {"rules": [{"at": "invalidation", "do": "stale", "with": {"seconds": 0.5}, "when": {"probability": 0.3}}]},
        {"rules": [{"at": "timer", "do": "remove", "with": {"function": "accel0"}, "when": {"delay": 0.01}}]},
        {"rules": [{"at": "dma", "do": "partial", "with": {"nbytes": 8}, "match": {"iova": "0x80000-0x80fff"}}]},
        {"rules": [{"at": "event", "do": "flood", "with": {"unit": "iommu0", "records": 9}, "times": 2}] * 2},
    )
    for number, plan in enumerate(plans):
        text = json.dumps(plan).encode()
        yield bytes([number, 4, 0]) + len(text).to_bytes(2, "little") + text + traffic
