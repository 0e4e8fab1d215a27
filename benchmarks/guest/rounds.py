"""Rounds: every contender once a round, with one vCPU and with several, one VM at a time, the first one another each
round.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.describe import Others, load_average
from benchmarks.guest.counts import Scale
from benchmarks.guest.machines import APPEND, CONTENDERS, MEMORY, Contender, machine
from benchmarks.guest.vm import Measured, bench_options, measure
from benchmarks.results import Sample, Setup
from benchmarks.rows import row_values
from qmp_bridge.errors import VmDied
from qmp_bridge.plan import Options, Parts, find_parts
from vdev.parts.progress import Say

NOTICED = 0.1  # CPUs busy with others, beyond which numbers suffer
Keep = Callable[[Setup, Sample], None]


@dataclass(frozen=True)
class Turn:
    """One VM to come."""

    round: int
    contender: Contender
    cpus: int


def turns(scale: Scale, contenders: Sequence[Contender] = CONTENDERS) -> Iterator[Turn]:
    """All VMs in their order. Each round begins with another contender: nobody always comes after the same one."""
    wanted = [one for one in contenders if not scale.contenders or one.name in scale.contenders]
    for number in range(scale.rounds):
        first = number % len(wanted)
        for cpus in scale.cpus:
            for contender in wanted[first:] + wanted[:first]:
                yield Turn(number + 1, contender, cpus)


def run(scale: Scale, say: Say, keep: Keep, kernel: str | None = None) -> bool:
    """Boot and measure everything; each sample is handed to `keep` at once. True if no VM failed.

    Raises PartsError and ConfigError before anything has started.
    """
    options = bench_options()
    parts = find_parts(machine(CONTENDERS[0], 1, kernel), replace(options, say=say))
    planned = list(turns(scale))
    setup = Setup(
        qemu=parts.version, accel=parts.accel, accel_reason=parts.accel_reason, guest_kernel="", append=APPEND,
        memory=MEMORY, rounds=scale.rounds, counts=scale.counts,
    )  # fmt: skip
    failed, started = 0, time.monotonic()
    for done, turn in enumerate(planned):
        elapsed_s = time.monotonic() - started
        if done and turn.round > planned[done - 1].round and not fits(scale, turn.round, elapsed_s):
            say(f"round {turn.round} is left out: it would not end within {scale.limit_s:.0f} s")
            break
        left = f", {elapsed_s / done * (len(planned) - done):.0f} s left" if done else ""
        what = f"{turn.contender.title}, {_vcpus(turn.cpus)}"
        say(f"round {turn.round}/{scale.rounds}: {what} ({done + 1} of {len(planned)}{left})")
        sample = asyncio.run(_sample(turn, parts, options, scale, kernel))
        if sample.problem:
            failed += 1
            say(f"  FAILED: {sample.problem}")
        else:
            setup = _with_kernel(setup, str(sample.facts["kernel"]))
            say(f"  {_glance(sample)}")
        keep(setup, sample)
    return failed == 0


def fits(scale: Scale, number: int, elapsed_s: float) -> bool:
    """Whether round `number` (from 2 on) is likely to end within the scale's limit."""
    return scale.limit_s is None or elapsed_s * number / (number - 1) <= scale.limit_s


def _with_kernel(setup: Setup, release: str) -> Setup:
    fields = {name: getattr(setup, name) for name in setup.__struct_fields__}
    return Setup(**{**fields, "guest_kernel": release})


async def _sample(turn: Turn, parts: Parts, options: Options, scale: Scale, kernel: str | None) -> Sample:
    load, others = load_average(), Others()
    values: dict[str, float] = {}
    facts: dict[str, Any] = {}
    problem = ""
    config = machine(turn.contender, turn.cpus, kernel)
    try:
        measured = await measure(turn.contender, config, parts, options, scale.counts)
    except VmDied as error:
        problem = f"{error} (logs: {error.logs})" if error.logs else str(error)
    else:
        values = {name: round(value, 4) for name, value in row_values(measured.boot_s, measured.phases).items()}
        facts = {**measured.facts, **{fact: _of_phases(measured, fact) for fact in ("runs", "maps", "min", "max")}}
    return Sample(
        round=turn.round, contender=turn.contender.name, cpus=turn.cpus, load=load, others=others.cpus(),
        values=values, facts=facts, problem=problem,
    )  # fmt: skip


def _of_phases(measured: Measured, fact: str) -> dict[str, float]:
    """One fact of each phase that has it; times are microseconds."""
    return {name: round(phase[fact], 2) for name, phase in measured.phases.items() if fact in phase}


def _glance(sample: Sample) -> str:
    found = sample.values
    return (
        f"1 page {found['page']:.0f} us, 64 scattered {found['scattered']:.0f} us, 256 MiB {found['large']:.1f} ms, "
        f"{found['dma-rate']:.0f} DMA API mappings/s, bound after {found['boot']:.1f} s"
        + (f" (others kept {sample.others:.1f} CPUs busy)" if sample.others >= NOTICED else "")
    )


def _vcpus(cpus: int) -> str:
    return "1 vCPU" if cpus == 1 else f"{cpus} busy vCPUs"
