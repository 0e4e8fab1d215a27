"""A real `vdev serve` and the guest in front of it, over the sockets QEMU would use: firmware, driver, DMA, resets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from tests.support.serve_guest import Ram
from tests.support.serve_process import ONE_UNIT, ServeProcess, serving
from tests.support.serve_scene import (
    DOMAIN,
    ENDPOINT,
    FILLED_GPA,
    MIB,
    PATTERN,
    SOURCE_GPA,
    SOURCE_IOVA,
    TARGET_GPA,
    TARGET_IOVA,
    Scene,
)
from vdev.wire import pci, viommu
from vdev.wire.accelerator import CompletionStatus, ErrorCode, Op, Register, Status
from vdev.wire.virtio_pci import F_VERSION_1, CfgType
from vdev.wire.virtio_pci import Status as VirtioStatus

NBYTES = 300_000  # more than one slice of the engine
VIRTIO_OK = VirtioStatus.ACKNOWLEDGE | VirtioStatus.DRIVER | VirtioStatus.FEATURES_OK | VirtioStatus.DRIVER_OK


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with serving(ONE_UNIT, tmp_path_factory.mktemp("serve") / "run") as running:
        yield running


@pytest.fixture
async def scene(process: ServeProcess) -> AsyncIterator[Scene]:
    """New connections, which is a machine that starts anew."""
    async with AsyncExitStack() as stack:
        yield await Scene.enter(stack, process.directory, stack.enter_context(Ram()))
    process.idle()


async def test_firmware_finds_an_iommu_and_a_dma_engine(scene: Scene) -> None:
    unit, accel = scene.unit, scene.accel

    assert await unit.config(0, 4) == 0x1AF4 | (0x1040 + viommu.DEVICE_ID) << 16
    assert await unit.config(0x08, 4) >> 8 == 0x080600
    assert await accel.config(0, 4) == 0x7664_1234
    assert await accel.config(0x08, 4) == 0x088000_01
    assert [await accel.bar_nbytes(index) for index in (0, 2, 4)] == [4096, MIB, 4096]
    for function in (unit, accel):
        found = [cap_id for cap_id, _ in await function.capabilities()]
        assert found[:2] == [pci.CapId.PCIE, pci.CapId.MSIX]
    extended = {cap_id for cap_id, _ in await accel.extended_capabilities()}
    assert extended == {pci.ExtCapId.AER, pci.ExtCapId.ATS, pci.ExtCapId.PRI, pci.ExtCapId.PASID}


async def test_the_driver_negotiates_and_reads_the_configuration(scene: Scene) -> None:
    common, config = await scene.unit.common(), await scene.unit.unit_config()

    assert set(scene.unit.structures) == set(CfgType)
    assert common.device_status == VIRTIO_OK
    assert common.num_queues == 2
    assert await scene.unit.offered() & F_VERSION_1
    assert config.page_size_mask & -config.page_size_mask == 4096
    assert (config.input_start, config.input_end) == (0, (1 << 39) - 1)
    assert config.bypass == 1


async def test_probe_names_the_msi_region(scene: Scene) -> None:
    answer = await scene.unit.probe(ENDPOINT)

    (found,) = viommu.properties(answer[: -viommu.TAIL_NBYTES])
    assert answer[-viommu.TAIL_NBYTES :] == viommu.TAILS[viommu.S_OK]
    region = viommu.ResvMem.parse(viommu.Property(found[0], len(found[1])).pack() + found[1])
    assert (region.subtype, region.start, region.end) == (viommu.RESV_MEM_T_MSI, 0xFEE00000, 0xFEEFFFFF)


async def test_a_copy_through_mappings_moves_the_bytes_and_interrupts(scene: Scene, process: ServeProcess) -> None:
    content = os.urandom(NBYTES)
    scene.put(SOURCE_GPA, content)
    scene.unit.requests.enable_interrupts()
    scene.unit.interrupts(1)

    status = await scene.attach()
    mapped = await scene.map_buffers(MIB)
    completion = await scene.accel.copy(SOURCE_IOVA, TARGET_IOVA, NBYTES)

    assert status == Status.RUNNING
    assert mapped == [viommu.S_OK] * 2
    assert (completion.status, completion.result, completion.tag) == (CompletionStatus.OK, NBYTES, 1)
    assert scene.get(TARGET_GPA, NBYTES + 1) == content + b"\0"
    await scene.accel.interrupted(0)
    assert scene.accel.interrupts(1) == 0
    await scene.unit.interrupted(1)
    assert process.unit()["mappings"] == 3


async def test_after_unmap_the_same_copy_is_refused_and_the_guest_is_told(scene: Scene, process: ServeProcess) -> None:
    since = process.next_event()
    await scene.attach()
    await scene.map_buffers(MIB)
    await scene.accel.copy(SOURCE_IOVA, TARGET_IOVA, 4096)
    scene.put(TARGET_GPA, b"\xa5" * 4096)
    scene.unit.events.enable_interrupts()

    unmapped = await scene.unit.unmap(DOMAIN, TARGET_IOVA, MIB)
    completion = await scene.accel.copy(SOURCE_IOVA, TARGET_IOVA, 4096)

    assert unmapped == viommu.S_OK
    assert completion.status == CompletionStatus.TRANSLATION_FAULT
    assert (completion.fault_iova, completion.access, completion.result) == (TARGET_IOVA, 2, 0)
    assert scene.get(TARGET_GPA, 4096) == b"\xa5" * 4096
    (fault,) = await scene.unit.next_faults()
    assert fault.reason == viommu.FAULT_R_MAPPING
    assert fault.flags == viommu.FAULT_F_WRITE | viommu.FAULT_F_ADDRESS
    assert (fault.endpoint, fault.address) == (ENDPOINT, TARGET_IOVA)
    await scene.unit.interrupted(2)
    (recorded,) = process.events("FaultRaised", since=since)
    assert (recorded["unit"], recorded["endpoint"], recorded["iova"]) == ("iommu0", ENDPOINT, TARGET_IOVA)


async def test_permissions_are_enforced_each_for_itself(scene: Scene) -> None:
    await scene.attach()
    await scene.map_buffers(4096)

    write = await scene.accel.copy(SOURCE_IOVA, SOURCE_IOVA, 64)
    read = await scene.accel.copy(TARGET_IOVA, TARGET_IOVA, 64)

    assert (write.status, write.fault_iova, write.access) == (CompletionStatus.TRANSLATION_FAULT, SOURCE_IOVA, 2)
    assert (read.status, read.fault_iova, read.access) == (CompletionStatus.TRANSLATION_FAULT, TARGET_IOVA, 1)


async def test_a_mapping_to_where_no_ram_is_moves_nothing(scene: Scene) -> None:
    await scene.attach()
    await scene.map_buffers(4096)
    nowhere = await scene.unit.map(DOMAIN, 0x5_0000_0000, 4096, 1 << 36)

    completion = await scene.accel.copy(SOURCE_IOVA, 0x5_0000_0000, 64)

    assert nowhere == viommu.S_OK
    assert completion.status == CompletionStatus.UNSUPPORTED_REQUEST


async def test_unmapping_under_a_running_operation_stops_it_at_the_next_slice(scene: Scene) -> None:
    await scene.attach()
    index = await scene.start_long_fill()

    await scene.unit.unmap(DOMAIN, 0, 1 << 39)  # the ring's mapping, too

    assert not await scene.bytes_land()
    assert scene.accel.completion(index).status == CompletionStatus.PENDING
    assert await scene.accel.register(Register.ERROR) == ErrorCode.COMPLETION_WRITE


async def test_a_function_reset_drops_what_was_under_way(scene: Scene) -> None:
    await scene.attach()
    index = await scene.start_long_fill()

    await scene.accel.function_level_reset()

    assert not await scene.bytes_land()
    assert scene.accel.completion(index).status == CompletionStatus.PENDING
    registers = (Register.STATUS, Register.CONTROL, Register.RING_SIZE, Register.COMPLETED, Register.ERROR)
    assert [await scene.accel.register(register) for register in registers] == [0] * len(registers)
    assert await scene.accel.config(pci.COMMAND, 2) & pci.Command.BUS_MASTER == 0


async def _virtio_reset(scene: Scene) -> None:
    await scene.unit.virtio_reset()


async def _function_level_reset(scene: Scene) -> None:
    await scene.unit.function_level_reset()


async def _system_reset(scene: Scene) -> None:
    await scene.unit.client.reset()


@pytest.mark.parametrize("reset", [_virtio_reset, _function_level_reset, _system_reset])
async def test_a_reset_of_the_iommu_stops_the_endpoint_first(
    reset: Callable[[Scene], Awaitable[None]], scene: Scene, process: ServeProcess
) -> None:
    await scene.attach()
    index = await scene.start_long_fill()

    await reset(scene)

    assert not await scene.bytes_land()
    assert scene.accel.completion(index).status == CompletionStatus.PENDING
    assert await scene.accel.register(Register.STATUS) == Status.HALTED
    assert await scene.accel.register(Register.ERROR) == ErrorCode.STOPPED
    assert process.unit()["mappings"] == 0
    assert process.unit()["endpoints"][0]["domain"] is None


async def test_without_bus_mastering_no_byte_lands(scene: Scene) -> None:
    await scene.attach()
    index = await scene.start_long_fill()

    await scene.accel.bus_master(False)

    assert not await scene.bytes_land()
    assert await scene.accel.register(Register.ERROR) == ErrorCode.BUS_MASTER_OFF
    await scene.accel.bus_master(True)
    assert not await scene.bytes_land()
    assert scene.accel.completion(index).status == CompletionStatus.PENDING


async def test_a_unit_without_bus_mastering_serves_its_ring_when_it_comes_back(scene: Scene) -> None:
    await scene.unit.bus_master(False)
    attaching = asyncio.create_task(scene.unit.attach(DOMAIN, ENDPOINT))
    await asyncio.sleep(0.02)
    before = attaching.done()

    await scene.unit.bus_master(True)

    assert not before
    assert await attaching == viommu.S_OK


async def test_bypass_passes_identity_mapped_and_its_absence_nothing(scene: Scene) -> None:
    scene.put(SOURCE_GPA, b"identity")
    running = await scene.accel.start(scene.ring_gpa, scene.ring_gpa)
    passed = await scene.accel.copy(SOURCE_GPA, TARGET_GPA, 8)
    moved = scene.get(TARGET_GPA, 8)
    scene.put(SOURCE_GPA, b"refused!")

    await scene.unit.set_bypass(0)
    await scene.accel.submit(Op.COPY, SOURCE_GPA, TARGET_GPA, 8)

    assert running == Status.RUNNING
    assert passed.status == CompletionStatus.OK
    assert moved == b"identity"
    (fault,) = await scene.unit.next_faults()
    assert (fault.reason, fault.endpoint) == (viommu.FAULT_R_DOMAIN, ENDPOINT)
    await scene.accel.interrupted(1)
    assert await scene.accel.register(Register.ERROR) == ErrorCode.RING_FETCH
    assert scene.get(TARGET_GPA, 8) == b"identity"


async def test_an_endpoint_in_a_bypass_domain_passes_where_unattached_ones_do_not(scene: Scene) -> None:
    scene.put(SOURCE_GPA, b"identity")
    await scene.unit.set_bypass(0)

    attached = await scene.unit.attach(DOMAIN, ENDPOINT, viommu.ATTACH_F_BYPASS)
    await scene.accel.start(scene.ring_gpa, scene.ring_gpa)
    completion = await scene.accel.copy(SOURCE_GPA, TARGET_GPA, 8)

    assert attached == viommu.S_OK
    assert completion.status == CompletionStatus.OK
    assert scene.get(TARGET_GPA, 8) == b"identity"


# D6: a device reset keeps `bypass`; D7: a system reset restores it
async def test_only_a_system_reset_restores_bypass(scene: Scene) -> None:
    await scene.unit.set_bypass(0)

    await scene.unit.virtio_reset()
    after_device_reset = (await scene.unit.unit_config()).bypass
    await scene.unit.client.reset()
    after_system_reset = (await scene.unit.unit_config()).bypass

    assert after_device_reset == 0
    assert after_system_reset == 1


async def test_after_a_system_reset_a_driver_binds_again(scene: Scene) -> None:
    await scene.attach()
    for function in (scene.unit, scene.accel):
        await function.client.reset()

    status = await scene.unit.start()
    running = await scene.attach()
    await scene.map_buffers(4096)
    completion = await scene.accel.copy(SOURCE_IOVA, TARGET_IOVA, 4096)

    assert status == VIRTIO_OK
    assert running == Status.RUNNING
    assert completion.status == CompletionStatus.OK


async def test_no_mapping_is_left_after_detach(scene: Scene, process: ServeProcess) -> None:
    await scene.attach()
    await scene.map_buffers(MIB)
    before = process.unit()

    detached = await scene.unit.detach(DOMAIN, ENDPOINT)

    after = process.unit()
    assert detached == viommu.S_OK
    assert (before["mappings"], after["mappings"]) == (3, 0)
    assert after["domains"] == []


async def test_a_new_connection_finds_a_machine_that_starts_anew(process: ServeProcess) -> None:
    async with AsyncExitStack() as stack:
        scene = await Scene.enter(stack, process.directory, stack.enter_context(Ram()))
        await scene.unit.set_bypass(0)
        await scene.attach()
        await scene.start_long_fill()
        ram = scene.ram.view[FILLED_GPA : FILLED_GPA + 8]
        written = int.from_bytes(ram, "little")
        ram.release()
    process.idle()

    assert written == PATTERN
    unit = process.unit()
    assert (unit["mappings"], unit["domains"], unit["bypass"]) == (0, [], True)
    assert not unit["functions"]["accel0"]["running"]
    assert process.ram_maps() == []
