"""What tests of this directory have the host do: `host.step("name", ...)` runs `name` here, on the host."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from guest_tests.runner.steps import HostSide

HELD_S = 10.0
LOOK_S = 0.02
BETWEEN_LOOKS_S = 0.05
_RIP = re.compile(r"\bRIP=([0-9a-f]+) RFL=([0-9a-f]+)")
INTERRUPTS_ON = 1 << 9  # in RFLAGS


async def look_while_held(vm: HostSide, rule: dict[str, Any], looks: int) -> list[list[tuple[int, bool]]]:
    """Add a rule that holds something, and once it does look at all processors so many times; then clear the whole plan.

    Of each look: the address where each processor was, and whether its interrupts were on.
    """
    added = await vm.control("fault-add", **rule)
    try:
        async with asyncio.timeout(HELD_S):
            while not await _holds(vm, added["id"]):
                await asyncio.sleep(LOOK_S)
        return [await _processors(vm) for _ in range(looks)]
    finally:
        await vm.control("fault-clear")  # what was dropped is let go by nothing less


async def _holds(vm: HostSide, rule: str) -> bool:
    rules = (await vm.control("query-fault-plan"))["rules"]
    return any(one["id"] == rule and one["held"] for one in rules)


async def _processors(vm: HostSide) -> list[tuple[int, bool]]:
    await asyncio.sleep(BETWEEN_LOOKS_S)
    said = str(await vm.qmp("human-monitor-command", **{"command-line": "info registers -a"}))
    return [(int(rip, 16), bool(int(flags, 16) & INTERRUPTS_ON)) for rip, flags in _RIP.findall(said)]
