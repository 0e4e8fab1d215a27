"""What a run of mutations prints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.mutation.runner import Verdict
from tests.mutation.table import ROOT, clauses

PAGE = ROOT / "docs" / "mutations.md"
_HEAD = Path(__file__).with_name("head.txt").read_text(encoding="utf-8")
_WORDS = {"killed": "killed", "time-out": "TIME-OUT", "survived": "SURVIVED", "bad": "BAD"}


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - a command's output


def show_unchanged(verdict: Verdict) -> None:
    """The run over the sources as they are."""
    if verdict.kind == "survived":
        _say(f"{verdict.ntests} tests pass without a mutation ({verdict.seconds:.0f} s)")
    else:
        _say(f"without a mutation: {verdict.killer} {verdict.text}")


def show(verdict: Verdict, number: int, total: int) -> None:
    """One line a mutation. The column after the clauses: `own` where a test named for one of them noticed."""
    row = verdict.mutation
    whose = "own" if set(verdict.killers) & set(row.clauses) else "other" if verdict.killers else "-"
    clauses = ",".join(row.clauses) or row.rule
    killers = ", ".join(_short(test) for test in dict.fromkeys(verdict.killers.values())) or verdict.text[:150]
    _say(
        f"{number:3}/{total} {_WORDS[verdict.kind]:8} {row.id:44} {clauses:12} {whose:5} {killers}"
        f"  {verdict.seconds:.1f} s"
    )


def summary(verdicts: Sequence[Verdict], seconds: float, *, is_whole: bool) -> bool:
    """Survivors and bad rows in full, clauses without a proof of their own; whether all is well."""
    left = [verdict for verdict in verdicts if verdict.kind in ("survived", "bad")]
    for verdict in left:
        _say(f"\n{_WORDS[verdict.kind]} {verdict.mutation.id}: {verdict.mutation.what}")
        _say(verdict.text or f"{verdict.ntests} tests passed over")
        _say(verdict.mutation.diff())
    missing = unproven(verdicts) if is_whole else []
    if missing:
        _say(f"\nNo mutation of these is killed by a test named for them: {', '.join(missing)}")
    counts = {kind: sum(verdict.kind == kind for verdict in verdicts) for kind in _WORDS}
    _say(
        f"\n{len(verdicts)} mutations: {counts['killed']} killed, {counts['time-out']} by time-out, "
        f"{counts['survived']} survived, {counts['bad']} bad; {seconds:.0f} s"
    )
    return not left and not missing


def unproven(verdicts: Iterable[Verdict]) -> list[str]:
    """Clauses of which no mutation was killed by a test named for the clause."""
    asked, proven = set[str](), set[str]()
    for verdict in verdicts:
        asked |= set(verdict.mutation.clauses)
        proven |= set(verdict.killers)
    return sorted(asked - proven, key=lambda clause: (clause[0], int(clause[1:])))


def _short(test: str) -> str:
    """`test_engine.py::test_x` of a whole node id."""
    return test.rpartition("/")[2]


def record(verdicts: Sequence[Verdict]) -> None:
    """Write docs/mutations.md."""
    PAGE.write_text(page(verdicts), encoding="utf-8")


def page(verdicts: Sequence[Verdict]) -> str:
    """Of each clause its mutations and the tests named for it that noticed; of each file the other mutations."""
    ordered = sorted(verdicts, key=lambda verdict: verdict.mutation.id)
    lines = [
        _HEAD.format(count=len(ordered)),
        "| clause | broken by | noticed by tests named for it |",
        "|---|---|---|",
    ]
    for clause in clauses():
        of_it = [verdict for verdict in ordered if clause in verdict.mutation.clauses]
        own = sorted({_name(verdict.killers[clause]) for verdict in of_it if clause in verdict.killers})
        lines.append(f"| {clause} | {_ids(of_it)} | {', '.join(f'`{name}`' for name in own)} |")
    lines += ["", "## Rules without a clause", "", "| file | broken by |", "|---|---|"]
    others = [verdict for verdict in ordered if not verdict.mutation.clauses]
    for file in sorted({verdict.mutation.file for verdict in others}):
        lines.append(f"| `{file}` | {_ids([one for one in others if one.mutation.file == file])} |")
    return "\n".join(lines) + "\n"


def _ids(verdicts: Iterable[Verdict]) -> str:
    return ", ".join(f"`{verdict.mutation.id}`" for verdict in verdicts)


def _name(test: str) -> str:
    return test.rpartition("::")[2].partition("[")[0]


def recorded_ids(text: str) -> set[str]:
    """The mutations that a page is of."""
    cells = [line.split("|")[2] for line in text.splitlines() if line.startswith("| ")]
    return {word for cell in cells for word in re.findall(r"`([a-z0-9-]+)`", cell)}
