"""The examples in docs/trace.md: scenes of the demo as the trace shows them. A booted test compares; this writes them.

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
from vdev.config.schema import ATTACHMENTS, Attach
from vdev.trace.text import line

ROOT = Path(__file__).parent.parent
Record = dict[str, Any]
PAGE = ROOT / "docs" / "trace.md"
CONFIG = ROOT / "configs" / "first-light.yaml"
TITLE = next(check.title for check in CHECKS if check.name == "refused-after-unmap")
DOTS = f"{'...':>12}"
STOP = "```\n<!-- demo: end -->\n"


def begin(attach: Attach) -> str:
    """What stands before the example of `attach`."""
    return f"<!-- demo over {attach}: begin -->\n```\n"


def driver_comes(records: Sequence[Record]) -> list[str]:
    """The unit's registers and rings, from the driver's first word, its reset if that shows, to the start."""
    kinds = ("register", "reset", "rings")
    own = [record for record in records if record.get("function") == "iommu0" and record["kind"] in kinds]
    stop = next(at for at, record in enumerate(own) if _is_start(record["fields"])) + 1
    start = max(at for at, record in enumerate(own[:stop]) if _is_first_word(record["fields"], own[stop - 1]))
    return [line(record) for record in own[start:stop]]


def _is_start(fields: Record) -> bool:
    return fields.get("rings") == "started" or "DRIVER_OK" in fields.get("words", "")


def _is_first_word(fields: Record, start: Record) -> bool:
    if start["kind"] == "rings":  # over vhost-user nothing shows before the start
        return fields.get("register") == "driver_features"
    return fields.get("reset") == "virtio"


def _without_rng(records: Sequence[Record]) -> list[Record]:
    """Without the other device, whose driver draws when it likes."""
    return [record for record in records if "02:00.0" not in (record.get("endpoint"), *record.get("endpoints", ()))]


def check(records: Sequence[Record]) -> list[str]:
    """The check, from the note that it starts to the note of its verdict. StopIteration when it is not there."""
    records = _without_rng(records)
    notes = [at for at, record in enumerate(records) if record["kind"] == "note"]
    start = next(at for at in notes if TITLE in records[at]["fields"]["text"])
    stop = next(at for at in notes if at > start)
    return [line(record) for record in records[start : stop + 1]]


def driver_goes(records: Sequence[Record]) -> list[str]:
    """From the last mapping's end to the endpoint's way back to the domain it came from."""
    requests = [at for at, record in enumerate(records) if record["kind"] == "request"]
    start = max(at for at in requests if records[at]["type"] == "UNMAP")
    return [line(record) for record in records[start : requests[-1] + 1] if record["kind"] != "note"]


def example(records: Sequence[Record], attach: Attach) -> list[str]:
    """The scenes, with a line of dots between them. `records` is the trace of a whole run.

    Over vhost-user only the first: the others are those of vfio-user.
    """
    if attach == "vhost-user":
        return driver_comes(records)
    own = _without_rng(records)
    return [*driver_comes(own), DOTS, *check(own), DOTS, *driver_goes(own)]


def normalised(lines: Iterable[str]) -> list[str]:
    """`lines` without what differs between two runs that did the same.

    Times, guest-physical addresses, how a driver's buffer is cut into mappings, whether the ring was being polled, and
    what an interrupt is called: a vector, or over vhost-user its queue.
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
        text = re.sub(r"(iommu0 +IRQ) .*", r"\1", text)
        out.append(re.sub(r" +", " ", text).strip())
    return [text for text, _ in groupby(out)]


def documented(attach: Attach) -> list[str]:
    """The example of `attach` as the page has it."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(begin(attach))
    return rest.partition(STOP)[0].splitlines()


def write(lines: Sequence[str], attach: Attach) -> None:
    """Put `lines` in the page."""
    before, start, rest = PAGE.read_text(encoding="utf-8").partition(begin(attach))
    _, stop, after = rest.partition(STOP)
    if not (start and stop):
        raise ValueError(f"{PAGE} has no place for the example")
    PAGE.write_text(before + start + "".join(f"{text}\n" for text in lines) + STOP + after, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Boot the demo's guest once for each attachment and show the examples, or write them."""
    parser = argparse.ArgumentParser(prog="python -m guest_tests.trace_example", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put them in docs/trace.md")
    arguments = parser.parse_args(argv)
    for attach in ATTACHMENTS:
        options = Options(config_path=CONFIG, attach=attach)
        run = asyncio.run(boot(load_config(CONFIG), options, lambda message, faults: None))
        lines = example(run.trace, attach)
        if arguments.write:
            write(lines, attach)
        else:
            sys.stdout.write("".join(f"{text}\n" for text in (f"# {attach}", *lines)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
