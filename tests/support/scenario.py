"""Something to play scenarios on without a machine: it does what a test has prepared, and remembers what was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from guest_tests.scenario.model import Overrides, Scenario, load_scenario
from guest_tests.scenario.play import NotGreen, Player
from guest_tests.scenario.scene import CallRaised, CommandRefused, MachineGone, Scene
from guest_tests.scenario.timeline import Failure, Timeline

T = TypeVar("T")
MACHINE = "{units: [{name: iommu0}], endpoints: [{name: accel0, bdf: '01:00.0'}]}"


@dataclass
class FakeMachine:
    """`calls` are functions of the guest, `commands` those of the monitor: values, exceptions, or functions of the
    arguments. `events` are those that have come; `rules` say how often each has fired."""

    calls: dict[str, Any] = field(default_factory=dict)
    commands: dict[str, Any] = field(default_factory=dict)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    rules: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    released: asyncio.Event = field(default_factory=asyncio.Event)  # whether it was asked to
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    reason: str | None = None  # why it is gone
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, reason: str) -> None:
        """It goes now."""
        self.reason = reason
        self.gone.set()

    async def call(self, function: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        """See `scene.Machine`."""
        self._check()
        self.asked.append((function, dict(arguments)))
        return await _answer(self.calls[function], arguments)

    async def execute(self, command: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        """See `scene.Machine`; fault commands work on `rules` unless `commands` says otherwise."""
        self._check()
        self.asked.append((command, dict(arguments)))
        if command in self.commands:
            return await _answer(self.commands[command], arguments)
        match command.removeprefix("__org.vdev_"):
            case "fault-add":
                self.rules[arguments["id"]] = 0
                return {"id": arguments["id"], "since": 0}
            case "query-fault-plan":
                return {"rules": [{"id": name, "fired": count} for name, count in self.rules.items()]}
            case "fault-clear":
                removed = len(self.rules)
                self.rules.clear()
                return {"removed": removed, "undone": [], "terminal": []}
            case "fault-release":
                self.released.set()
                return {"released": self.held.pop(arguments["id"], 0)}
        raise CommandRefused(f"The command {command} has not been found")

    async def beside(self, work: Coroutine[Any, Any, T]) -> T:
        """See `scene.Machine`."""
        doing, going = asyncio.ensure_future(work), asyncio.ensure_future(self.gone.wait())
        await asyncio.wait([doing, going], return_when=asyncio.FIRST_COMPLETED)
        going.cancel()
        if not doing.done():
            doing.cancel()
            raise MachineGone(self.reason or "", [("console", "its last words")])
        return doing.result()

    async def ended(self, seconds: float) -> str | None:
        """See `scene.Machine`; it does not wait."""
        return self.reason

    async def event(self, name: str, fits: Callable[[Mapping[str, Any]], bool], seconds: float) -> Mapping[str, Any]:
        """See `scene.Machine`; it waits for events that are added meanwhile."""
        async with asyncio.timeout(min(seconds, 0.2)):
            while True:
                for kept in self.events:
                    if kept[0] == name and fits(kept[1]):
                        self.events.remove(kept)
                        return kept[1]
                await asyncio.sleep(0.001)

    def _check(self) -> None:
        if self.reason is not None:
            raise MachineGone(self.reason, [("console", "its last words")])


async def _answer(prepared: Any, arguments: Mapping[str, Any]) -> Any:
    value = prepared(**arguments) if callable(prepared) else prepared
    if asyncio.iscoroutine(value):
        value = await value
    if isinstance(value, Exception):
        raise value
    return value


@dataclass
class Played:
    """What came of steps: why they failed, the lines of the timeline, and results by name."""

    failure: Failure | None
    lines: list[str]
    values: dict[str, Any]
    ndone: int
    gone: MachineGone | None


def file_of(steps: str, head: str = "") -> str:
    """A scenario's file; `steps` are the lines of its list."""
    indented = "\n".join(f"  {line}" for line in steps.strip("\n").split("\n"))
    return f"scenario: test\nmachine: {MACHINE}\nguest: inside\n{head}\nsteps:\n{indented}\n"


def scenario_in(directory: Any, text: str, **overrides: Any) -> Scenario:
    """The scenario in `text`, read from a file of `directory`, whose guest has a module `work`."""
    inside = directory / "inside"
    inside.mkdir(exist_ok=True)
    (inside / "work.py").touch()
    path = directory / "test.yaml"
    path.write_text(text)
    return load_scenario(path, Overrides(**overrides))


def played(scenario: Scenario, machine: FakeMachine, seconds: float = 20.0) -> Played:
    """Play all of it."""
    clock = iter(range(10**6))
    timeline = Timeline(lambda: next(clock) / 1000, lambda text: None)
    scene = Scene(machine, {**scenario.variables, "round": None})
    player = Player(scene, timeline)

    async def play() -> NotGreen | None:
        try:
            await player.play(scenario.steps, seconds)
        except NotGreen as red:
            return red
        return None

    red = asyncio.run(play())
    lines = [f"{line.kind}: {line.text}" for line in timeline.lines]
    return Played(red.failure if red else None, lines, scene.values, player.ndone, red.gone if red else None)


def raised(words: str) -> CallRaised:
    """What a call raises whose function did."""
    return CallRaised(words, f"Traceback: in work.py\n{words}")
