"""What people, and programs, are told about a scenario that was played. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from guest_tests.scenario.timeline import Failure, Line, Outcome, shown

NLOG = 20  # firings shown again below a failure


def text(outcome: Outcome) -> str:
    """The whole report."""
    return "\n".join(_lines(outcome)) + "\n"


def verdict(outcome: Outcome) -> str:
    """One line."""
    word = "GREEN" if outcome.is_green else "NOT GREEN"
    faults = "no fault log" if outcome.firings is None else f"{_many(len(outcome.firings), 'fault')} injected"
    counts = f"{_many(outcome.nsteps, 'step')}, {faults}, seed {outcome.seed}"
    return f"{outcome.name}: {word} in {outcome.seconds:.1f} s ({counts})"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _lines(outcome: Outcome) -> Iterator[str]:
    yield verdict(outcome)
    if outcome.about:
        yield outcome.about
    yield f"machine: {outcome.machine}"
    if outcome.variables:
        yield "variables: " + ", ".join(f"{name}={value}" for name, value in outcome.variables.items())
    yield ""
    yield "  seconds  what"
    yield from (shown(line) for line in _merged(outcome))
    if outcome.left_out:
        yield f"           ({outcome.left_out} more lines are left out)"
    if outcome.failure is not None:
        yield from _of_failure(outcome, outcome.failure)


def _merged(outcome: Outcome) -> list[Line]:
    """Steps and firings by time."""
    fired = [Line(one["at-seconds"], "FAULT", firing_words(one)) for one in outcome.firings or ()]
    return sorted([*outcome.lines, *fired], key=lambda line: line.at)


def firing_words(firing: dict[str, Any]) -> str:
    """A firing as a line: rule, number, what was done, and what it met."""
    rule, n = firing["rule"], firing["n"]
    return f"{rule} #{n}: {firing['text'].removeprefix(f'rule {rule}, {n}: ')}"


def _of_failure(outcome: Outcome, failure: Failure) -> Iterator[str]:
    yield ""
    yield f"{failure.step} ({failure.kind}) failed" + (f": {failure.words}" if failure.words else "")
    yield f"  expected: {failure.expected}"
    yield f"  found:    {failure.found}"
    if failure.detail:
        yield from _section("in the guest", failure.detail)
    if outcome.firings:
        yield from _section("fault log, newest last", "\n".join(_log(outcome.firings)))
    for title, content in outcome.sections:
        yield from _section(title, content)
    if outcome.logs:
        yield ""
        yield f"logs are in {outcome.logs}"


def _log(firings: Sequence[dict[str, Any]]) -> list[str]:
    return [f"{one['at-seconds']:9.3f}  {firing_words(one)}" for one in firings[-NLOG:]]


def _section(title: str, content: str) -> Iterator[str]:
    yield ""
    yield f"--- {title} ---"
    yield from content.rstrip("\n").split("\n")


def as_data(outcome: Outcome) -> dict[str, Any]:
    """The report as plain data for JSON."""
    return {
        "scenario": outcome.name,
        "about": outcome.about,
        "file": outcome.path,
        "verdict": "green" if outcome.is_green else "not green",
        "seconds": round(outcome.seconds, 3),
        "machine": outcome.machine,
        "seed": outcome.seed,
        "variables": outcome.variables,
        "steps": outcome.nsteps,
        "timeline": [asdict(line) for line in _merged(outcome)],
        "faults": outcome.firings,
        "failure": asdict(outcome.failure) if outcome.failure is not None else None,
        "evidence": [{"title": title, "text": content} for title, content in outcome.sections],
        "logs": outcome.logs,
    }
