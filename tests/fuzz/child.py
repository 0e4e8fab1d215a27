"""The process in which one target is fuzzed: `python -m tests.fuzz.child NAME [--plant PLANT] [--plain] -- ARGUMENTS`.

ARGUMENTS are libFuzzer's: flags and directories of inputs, of which the first is added to. Instrumentation happens
while modules are imported, so nothing of what is fuzzed may be imported before. The process ends as libFuzzer ends it:
0 when nothing was found, another status with the input in a file otherwise.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import resource
import shlex
import sys

from tests.fuzz import plain
from tests.fuzz.targets import TARGETS, Target

# An allocation beyond it is a MemoryError, and so a finding: libFuzzer's own limit looks once a second only.
ADDRESS_SPACE_NBYTES = 4 << 30


def has_coverage() -> bool:
    """Whether atheris is there: it has wheels for some interpreters only."""
    return importlib.util.find_spec("atheris") is not None


def main() -> None:
    """Fuzz until libFuzzer has enough."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.child")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--plant", help="a bug to apply first (tests/fuzz/plants.py)")
    parser.add_argument("--plain", action="store_true", help="mutate at random, without coverage")
    parser.add_argument("arguments", nargs="*", help="libFuzzer's, after --")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_NBYTES, ADDRESS_SPACE_NBYTES))
    target = TARGETS[given.target]
    arguments = [f"-max_len={target.max_nbytes}", *given.arguments]
    if given.plain or not has_coverage():
        _apply(given.plant)
        sys.exit(plain.fuzz(target.one_input(), arguments))
    _fuzz(target, given.plant, arguments)


def _fuzz(target: Target, plant: str | None, arguments: list[str]) -> None:
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore] # not for every interpreter

    with atheris.instrument_imports(include=[*target.packages, target.module]):
        one_input = target.one_input()
    _apply(plant)
    # To merge, libFuzzer has a shell start its own command again, with other arguments behind it.
    myself = shlex.join([sys.executable, "-m", "tests.fuzz.child", target.name, "--"])
    atheris.Setup([myself, *arguments], one_input)
    atheris.Fuzz()


def _apply(plant: str | None) -> None:
    """Put the planted bug into the modules that are there by now."""
    if plant is not None:
        importlib.import_module("tests.fuzz.plants").PLANTS[plant].apply()


if __name__ == "__main__":
    main()
