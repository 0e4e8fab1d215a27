"""All clients of one monitor, a process each: `python -m benchmarks.bridge.crowd LOAD SECONDS SOCKET...`.

Prints one JSON object: percentiles in milliseconds by row, and counts. A program of its own, so that it forks from a
small process without threads.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from multiprocessing.connection import Connection as Pipe
from typing import Any

from benchmarks.bridge.client import LEAST_PAUSE_S, PACED, WARM_UP_S, Connection, act
from benchmarks.bridge.loads import LOADS, Load

START_S = 60.0


def percentile(values: Sequence[int], share: float) -> int:
    """The lowest value that `share` of all are at or below; `values` are sorted and there are some."""
    return values[max(0, -(-len(values) * round(share * 1000) // 1000) - 1)]


def _client(pipe: Pipe, path: str, role: str, pause_s: float) -> None:
    """A process: connects, says so, waits for the word, plays its role, hands over what it found."""
    connection = Connection(path)
    pipe.send("ready")
    begin, end = pipe.recv()
    pause_s = max(pause_s, LEAST_PAUSE_S) if role in PACED else pause_s
    time.sleep(random.random() * pause_s)  # so that they do not march in step
    problem = ""
    try:
        act(connection, role, begin, end, pause_s)
    except OSError as error:
        problem = f"{role}: {error}"
    pipe.send((role, dict(connection.found.ns), connection.found.events, connection.found.errors, problem))


def crowd(load: Load, seconds: float, paths: Sequence[str]) -> dict[str, Any]:
    """Measure one load; one path a client, which may be the same for all."""
    context = multiprocessing.get_context("fork")
    pipes = []
    for role, path in zip(load.roles(), paths, strict=True):
        ours, theirs = context.Pipe()
        context.Process(target=_client, args=(theirs, path, role, load.pause_s), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    for pipe in pipes:
        _received(pipe, START_S)
    begin = time.monotonic() + WARM_UP_S
    for pipe in pipes:
        pipe.send((begin, begin + seconds))
    return _summed([_received(pipe, START_S + seconds) for pipe in pipes], seconds)


def _received(pipe: Pipe, seconds: float) -> Any:
    if not pipe.poll(seconds):
        raise TimeoutError("a client does not come to its end")
    return pipe.recv()


def _summed(found: Sequence[tuple[str, dict[str, list[int]], int, int, str]], seconds: float) -> dict[str, Any]:
    rows: dict[str, list[int]] = defaultdict(list)
    for _, by_row, _, _, _ in found:
        for row, ns in by_row.items():
            rows[row] += ns
    values: dict[str, float] = {}
    for row, ns in rows.items():
        ns.sort()
        for name, value in (("p50", percentile(ns, 0.5)), ("p99", percentile(ns, 0.99)), ("max", ns[-1])):
            values[f"{row}-{name}"] = round(value / 1e6, 4)
    return {
        "values": values,
        "facts": {
            "commands": {row: len(ns) for row, ns in rows.items()},
            "commands_per_second": round(sum(map(len, rows.values())) / seconds),
            "events": sum(events for _, _, events, _, _ in found),
            "malformed_per_second": round(sum(errors for *_, errors, _ in found) / (seconds + WARM_UP_S)),
        },
        "problem": "; ".join(problem for *_, problem in found if problem),
    }


def main() -> int:
    """Run the command line."""
    name, seconds, *paths = sys.argv[1:]
    load = next(load for load in LOADS if load.name == name)
    print(json.dumps(crowd(load, float(seconds), paths)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
