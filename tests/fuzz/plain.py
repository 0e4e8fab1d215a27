"""Mutation at random, for interpreters without an instrumenting engine: no coverage, libFuzzer's flags and output.

It understands the flags the runner gives (FLAGS); others are ignored.
"""

from __future__ import annotations

import hashlib
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import FrameType

FLAGS = {"runs": -1, "max_total_time": 0, "seed": 1, "max_len": 4096, "timeout": 10}
CRASHED, TIMED_OUT = 77, 70
EDGES = (b"\0", b"\1", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\1\0\0\0", b"\xff\xff\xff\xff", bytes(8), b"\xff" * 8)


class Slow(BaseException):
    """An input took too long. No Exception, so that nothing under test keeps it."""


def fuzz(one_input: Callable[[bytes], None], arguments: list[str]) -> int:
    """Play mutated inputs until time, runs or a finding ends it; the exit status."""
    flags, prefix, directories = _read(arguments)
    inputs = [path.read_bytes() for directory in directories for path in sorted(directory.iterdir())] or [b""]
    random, started, last_told, runs = Random(flags["seed"]), time.monotonic(), 0.0, 0
    signal.signal(signal.SIGALRM, _too_slow)
    while runs != flags["runs"]:
        data = inputs[runs] if runs < len(inputs) else mutated(random, inputs, flags["max_len"])
        problem = _play(one_input, data, flags["timeout"])
        runs += 1
        spent = time.monotonic() - started
        if problem or spent - last_told > 1:
            last_told = spent
            _tell(
                f"#{runs}\tpulse cov: 0 ft: 0 corp: {len(inputs)}/1b lim: 0 exec/s: {runs / spent:.0f} rss: {_rss()}Mb"
            )
        if problem:
            _tell(problem)
            name = ("timeout-" if problem.startswith("Slow") else "crash-") + hashlib.sha1(data).hexdigest()
            Path(prefix + name).write_bytes(data)
            return TIMED_OUT if problem.startswith("Slow") else CRASHED
        if flags["max_total_time"] and spent > flags["max_total_time"]:
            break
    _tell(f"stat::number_of_executed_units: {runs}\nstat::peak_rss_mb: {_rss()}")
    return 0


def mutated(random: Random, inputs: list[bytes], max_nbytes: int) -> bytes:
    """One of `inputs` after one to eight changes."""
    data = bytearray(random.choice(inputs))
    for _ in range(random.randrange(1, 9)):
        at = random.randrange(len(data) + 1)
        kind = random.randrange(5)
        if kind == 0:
            data[at : at + 1] = random.randbytes(1)
        elif kind == 1:
            edge = random.choice(EDGES)
            data[at : at + len(edge) * random.randrange(2)] = edge
        elif kind == 2:
            del data[at : at + random.randrange(1, 9)]
        elif kind == 3:
            other = random.choice(inputs)
            begin = random.randrange(len(other) + 1)
            data[at:at] = other[begin : begin + random.randrange(64)]
        elif data:
            data[at % len(data)] ^= 1 << random.randrange(8)
    return bytes(data[:max_nbytes])


def _read(arguments: list[str]) -> tuple[dict[str, int], str, list[Path]]:
    """Flags, the prefix of findings' names, directories of inputs."""
    flags, prefix, directories = dict(FLAGS), "", []
    for argument in arguments:
        name, _, value = argument.removeprefix("-").partition("=")
        if not argument.startswith("-"):
            directories.append(Path(argument))
        elif name == "artifact_prefix":
            prefix = value
        elif name in flags:
            flags[name] = int(value)
    return flags, prefix, directories


def _play(one_input: Callable[[bytes], None], data: bytes, timeout: int) -> str:
    """What is wrong with one input; "" for nothing."""
    signal.alarm(timeout)
    try:
        one_input(data)
    except (Exception, Slow) as error:
        return f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    finally:
        signal.alarm(0)
    return ""


def _too_slow(signum: int, frame: FrameType | None) -> None:
    raise Slow("the input took too long")


def _rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
