"""Load without end: map, copy, verify, unmap, over and over, until the host says that it is enough.

What is lost on the way shows: a copy without completion, a wrong byte, a refused request, an unmap that fails.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from . import accel
from .accel import AcceleratorTimeout
from .checks import chosen
from .guest import Channel, KernelLog
from .lab import MIB, PAGE, SOURCE_IOVA, CheckFailed, Lab, copy, expect
from .main import BYE_TIMEOUT_S, run_check

OPENING = ["driver-bound", "own-group", "opens-through-vfio", "copy"]
NCOPIES = 8  # in the ring at a time, so that the device has work whenever it is stopped
ANSWER_S = 30.0
LISTEN_S = 0.001  # between two rounds


@dataclass
class Counts:
    """What was asked of the device, and what came of it."""

    rounds: int = 0
    maps: int = 0
    unmaps: int = 0
    submitted: int = 0
    completed: int = 0
    refused: int = 0
    nbytes: int = 0
    problem: str = ""


def run_round(lab: Lab, counts: Counts) -> None:
    """Both buffers mapped, eight overlapping copies queued, awaited and compared byte by byte, both unmapped."""
    content = lab.randomise_source()
    expected = bytearray(lab.target.memory)
    engine = lab.engine
    with lab.both_mapped():
        counts.maps += 2
        indices = []
        for step in range(NCOPIES):
            nbytes = MIB - step * PAGE
            expected[:nbytes] = content[step * PAGE :]
            indices.append(engine.submit(copy(nbytes, src=SOURCE_IOVA + step * PAGE)))
            counts.submitted += 1
            counts.nbytes += nbytes
        for index in indices:
            status = _await_status(engine, index)
            counts.completed += 1
            counts.refused += status != accel.OK
        expect(lab.target.memory == expected, f"wrong bytes in round {counts.rounds}")
    counts.unmaps += 2
    counts.rounds += 1


def _await_status(engine: accel.Accelerator, index: int) -> int:
    deadline = time.monotonic() + ANSWER_S
    while (status := engine.status_of(index)) == accel.PENDING:
        if time.monotonic() > deadline:
            raise AcceleratorTimeout(f"copy {index} is lost: {engine.describe()}")
        time.sleep(0.0002)
    return status


def main() -> int:
    """Open the accelerator, work until the host sends anything, report; 0 if nothing went wrong."""
    channel, lab, counts = Channel(), Lab(KernelLog()), Counts()
    channel.send({"hello": 1})
    opened = []
    for check in chosen(OPENING, 1):
        record = run_check(check, lab)
        opened.append(record["ok"])
        channel.send(record)
    try:
        expect(all(opened), "the accelerator was not opened")
        while channel.receive(LISTEN_S) is None:
            run_round(lab, counts)
    except (CheckFailed, AcceleratorTimeout, OSError) as error:
        counts.problem = f"{type(error).__name__}: {error}"
    ok = not counts.problem and counts.refused == 0 and counts.submitted == counts.completed
    channel.send({"load": asdict(counts)})
    channel.send({"done": True, "ok": ok, "checks": len(opened) + 1, "passed": sum(opened) + ok})
    channel.receive(BYE_TIMEOUT_S)
    return 0 if ok else 1
