"""The guest of a served machine: RAM, firmware that walks config space, a driver for each function over vfio-user.

Helpers act as a guest does through QEMU; tests assert.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from tests.support.driver import Completion, DriverRing
from tests.support.vfio_client import VfioClient
from tests.support.vfio_scene import GuestRam
from vdev.transports.fence import make_ordering
from vdev.wire import accelerator as accel
from vdev.wire import pci, viommu, virtio_pci
from vdev.wire.virtio_pci import CfgType, CommonCfg, Status

CONFIG_REGION = 7
TRIGGER_EVENTFD = 0x24
RAM_NBYTES = 16 << 20
RING_SIZE = 64
EVENT_BUFFERS = 8
QUEUES_GPA = 0x10_0000  # each unit's rings take 1 MiB from here on
ACCEL_RING_ENTRIES = 16
WAIT_S = 5.0

F = TypeVar("F", bound="GuestFunction")


async def until_true(condition: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    """Wait until `condition()`; TimeoutError after 5 s."""
    async with asyncio.timeout(WAIT_S):
        while True:
            result = condition()
            if result if isinstance(result, bool) else await result:
                return
            await asyncio.sleep(0)


class Ram(GuestRam):
    """Guest RAM at guest-physical 0."""

    def __init__(self, *, sealed: bool = True) -> None:
        super().__init__(RAM_NBYTES, sealed=sealed)
        assert self.map is not None
        self.view = memoryview(self.map)

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(BufferError):  # views a failed test still holds must not hide its failure
            self.view.release()
            super().__exit__(*error)


class GuestFunction:
    """One PCI function, connected, with all RAM mapped; `vectors` are the eventfds of its interrupts."""

    def __init__(self, client: VfioClient, ram: Ram, vectors: list[int]) -> None:
        self.client = client
        self.ram = ram
        self.vectors = vectors

    def interrupts(self, vector: int) -> int:
        """How often `vector` was signalled since last asked."""
        try:
            return os.eventfd_read(self.vectors[vector])
        except BlockingIOError:
            return 0

    async def interrupted(self, vector: int) -> None:
        """Wait for `vector`; TimeoutError after 5 s."""
        await until_true(lambda: self.interrupts(vector) > 0)

    # accesses

    async def config(self, offset: int, nbytes: int) -> int:
        return int.from_bytes(await self.client.region_read(CONFIG_REGION, offset, nbytes), "little")

    async def set_config(self, offset: int, nbytes: int, value: int) -> None:
        await self.client.region_write(CONFIG_REGION, offset, value.to_bytes(nbytes, "little"))

    async def read(self, bar: int, offset: int, nbytes: int) -> int:
        return int.from_bytes(await self.client.region_read(bar, offset, nbytes), "little")

    async def read_block(self, bar: int, offset: int, nbytes: int) -> bytes:
        """A structure in a BAR, in accesses of 8 bytes as a CPU makes them."""
        words = [await self.client.region_read(bar, offset + at, 8) for at in range(0, nbytes, 8)]
        return b"".join(words)

    async def write(self, bar: int, offset: int, nbytes: int, value: int) -> None:
        await self.client.region_write(bar, offset, value.to_bytes(nbytes, "little"))

    # firmware

    async def bar_nbytes(self, index: int) -> int:
        """Size a 64-bit BAR as firmware does: all ones in, mask out, old value back."""
        at = pci.BAR0 + 4 * index
        before = await self.config(at, 8)
        await self.set_config(at, 4, 0xFFFFFFFF)
        await self.set_config(at + 4, 4, 0xFFFFFFFF)
        mask = await self.config(at, 8) & ~0xF
        await self.set_config(at, 8, before)
        return (1 << 64) - mask

    async def capabilities(self) -> list[tuple[int, int]]:
        """(id, offset) along the capability list."""
        found, offset = [], await self.config(pci.CAPABILITY_POINTER, 1)
        while offset:
            word = await self.config(offset, 2)
            found.append((word & 0xFF, offset))
            offset = word >> 8
        return found

    async def extended_capabilities(self) -> list[tuple[int, int]]:
        """(id, offset) along the extended list."""
        found, offset = [], pci.FIRST_EXTENDED
        while offset:
            word = await self.config(offset, 4)
            found.append((word & 0xFFFF, offset))
            offset = word >> 20
        return found

    async def bus_master(self, enabled: bool) -> None:
        """Memory on, and bus mastering as told."""
        command = pci.Command.MEMORY | (pci.Command.BUS_MASTER if enabled else 0)
        await self.set_config(pci.COMMAND, 2, int(command))

    async def function_level_reset(self) -> None:
        """Through the device control register of the PCI Express capability."""
        at = dict(await self.capabilities())[pci.CapId.PCIE] + pci.DEVCTL
        await self.set_config(at, 2, await self.config(at, 2) | pci.DEVCTL_FLR)


class GuestUnit(GuestFunction):
    """A virtio-iommu unit and its driver. `index` keeps the rings of several units apart in RAM."""

    index = 0
    requests: DriverRing
    events: DriverRing
    structures: dict[int, virtio_pci.PciCap]

    async def find_structures(self) -> None:
        """Read where the virtio structures are from the vendor capabilities; the first of a kind counts."""
        self.structures = {}
        for cap_id, offset in await self.capabilities():
            if cap_id == pci.CapId.VENDOR:
                raw = await self.client.region_read(CONFIG_REGION, offset, virtio_pci.PCI_CAP_NBYTES)
                cap = virtio_pci.PciCap.parse(raw)
                self.structures.setdefault(cap.cfg_type, cap)

    async def common(self) -> CommonCfg:
        cap = self.structures[CfgType.COMMON]
        return CommonCfg.parse(await self.read_block(cap.bar, cap.offset, CommonCfg.layout.size))

    async def set_common(self, name: str, value: int) -> None:
        """Write one field of the common configuration, by its name."""
        cap = self.structures[CfgType.COMMON]
        start, nbytes = next((at, n) for at, n, known in virtio_pci.COMMON_WRITABLE if known == name)
        await self.write(cap.bar, cap.offset + start, nbytes, value)

    async def unit_config(self) -> viommu.Config:
        cap = self.structures[CfgType.DEVICE]
        return viommu.Config.parse(await self.read_block(cap.bar, cap.offset, viommu.CONFIG_NBYTES))

    async def set_bypass(self, value: int) -> None:
        cap = self.structures[CfgType.DEVICE]
        await self.write(cap.bar, cap.offset + viommu.BYPASS_OFFSET, 1, value)

    async def offered(self) -> int:
        """All feature bits the device offers."""
        features = 0
        for select in (0, 1):
            await self.set_common("device_feature_select", select)
            features |= (await self.common()).device_feature << 32 * select
        return features

    async def virtio_reset(self) -> None:
        """Status 0, and read back as the specification demands."""
        await self.set_common("device_status", 0)
        await until_true(self._is_reset)

    async def _is_reset(self) -> bool:
        return (await self.common()).device_status == 0

    async def start(self) -> int:
        """Reset to DRIVER_OK with every offered feature; event buffers posted. The status read back."""
        await self.bus_master(True)
        await self.find_structures()
        await self.virtio_reset()
        status = Status.ACKNOWLEDGE | Status.DRIVER
        await self.set_common("device_status", int(status))
        features = await self.offered()
        for select in (0, 1):
            await self.set_common("driver_feature_select", select)
            await self.set_common("driver_feature", features >> 32 * select & 0xFFFFFFFF)
        status |= Status.FEATURES_OK
        await self.set_common("device_status", int(status))
        event_idx = bool(features & virtio_pci.F_EVENT_IDX)
        self.requests = await self._add_queue(viommu.REQUEST_QUEUE, 0, event_idx)
        self.events = await self._add_queue(viommu.EVENT_QUEUE, 0x8_0000, event_idx)
        await self.set_common("device_status", int(status | Status.DRIVER_OK))
        for _ in range(EVENT_BUFFERS):
            self.events.add([], [viommu.FAULT_NBYTES])
        self.events.publish()
        await self.notify(viommu.EVENT_QUEUE)
        return (await self.common()).device_status

    async def _add_queue(self, queue: int, at: int, event_idx: bool) -> DriverRing:
        ring = DriverRing(
            self.ram.view,
            RING_SIZE,
            offset=QUEUES_GPA + (self.index << 20) + at,
            slot_nbytes=1024,
            event_idx=event_idx,
            ordering=make_ordering(),
        )
        settings = {
            "queue_select": queue,
            "queue_size": ring.size,
            "queue_msix_vector": 1 + queue,
            "queue_desc": ring.desc_gpa,
            "queue_driver": ring.avail_gpa,
            "queue_device": ring.used_gpa,
            "queue_enable": 1,
        }
        for name, value in settings.items():
            await self.set_common(name, value)
        return ring

    async def notify(self, queue: int) -> None:
        """Ring the doorbell of one queue; our device has them 4 bytes apart."""
        cap = self.structures[CfgType.NOTIFY]
        await self.write(cap.bar, cap.offset + 4 * queue, 2, queue)

    async def ask(self, *requests: bytes, writable_nbytes: int = viommu.TAIL_NBYTES) -> list[bytes]:
        """Send requests in one go and wait for the answers, in order; kicks only when the ring says so."""
        heads = [self.requests.add([request], [writable_nbytes]) for request in requests]
        self.requests.publish()
        if self.requests.kick_needed():
            await self.notify(viommu.REQUEST_QUEUE)
        done: dict[int, Completion] = {}
        async with asyncio.timeout(WAIT_S):
            while len(done) < len(heads):
                done.update({completion.head: completion for completion in self.requests.reap()})
                await asyncio.sleep(0)
        return [done[head].data[: done[head].used_nbytes] for head in heads]

    async def status_of(self, request: bytes) -> int:
        """The status in the tail of one request's answer."""
        (answer,) = await self.ask(request)
        return answer[0]

    async def probe(self, endpoint: int) -> bytes:
        """The answer to PROBE: properties, then the tail."""
        nbytes = (await self.unit_config()).probe_size + viommu.TAIL_NBYTES
        request = viommu.Probe(viommu.T_PROBE, endpoint=endpoint, head_reserved=bytes(3)).pack()
        return (await self.ask(request, writable_nbytes=nbytes))[0]

    async def attach(self, domain: int, endpoint: int, flags: int = 0) -> int:
        return await self.status_of(viommu.Attach(viommu.T_ATTACH, bytes(3), domain, endpoint, flags).pack())

    async def detach(self, domain: int, endpoint: int) -> int:
        return await self.status_of(viommu.Detach(viommu.T_DETACH, bytes(3), domain, endpoint).pack())

    async def map(self, domain: int, iova: int, nbytes: int, gpa: int, flags: int = 3) -> int:
        return await self.status_of(map_request(domain, iova, nbytes, gpa, flags))

    async def unmap(self, domain: int, iova: int, nbytes: int) -> int:
        return await self.status_of(viommu.Unmap(viommu.T_UNMAP, bytes(3), domain, iova, iova + nbytes - 1).pack())

    async def next_faults(self) -> list[viommu.Fault]:
        """Wait for the event queue; every fault that is in it."""
        await until_true(self.events.has_used)
        return [viommu.Fault.parse(done.data) for done in self.events.reap()]


def map_request(domain: int, iova: int, nbytes: int, gpa: int, flags: int = 3) -> bytes:
    """MAP of [iova, iova+nbytes)."""
    return viommu.Map(viommu.T_MAP, bytes(3), domain, iova, iova + nbytes - 1, gpa, flags).pack()


class GuestAccelerator(GuestFunction):
    """The accelerator's driver: ring at `ring_gpa`, completions a page behind, both known to it as IOVAs."""

    ring_gpa = 0
    tail = 0
    tag = 0

    async def register(self, register: int, nbytes: int = 4) -> int:
        return await self.read(0, register, nbytes)

    async def set_register(self, register: int, value: int, nbytes: int = 4) -> None:
        await self.write(0, register, nbytes, value)

    async def start(self, ring_gpa: int, ring_iova: int) -> int:
        """Set up the ring in cleared RAM and enable; STATUS afterwards."""
        await self.bus_master(True)
        self.ring_gpa, self.tail = ring_gpa, 0
        self.ram.view[ring_gpa : ring_gpa + 0x2000] = bytes(0x2000)
        await self.set_register(accel.Register.CONTROL, accel.Control.RESET)
        await self.set_register(accel.Register.RING_BASE, ring_iova, 8)
        await self.set_register(accel.Register.RING_SIZE, ACCEL_RING_ENTRIES)
        await self.set_register(accel.Register.COMPLETION_BASE, ring_iova + 0x1000, 8)
        await self.set_register(accel.Register.CONTROL, accel.Control.ENABLE | accel.Control.IRQ_ENABLE)
        return await self.register(accel.Register.STATUS)

    async def submit(self, op: int, src: int = 0, dst: int = 0, nbytes: int = 0, arg: int = 0) -> int:
        """Put one operation (with an interrupt at its end) in the ring, ring the doorbell; its index."""
        index, self.tag = self.tail, (self.tag + 1) & 0xFFFF
        at = self._completion_gpa(index)
        self.ram.view[at : at + accel.COMPLETION_NBYTES] = bytes(accel.COMPLETION_NBYTES)
        entry = accel.Descriptor(op, accel.Flag.IRQ, self.tag, 0, src, dst, nbytes, arg, bytes(24)).pack()
        at = self.ring_gpa + index * accel.DESCRIPTOR_NBYTES
        self.ram.view[at : at + len(entry)] = entry
        self.tail = (index + 1) % ACCEL_RING_ENTRIES
        await self.set_register(accel.Register.RING_TAIL, self.tail)
        return index

    def completion(self, index: int) -> accel.Completion:
        """The completion record as it is now."""
        return accel.Completion.parse(self.ram.view, self._completion_gpa(index))

    async def run(self, op: int, src: int = 0, dst: int = 0, nbytes: int = 0, arg: int = 0) -> accel.Completion:
        """Submit and wait for the completion; TimeoutError after 5 s."""
        index = await self.submit(op, src, dst, nbytes, arg)
        await until_true(lambda: self.completion(index).status != accel.CompletionStatus.PENDING)
        return self.completion(index)

    async def copy(self, src: int, dst: int, nbytes: int) -> accel.Completion:
        return await self.run(accel.Op.COPY, src, dst, nbytes)

    def _completion_gpa(self, index: int) -> int:
        return self.ring_gpa + 0x1000 + index * accel.COMPLETION_NBYTES


@asynccontextmanager
async def connected(kind: type[F], path: Path, ram: Ram, nvectors: int) -> AsyncIterator[F]:
    """A connected function with RAM mapped and MSI-X on, as QEMU leaves it before the guest runs."""
    client = await VfioClient.connect(path)
    vectors = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(nvectors)]
    try:
        await client.negotiate()
        await client.dma_map(0, ram.nbytes, ram.fd)
        await client.set_irqs(TRIGGER_EVENTFD, 0, 1)
        await client.set_irqs(TRIGGER_EVENTFD, 0, nvectors, vectors)
        yield kind(client, ram, vectors)
    finally:
        client.close()
        for fd in vectors:
            os.close(fd)
