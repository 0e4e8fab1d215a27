"""A unit and an accelerator of a served machine with a running driver each, and the address plan tests share."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.support.serve_guest import (
    ACCEL_RING_ENTRIES,
    GuestAccelerator,
    GuestUnit,
    Ram,
    connected,
    map_request,
    until_true,
)
from vdev.wire import viommu
from vdev.wire.accelerator import Op

DOMAIN = 7
ENDPOINT = 0x100  # 01:00.0
MIB = 1 << 20

# Guest-physical: rings of the units in [1 MiB, 3 MiB), the accelerators' from 3 MiB on, data above.
ACCEL_GPA = 3 * MIB
SOURCE_GPA = 4 * MIB
TARGET_GPA = 5 * MIB
FILLED_GPA = 6 * MIB
FILLED_NBYTES = 2 * MIB

# What the device sees; nowhere the guest-physical address, so that a missing translation shows.
RING_IOVA = 0x1_0000_0000
SOURCE_IOVA = 0x2_0000_0000
TARGET_IOVA = 0x3_0000_0000
FILL_IOVA = 0x4_0000_0000
FILL_NBYTES = 1 << 30
PATTERN = 0x5A5A_5A5A_5A5A_5A5A
SETTLE_S = 0.03  # many slices


@dataclass
class Scene:
    """One guest's view: RAM, the unit, the accelerator behind it."""

    ram: Ram
    unit: GuestUnit
    accel: GuestAccelerator
    index: int = 0  # of the pair, where a machine has several

    @classmethod
    async def enter(cls, stack: AsyncExitStack, directory: Path, ram: Ram, index: int = 0) -> Scene:
        """Connect to `iommu{index}` and `accel{index}`; the unit's driver runs, the endpoint is not attached."""
        unit_path, accel_path = directory / f"iommu{index}.sock", directory / f"accel{index}.sock"
        unit = await stack.enter_async_context(connected(GuestUnit, unit_path, ram, 3))
        accel = await stack.enter_async_context(connected(GuestAccelerator, accel_path, ram, 2))
        unit.index = index
        await unit.start()
        return cls(ram, unit, accel, index)

    @property
    def endpoint(self) -> int:
        """The accelerator's number: each is on a bus of its own."""
        return ENDPOINT * (self.index + 1)

    @property
    def ring_gpa(self) -> int:
        return ACCEL_GPA + (self.index << 16)

    async def attach(self) -> int:
        """Attach, map the ring, start the engine; its STATUS."""
        await self.unit.attach(DOMAIN, self.endpoint)
        await self.unit.map(DOMAIN, RING_IOVA, 0x2000, self.ring_gpa)
        return await self.accel.start(self.ring_gpa, RING_IOVA)

    async def map_buffers(self, nbytes: int) -> list[int]:
        """Source readable, target writable; the statuses."""
        return [
            await self.unit.map(DOMAIN, SOURCE_IOVA, nbytes, SOURCE_GPA, viommu.MAP_F_READ),
            await self.unit.map(DOMAIN, TARGET_IOVA, nbytes, TARGET_GPA, viommu.MAP_F_WRITE),
        ]

    def put(self, gpa: int, data: bytes) -> None:
        self.ram.view[gpa : gpa + len(data)] = data

    def get(self, gpa: int, nbytes: int) -> bytes:
        return bytes(self.ram.view[gpa : gpa + nbytes])

    async def start_long_fill(self) -> int:
        """Begin to fill 1 GiB of I/O addresses, all of them the same 2 MiB of RAM, as often as the ring holds.

        Returns when bytes have landed, with seconds of work left; the index is that of the last operation.
        """
        requests = [
            map_request(DOMAIN, FILL_IOVA + at, FILLED_NBYTES, FILLED_GPA)
            for at in range(0, FILL_NBYTES, FILLED_NBYTES)
        ]
        for start in range(0, len(requests), 16):
            await self.unit.ask(*requests[start : start + 16])
        for _ in range(ACCEL_RING_ENTRIES - 1):
            index = await self.accel.submit(Op.FILL, dst=FILL_IOVA, nbytes=FILL_NBYTES, arg=PATTERN)
        await until_true(lambda: self.ram.view[FILLED_GPA] != 0)
        return index

    async def bytes_land(self) -> bool:
        """Wipe what the long fill writes to; whether anything arrives there afterwards."""
        self.put(FILLED_GPA, bytes(FILLED_NBYTES))
        await asyncio.sleep(SETTLE_S)
        return any(self.get(FILLED_GPA, FILLED_NBYTES))
