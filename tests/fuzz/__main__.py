"""`python -m tests.fuzz`: fuzz, replay a finding, take what was learnt into the repository's corpus."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests.fuzz import merge
from tests.fuzz.child import has_coverage
from tests.fuzz.session import Session
from tests.fuzz.targets import TARGETS


def main(arguments: list[str] | None = None) -> int:
    """0: nothing was found; 1: something was; 2: wrong arguments."""
    given = _parser().parse_args(arguments)
    names = given.target or sorted(TARGETS)
    if given.action == "replay":
        return replay(given.target, given.file)
    if given.action == "merge":
        print("\n".join(merge.merge(name) for name in names))
        return 0
    if given.action == "list":
        print("\n".join(f"{name:16} {TARGETS[name].what}" for name in names))
        return 0
    if not has_coverage():
        print(f"there is no atheris for {sys.version.split()[0]} here: inputs are mutated without coverage", flush=True)
    session = Session(names, round(given.minutes * 60), given.jobs, seed=given.seed, recording=given.record)
    clean = session.run()
    print(session.report())
    return 0 if clean else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.set_defaults(action="run", target=None)
    parser.add_argument("--minutes", type=float, default=1.0, help="of wall-clock time, over all targets (default 1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once (default: every core)")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="for mutations (default: another one in every process)")
    parser.add_argument("--record", action="store_true", help="add what was done to docs/fuzz.json")
    actions = parser.add_subparsers(dest="action", metavar="")
    again = actions.add_parser("replay", help="play one input without the fuzzer")
    again.add_argument("target", choices=sorted(TARGETS))
    again.add_argument("file", type=Path, nargs="+")
    joined = actions.add_parser(
        "merge", help="add what covers more to the repository's corpus, and drop what is not needed"
    )
    joined.add_argument("target", nargs="*", choices=[*sorted(TARGETS), []])
    listed = actions.add_parser("list", help="the targets")
    listed.set_defaults(target=None)
    return parser


def replay(name: str, files: list[Path]) -> int:
    """Play inputs as they are: what they raise is seen. 0 when all of them pass."""
    one_input = TARGETS[name].one_input()
    for path in files:
        one_input(path.read_bytes())
        print(f"{name}: {path.name} passes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
