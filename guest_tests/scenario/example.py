"""The examples in docs/scenarios.md, of real runs: `python -m guest_tests.scenario.example` writes them anew."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/scenarios.md"
SCENARIO = ROOT / "configs/scenarios/empty-answer.yaml"
DRIVERS = {"green": "right", "red": "ignores-used-length"}
TRACE = "--- vdev trace, last records ---"
NTRACE = 4  # records shown
RUN_S = 120.0
STOP = "```\n<!-- end -->"


def begin(name: str) -> str:
    """What stands before an example in the page."""
    return f"<!-- example: {name} -->\n```\n"


def run(driver: str) -> str:
    """The report of a run with this driver."""
    command = [sys.executable, "-m", "qmp_bridge", "run", str(SCENARIO), "--driver", driver, "--quiet"]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False).stdout


def shortened(name: str, report: str) -> list[str]:
    """As much of a report as the page has: of one that is not green what follows the time line, and a short trace."""
    lines = report.rstrip("\n").split("\n")
    if name == "green":
        return lines
    failed = next(number for number, text in enumerate(lines) if " failed: " in text)
    trace = lines.index(TRACE)
    records = [text for text in lines[trace + 1 :] if re.match(r" +\d+\.\d+ ", text)]
    return [*lines[failed : trace + 1], "    ...", *records[-NTRACE:]]


def normalised(lines: Iterable[str]) -> list[str]:
    """Without what differs between two runs that did the same: times, and where in memory things are."""
    out = []
    for text in lines:
        text = re.sub(r"^ *\d+\.\d+", "TIME", text)
        text = re.sub(r"in \d+\.\d s|seconds: \d+\.\d+| +\d+\.\d us", "TIME", text)
        text = re.sub(r"-> 0x[0-9a-f]+|phys_start=\d+", "GPA", text)
        out.append(re.sub(r"QEMU [\d.]+, \w+", "QEMU", text))
    return out


def documented(name: str) -> list[str]:
    """An example as the page has it."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(begin(name))
    return rest.partition(STOP)[0].splitlines()


def write(name: str, lines: Iterable[str]) -> None:
    """Put an example in the page. Raises ValueError where it has no place for it."""
    before, start, rest = PAGE.read_text(encoding="utf-8").partition(begin(name))
    _, stop, after = rest.partition(STOP)
    if not (start and stop):
        raise ValueError(f"{PAGE} has no place for the example {name}")
    PAGE.write_text(before + start + "".join(f"{text}\n" for text in lines) + stop + after, encoding="utf-8")


if __name__ == "__main__":
    for example, planted in DRIVERS.items():
        write(example, shortened(example, run(planted)))
