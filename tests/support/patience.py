"""Waits for a booted guest that end: whoever waits in vain fails with all there is to see of the guest.

pytest's own time-out knows nothing of guests, and is for what nobody thought of.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from qemu.qmp import QMPError

from guest_tests.boot import SILENCE_S, Control
from guest_tests.runner import evidence
from guest_tests.runner.evidence import Beginning, Sections
from qmp_bridge.plan import Options
from qmp_bridge.up import RunningVm, bring_up
from vdev.config import Config
from vdev.errors import VdevError

NLOOKS, BETWEEN_LOOKS_S = 3, 0.2  # at the processor: one that is in the same place each time hangs there
LOOK_S = 10.0  # at a VM whose parts may not answer either
NREGISTER_CHARACTERS = 700  # general registers, program counter, and whether it halts
NEVENTS = 1000


@asynccontextmanager
async def watched(config: Config, options: Options, seconds: float) -> AsyncIterator[RunningVm]:
    """`bring_up`, with a trace for whoever has to look, for no longer than `seconds` beyond its start."""
    traced = options if options.trace is not None else dataclasses.replace(options, trace="logs")
    async with bring_up(config, traced) as vm, patience(vm, seconds, "the test's use of this VM"):
        yield vm


async def heard(vm: RunningVm, seconds: float = SILENCE_S) -> AsyncGenerator[dict[str, Any], None]:
    """`vm.messages`, but the test fails when the next one does not come within `seconds`."""
    said = vm.messages()
    last = "nothing"
    try:
        while True:
            async with patience(vm, seconds, f"the guest's next word, the one before was {last}"):
                try:
                    message = await anext(said)
                except StopAsyncIteration:
                    return
            last = str(message)[:80]
            yield message
    finally:
        await said.aclose()


@asynccontextmanager
async def patience(vm: RunningVm, seconds: float, what: str) -> AsyncIterator[None]:
    """A limit for the block, which waits for `what`; beyond it the test fails and shows the guest."""
    since = await _beginning(vm)
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        sections = [*await _resets(vm, since), *await _seen(vm), *await _processor(vm)]
        shown = "".join(f"\n--- {title}\n{text}" for title, text in sections)
        pytest.fail(f"{seconds:g} s were not enough for {what}{shown}", pytrace=False)


async def _beginning(vm: RunningVm) -> Beginning:
    newest: list[Any] = []
    with suppress(VdevError):  # what is gone shows soon enough
        async with Control.connected(vm.control_path) as control:
            newest = await control.execute("query-events", limit=1)
    return Beginning(event=int(newest[0]["seq"]) + 1 if newest else 0, message=vm.qmp.nmessages)


async def _seen(vm: RunningVm) -> Sections:
    """Console, QMP, trace and faults, from before the wait, too."""
    with suppress(VdevError):
        async with Control.connected(vm.control_path) as control:
            return await evidence.of_living(vm, control, Beginning())
    return evidence.of_gone(vm, Beginning())


async def _resets(vm: RunningVm, since: Beginning) -> Sections:
    """What was reset since, whether drivers have come again, and what vdev itself waits for."""
    try:
        async with Control.connected(vm.control_path) as control:
            resets = await control.execute("query-events", since=since.event, limit=NEVENTS, kinds=["UnitReset"])
            units = await control.execute("query-iommu")
            scheduler = (await control.execute("query-status"))["scheduler"]
    except VdevError as error:
        return [("vdev", str(error))]
    machine = sum('"RESET"' in text for text in vm.qmp_tail(vm.qmp.nmessages, since.message))
    lines = [
        f"QEMU told of {machine} resets of the machine since this wait began",
        f"vdev saw these resets of its units: {', '.join(event['kind'] for event in resets) or 'none'}",
        *(_booted(unit) for unit in units),
    ]
    return [("resets", "\n".join(lines)), ("vdev now", json.dumps([scheduler, *units]))]


def _booted(unit: dict[str, Any]) -> str:
    if unit["features"]["accepted"]:
        return f"{unit['unit']} has a driver: a kernel has booted so far"
    return f"{unit['unit']} has no driver: nothing has booted since its last reset"


async def _processor(vm: RunningVm) -> Sections:
    """Where the first processor is, a few times."""
    looks = []
    try:
        async with asyncio.timeout(LOOK_S):
            for _ in range(NLOOKS):
                said = await vm.qmp.execute("human-monitor-command", {"command-line": "info registers"})
                looks.append(str(said)[:NREGISTER_CHARACTERS])
                await asyncio.sleep(BETWEEN_LOOKS_S)
    except (TimeoutError, QMPError, EOFError, OSError) as error:
        looks.append(f"QEMU does not say: {type(error).__name__} {error}")
    return [("the processor, a few times", "\n".join(looks))]
