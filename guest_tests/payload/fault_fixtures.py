"""Fault injection for tests: rules for vdev's fault plan, which are gone when the test is (docs/faults.md).

    def test_a_map_without_memory_is_refused(faults, viommu):
        with faults.injected("request", "status", match={"type": "MAP"}, status="NOMEM") as rule:
            with pytest.raises(RequestRefused):
                viommu.map(...)
            assert rule.fired == 1

The same class serves tests in a guest, which ask the host for it, and tests on the host.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import pytest

from .host import HOST, HostRefused

PAGE = 1000  # firings asked for at a time
FAULTS = pytest.StashKey["Faults"]()  # of a test that uses the fixture


class Controls(Protocol):
    """Whoever executes commands of vdev's control socket: the fixture `host`, or a guest as the host has it."""

    def control(self, command: str, **arguments: Any) -> Any:
        """What the command returns; raises what its socket says."""


class Rule:
    """One rule that was added. Once it has been removed, `matched` and `fired` are as they were then."""

    def __init__(self, controls: Controls, id: str, since: int) -> None:
        """`since`: its firings have this sequence number or a later one."""
        self.id = id
        self._controls = controls
        self._since = since
        self._last: dict[str, Any] | None = None  # of a rule that was removed

    @property
    def matched(self) -> int:
        """How many occurrences fitted it."""
        return int(self._counts()["matched"])

    @property
    def fired(self) -> int:
        """How often it fired."""
        return int(self._counts()["fired"])

    @property
    def held(self) -> int:
        """How many things are held because of it; 0 once it is removed."""
        return int(self._counts().get("held", 0))

    def log(self) -> list[dict[str, Any]]:
        """Its firings, oldest first: `n`, `at`, `do`, `text`, `fields`, `time` and so on."""
        return log_of(self._controls, self._since, self.id)

    def release(self) -> int:
        """Let go of what it holds; how many things."""
        return int(self._controls.control("fault-release", id=self.id)["released"])

    def remove(self, *, release: bool = True) -> None:
        """Take it away, and let go of what it holds. Again is no change."""
        if self._last is None:
            self._last = self._controls.control("fault-remove", id=self.id, release=release)

    def _counts(self) -> Mapping[str, Any]:
        if self._last is not None:
            return self._last
        for rule in self._controls.control("query-fault-plan")["rules"]:
            if rule["id"] == self.id:
                return dict(rule)
        raise LookupError(f"there is no rule {self.id} any more: it was removed, or all were cleared")


class Faults:
    """The fault plan of one machine."""

    def __init__(self, controls: Controls) -> None:
        self._controls = controls
        self._since = int(controls.control("query-fault-plan")["next-seq"])

    def add(
        self,
        at: str,
        do: str,
        *,
        match: Mapping[str, Any] | None = None,
        when: Mapping[str, Any] | None = None,
        id: str | None = None,
        times: int | None = None,
        with_: Mapping[str, Any] | None = None,
        **parameters: Any,
    ) -> Rule:
        """A rule that stands at the point `at` from now on, behind those there are, and does `do`.

        The action's parameters are keywords, or in `with_` where they are no Python names. What vdev refuses is raised
        as its socket does: HostRefused in a guest, ControlError on the host.
        """
        given = {"at": at, "do": do, "match": match, "when": when, "id": id, "times": times}
        arguments: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        values = {**(with_ or {}), **parameters}
        if values:
            arguments["with"] = values
        added = self._controls.control("fault-add", **arguments)
        return Rule(self._controls, added["id"], added["since"])

    @contextmanager
    def injected(self, at: str, do: str, **more: Any) -> Iterator[Rule]:
        """`add` for the length of a block; at its end the rule is removed and what it holds let go."""
        rule = self.add(at, do, **more)
        try:
            yield rule
        finally:
            rule.remove()

    def load(self, plan: Mapping[str, Any], *, replace: bool = False) -> list[Rule]:
        """All rules of a plan (`seed`, `rules`), or none."""
        loaded = self._controls.control("fault-load", plan=dict(plan), replace=replace)
        return [Rule(self._controls, id, loaded["since"]) for id in loaded["ids"]]

    def seed(self, number: int) -> None:
        """Another seed for the probabilities of all rules."""
        self._controls.control("fault-seed", seed=number)

    def release(self) -> int:
        """Let go of everything that is held; how many things."""
        return int(self._controls.control("fault-release")["released"])

    def clear(self) -> dict[str, Any]:
        """Take all rules away and undo what they left: `removed`, and in words `undone` and `terminal`."""
        return dict(self._controls.control("fault-clear"))

    def log(self) -> list[dict[str, Any]]:
        """All firings since this object was made, oldest first."""
        return log_of(self._controls, self._since)


def log_of(controls: Controls, since: int, rule: str | None = None) -> list[dict[str, Any]]:
    """All of the log from number `since` on, or what is of one rule."""
    which = {} if rule is None else {"rule": rule}
    found: list[dict[str, Any]] = []
    while True:
        page = controls.control("query-fault-log", since=since, limit=PAGE, **which)
        found += page
        if len(page) < PAGE:
            return found
        since = page[-1]["seq"] + 1


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> Faults:
    """The fault plan of this machine; it is cleared after the test, before any fixture of the test is torn down, and
    its seed is 0 again."""
    found = Faults(request.config.stash[HOST])
    request.node.stash[FAULTS] = found
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Fixtures reset devices: those must not be missing then, nor their answers held."""
    found, refused = item.stash.get(FAULTS, None), None
    try:
        if found is not None:
            found.clear()
            found.seed(0)
    except HostRefused as error:
        refused = error
    yield
    if refused is not None:
        raise refused
