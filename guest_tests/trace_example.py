"""The example in docs/trace.md: scenes of the demo as the trace shows them. A booted test compares; this writes it.

python -m guest_tests.trace_example --write
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from guest_tests.boot import boot
from guest_tests.payload.checks import CHECKS
from qmp_bridge.plan import Options
from vdev.config import load_config
from vdev.trace.text import line

ROOT = Path(__file__).parent.parent
Record = dict[str, Any]
PAGE = ROOT / "docs" / "trace.md"
CONFIG = ROOT / "configs" / "first-light.yaml"
TITLE = next(check.title for check in CHECKS if check.name == "refused-after-unmap")
DOTS = f"{'...':>12}"
START, STOP = "<!-- demo: begin -->\n```\n", "```\n<!-- demo: end -->\n"


def driver_comes(records: Sequence[Record]) -> list[str]:
    """The unit's registers, from the driver's reset to DRIVER_OK."""
    kinds = ("register", "reset")
    own = [record for record in records if record.get("function") == "iommu0" and record["kind"] in kinds]
    stop = next(at for at, record in enumerate(own) if "DRIVER_OK" in record["fields"].get("words", "")) + 1
    start = max(at for at, record in enumerate(own[:stop]) if record["fields"].get("reset") == "virtio")
    return [line(record) for record in own[start:stop]]


def check(records: Sequence[Record]) -> list[str]:
    """The check, from the note that it starts to the note of its verdict. StopIteration when it is not there."""
    notes = [at for at, record in enumerate(records) if record["kind"] == "note"]
    start = next(at for at in notes if TITLE in records[at]["fields"]["text"])
    stop = next(at for at in notes if at > start)
    return [line(record) for record in records[start : stop + 1]]


def driver_goes(records: Sequence[Record]) -> list[str]:
    """From the last mapping's end to the endpoint's way back to the domain it came from."""
    requests = [at for at, record in enumerate(records) if record["kind"] == "request"]
    start = max(at for at in requests if records[at]["type"] == "UNMAP")
    return [line(record) for record in records[start : requests[-1] + 1] if record["kind"] != "note"]


def example(records: Sequence[Record]) -> list[str]:
    """The three scenes, with a line of dots between them. `records` is the trace of a whole run."""
    return [*driver_comes(records), DOTS, *check(records), DOTS, *driver_goes(records)]


def normalised(lines: Iterable[str]) -> list[str]:
    """`lines` without what differs between two runs that did the same.

    Times, guest-physical addresses, how a driver's buffer is cut into mappings, whether the ring was being polled.
    """
    out = []
    for text in lines:
        if " notify " in text:
            continue
        text = re.sub(r"^ *\d+\.\d+ ", "", text)
        text = re.sub(r" +\d+\.\d us", " TIME", text)
        text = re.sub(r"(desc|driver|device) 0x[0-9a-f]+", r"\1 GPA", text)
        if re.search(r" (?:MAP|UNMAP) ", text):
            text = re.sub(r"0x[0-9a-f]+\.\.0x[0-9a-f]+ +\w+", "RANGE", text)
            text = re.sub(r"-> 0x[0-9a-f]+", "-> GPA", text)
            text = re.sub(r"domain \d+", "domain N", text)
        text = re.sub(r" in \d+ pieces", "", text)
        out.append(re.sub(r" +", " ", text).strip())
    return [text for text, _ in groupby(out)]


def documented() -> list[str]:
    """The example as the page has it."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    return rest.partition(STOP)[0].splitlines()


def write(lines: Sequence[str]) -> None:
    """Put `lines` in the page."""
    before, start, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, stop, after = rest.partition(STOP)
    if not (start and stop):
        raise ValueError(f"{PAGE} has no place for the example")
    PAGE.write_text(before + START + "".join(f"{text}\n" for text in lines) + STOP + after, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Boot the demo's guest and show the example, or write it."""
    parser = argparse.ArgumentParser(prog="python -m guest_tests.trace_example", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it in docs/trace.md")
    arguments = parser.parse_args(argv)
    run = asyncio.run(boot(load_config(CONFIG), Options(config_path=CONFIG), lambda message, faults: None))
    lines = example(run.trace)
    if arguments.write:
        write(lines)
    else:
        sys.stdout.write("".join(f"{text}\n" for text in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
