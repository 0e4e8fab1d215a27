"""What tests of this directory have the host do: `host.step("name", ...)` runs `name` here, on the host."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from pathlib import Path

from guest_tests.runner.steps import HostSide


async def sha256_of_ram(vm: HostSide, gpa: int, nbytes: int) -> str:
    """The digest of guest memory as QEMU sees it."""
    return hashlib.sha256(await _ram(vm, gpa, nbytes)).hexdigest()


async def ram_twice_during_pause(vm: HostSide, gpa: int, nbytes: int, seconds: float) -> list[str]:
    """Guest memory in hex, at the beginning and at the end of a pause of the whole machine."""
    await vm.qmp("stop")
    try:
        before = await _ram(vm, gpa, nbytes)
        await asyncio.sleep(seconds)
        return [before.hex(), (await _ram(vm, gpa, nbytes)).hex()]
    finally:
        await vm.qmp("cont")


async def _ram(vm: HostSide, gpa: int, nbytes: int) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "memory"
        await vm.qmp("pmemsave", val=gpa, size=nbytes, filename=str(path))
        return path.read_bytes()


async def expect_word(vm: HostSide, gpa: int, word: int) -> str:
    """The 32-bit word at `gpa` as QEMU prints it; an AssertionError unless it is `word`."""
    answer = await vm.qmp("human-monitor-command", **{"command-line": f"xp /1xw {gpa:#x}"})
    text = str(answer).split()[-1]
    assert int(text, 16) == word, f"{text} is at {gpa:#x}, the guest says {word:#010x}"
    return text


async def mappings_during_pause(vm: HostSide, unit: str) -> list[int]:
    """The unit's live mappings before, in and after a pause of the whole machine."""
    counts = [await _mappings(vm, unit)]
    await vm.qmp("stop")
    try:
        counts.append(await _mappings(vm, unit))
    finally:
        await vm.qmp("cont")
    return [*counts, await _mappings(vm, unit)]


async def refusals_during_stop(vm: HostSide, endpoint: str) -> list[dict[str, int]]:
    """What an endpoint's accesses were refused for, by reason: before, in and after a stop of the whole machine."""
    counts = [await _refusals(vm, endpoint)]
    await vm.qmp("stop")
    try:
        counts.append(await _refusals(vm, endpoint))
    finally:
        await vm.qmp("cont")
    return [*counts, await _refusals(vm, endpoint)]


async def _refusals(vm: HostSide, endpoint: str) -> dict[str, int]:
    (found,) = await vm.control("query-endpoints", endpoint=endpoint)
    return {count["name"]: count["count"] for count in found["dma-refused"]}


async def _mappings(vm: HostSide, unit: str) -> int:
    (found,) = [described for described in await vm.control("query-iommu") if described["unit"] == unit]
    mappings = found["mappings"]
    assert isinstance(mappings, int)
    return mappings
