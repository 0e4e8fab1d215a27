"""The process in which one target is fuzzed: `python -m tests.fuzz.child [--plant PLANT] [--plain] NAME -- ARGUMENTS`.

ARGUMENTS are libFuzzer's: flags and directories of inputs, of which the first is added to. Instrumentation happens
while modules are imported, so nothing of what is fuzzed may be imported before. The process ends as libFuzzer ends it:
0 when nothing was found, another status with the input in a file otherwise.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from tests.fuzz import plain
from tests.fuzz.places import file_name
from tests.fuzz.plants import PLANTS
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
    parser.add_argument("--plant", choices=sorted(PLANTS), help="a bug to plant first")
    parser.add_argument("--plain", action="store_true", help="mutate at random, without coverage")
    parser.add_argument("arguments", nargs="*", help="libFuzzer's, after --")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_NBYTES, ADDRESS_SPACE_NBYTES))
    if given.plant is not None:
        PLANTS[given.plant].sow()
    target = TARGETS[given.target]
    arguments = [f"-max_len={target.max_nbytes}", *given.arguments]
    if given.plain or not has_coverage():
        sys.exit(plain.fuzz(target.one_input(), arguments))
    _fuzz(target, arguments)


def _fuzz(target: Target, arguments: list[str]) -> None:
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore] # not for every interpreter

    wanted = (*target.packages, target.module)
    sys.meta_path.insert(0, _Bystanders(wanted))
    with atheris.instrument_imports(include=wanted):
        one_input = target.one_input()
    # To merge, libFuzzer has a shell start its own command again, with other arguments behind it.
    myself = shlex.join([sys.executable, "-m", "tests.fuzz.child", target.name, "--"])
    atheris.Setup([myself, *arguments], saving(one_input, arguments))
    atheris.Fuzz()


def saving(one_input: Callable[[bytes], None], arguments: list[str]) -> Callable[[bytes], None]:
    """`one_input`, and an input that raises is in its file before libFuzzer writes it there: its alarm may end the
    process first, since Python puts signals back when it exits."""
    flag = "-artifact_prefix="
    prefix = next((argument.removeprefix(flag) for argument in arguments if argument.startswith(flag)), "")

    def play(data: bytes) -> None:
        try:
            one_input(data)
        except BaseException:
            Path(f"{prefix}crash-{file_name(data)}").write_bytes(data)
            raise

    return play


class _Bystanders(MetaPathFinder):
    """Loads as ever what is not among `wanted`: atheris itself tells top-level packages apart and no more."""

    def __init__(self, wanted: tuple[str, ...]) -> None:
        self._wanted = wanted
        self._roots = {name.partition(".")[0] for name in wanted}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec that will not be instrumented, or None for others to find one."""
        if fullname.partition(".")[0] not in self._roots:
            return None
        if any(fullname == name or fullname.startswith(name + ".") for name in self._wanted):
            return None
        return PathFinder.find_spec(fullname, path, target)


if __name__ == "__main__":
    main()
