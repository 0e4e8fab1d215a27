"""What tests of this directory have the host do: `host.step("name", ...)` runs `name` here, on the host."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from guest_tests.runner.steps import HostSide

NTRIES, TRY_S = 500, 0.02  # until something is held
BETWEEN_LOOKS_S = 0.05
_RIP = re.compile(r"\bRIP=([0-9a-f]+) RFL=([0-9a-f]+)")
INTERRUPTS_ON = 1 << 9  # in RFLAGS


async def look_while_held(vm: HostSide, rule: dict[str, Any], looks: int) -> list[list[tuple[int, bool]]]:
    """Add a rule that holds something, look at all processors so many times once it does, and clear the plan.

    Of each look: the address where each processor was, and whether its interrupts were on.
    """
    added = await vm.control("fault-add", **rule)
    try:
        for _ in range(NTRIES):
            if await _holds(vm, added["id"]):
                return [await _processors(vm) for _ in range(looks)]
            await asyncio.sleep(TRY_S)
        raise AssertionError("nothing was held")
    finally:
        await vm.control("fault-clear")  # what was dropped is let go by nothing less


async def _holds(vm: HostSide, rule: str) -> bool:
    rules = (await vm.control("query-fault-plan"))["rules"]
    return any(one["id"] == rule and one["held"] for one in rules)


async def _processors(vm: HostSide) -> list[tuple[int, bool]]:
    await asyncio.sleep(BETWEEN_LOOKS_S)
    said = str(await vm.qmp("human-monitor-command", **{"command-line": "info registers -a"}))
    return [(int(rip, 16), bool(int(flags, 16) & INTERRUPTS_ON)) for rip, flags in _RIP.findall(said)]
