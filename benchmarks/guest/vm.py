"""One VM of one contender, from QEMU's start to its end, and what its guest measured in between.

A launcher of its own, because `qmp_bridge.up` is for machines with a backend; it is made of the same pieces. Time
counts from the moment before QEMU is started. With vdev the backend listens by then: its start is reported beside.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.guest.counts import Counts
from benchmarks.guest.machines import RNG, Contender
from guest_tests.boot import Control, ControlError
from guest_tests.payload import __path__ as payload_path
from qmp_bridge.backend_process import STOP_SECONDS, check_sockets, start_backend
from qmp_bridge.channel import Channel
from qmp_bridge.child import Child
from qmp_bridge.console import Console, connect
from qmp_bridge.errors import VmDied, the_cause
from qmp_bridge.plan import Options, Parts, Plan, make_plan
from qmp_bridge.qemu_process import death_of_qemu, start_qemu, stop_qemu
from qmp_bridge.run_directory import RunDirectory
from vdev.config import Config
from vdev.qemu.machine import expected_functions

CONNECT_S = 30.0
SILENCE_S = 120.0  # between two messages; the longest phase takes a few seconds under TCG
TAIL_LINES = 15
MAIN = b"""\
import sys

sys.path.insert(0, "/payload")
from guest_payload.bench import main

sys.exit(main())
"""


@dataclass
class Measured:
    """`phases` by name as the guest sent them; `facts` of the boot."""

    boot_s: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)


def bench_options(logs: Path | None = Path("logs")) -> Options:
    """What the parts are looked for with and every VM is started with: our payload instead of the checks."""
    files: dict[str, Path | bytes] = {"main.py": MAIN, "guest_payload": Path(payload_path[0])}
    return Options(payload="bench", payload_files=files, logs=logs)


async def measure(contender: Contender, config: Config, parts: Parts, options: Options, counts: Counts) -> Measured:
    """Boot, have the guest measure, end the VM. Raises VmDied, whose `logs` says where the logs were kept."""
    run, console = RunDirectory(), Console()
    try:
        plan = make_plan(config, parts, options, run.path)
        if config.units:
            plan.write(config, run.logs)
        else:  # there is no backend to start
            (run.logs / "commands.txt").write_text(f"{shlex.join(plan.qemu)}\n", encoding="utf-8")
        try:
            return await _measure(contender, config, plan, run.logs, console, counts)
        except VmDied as error:
            error.tail = console.tail(TAIL_LINES)
            error.logs = run.keep_logs(options.logs, config.vm.name) if options.logs else None
            raise
    finally:
        run.remove()


async def _measure(
    contender: Contender, config: Config, plan: Plan, logs: Path, console: Console, counts: Counts
) -> Measured:
    asked = {
        "vfio": contender.vfio_ids, "rng": RNG, "pasids": contender.ours, "spin": config.vm.cpus > 1, "counts": counts,
    }  # fmt: skip
    measured, channel = Measured(), Channel()
    async with _backend(config, plan, logs, measured) as control:
        started = time.monotonic()
        qemu = start_qemu(plan.qemu, plan.env, logs / "qemu.stderr")
        try:
            async with asyncio.TaskGroup() as tasks:
                watchers = [
                    tasks.create_task(_follow(console.run, plan.paths.console)),
                    tasks.create_task(_follow(channel.run, plan.paths.channel)),
                    tasks.create_task(_watch(qemu, logs)),
                ]
                await _converse(channel, asked, measured, started)
                if control is not None:
                    measured.facts |= await _doorbells(control)
                for watcher in watchers:
                    watcher.cancel()
        except BaseExceptionGroup as group:
            raise the_cause(group) from None
        finally:
            await stop_qemu(qemu, None)
    return measured


@asynccontextmanager
async def _backend(config: Config, plan: Plan, logs: Path, measured: Measured) -> AsyncIterator[str | None]:
    """vdev, listening, for the length of the block, and its control socket; None where the IOMMU is QEMU's."""
    if not config.units:
        yield None
        return
    started = time.monotonic()
    child, ready = await start_backend(plan.backend, logs / "backend.log", config.vm.name)
    measured.facts["backend_s"] = round(time.monotonic() - started, 3)
    try:
        check_sockets(ready, expected_functions(config), plan.paths.socket_dir)
        yield ready.control
    finally:
        await child.stop(STOP_SECONDS)


async def _doorbells(path: str) -> dict[str, int]:
    """How many requests vdev handled, and for how many the guest had to ring: few of them while the ring is polled."""
    try:
        async with Control.connected(path) as control:
            unit, _ = await control.execute("query-iommu")
    except ControlError as error:
        raise VmDied(f"vdev did not say what it had counted: {error}") from None
    return {"requests": sum(unit["counters"]["requests"].values()), "doorbells": unit["kicks"]}


async def _follow(run: Callable[[StreamReader, StreamWriter], Coroutine[Any, Any, None]], path: str) -> None:
    await run(*await connect(path, CONNECT_S))


async def _watch(qemu: Child, logs: Path) -> None:
    """Raise VmDied when QEMU ends; nobody asks it to before this is cancelled."""
    await asyncio.wait([qemu.exited])
    raise VmDied(death_of_qemu(qemu, logs / "qemu.stderr", ""))


async def _converse(channel: Channel, asked: dict[str, Any], measured: Measured, started: float) -> None:
    """The plan to the guest, its answers into `measured`. Raises VmDied for silence and for what the guest reports."""
    messages = channel.messages()
    while True:
        message = await _next(messages, measured)
        if "hello" in message:
            measured.facts["kernel"] = message["kernel"]
            await channel.send({"plan": asked})
        elif "bound" in message:
            measured.boot_s = time.monotonic() - started
            measured.facts |= {name: message[name] for name in ("iommu", "clocksource")}
            if (line := message["driver_line_s"]) is not None:
                measured.facts["driver_line_s"] = round(measured.boot_s - (message["uptime_s"] - line), 3)
        elif "phase" in message:
            measured.phases[message.pop("phase")] = message
        elif "done" in message:
            if not message["ok"]:
                raise VmDied(f"the guest could not measure: {message.get('problem') or message.get('reason')}")
            return


async def _next(messages: AsyncIterator[dict[str, Any]], measured: Measured) -> dict[str, Any]:
    last = next(reversed(measured.phases), "boot")
    try:
        async with asyncio.timeout(SILENCE_S):
            return await anext(messages)
    except TimeoutError:
        raise VmDied(f"the guest said nothing for {SILENCE_S:.0f} s; its last word was about: {last}") from None
    except StopAsyncIteration:
        raise VmDied(f"the guest went away; its last word was about: {last}") from None
