"""What a run of mutations prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.mutation.runner import Verdict

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
    raise NotImplementedError
