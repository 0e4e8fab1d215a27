"""A real `vdev serve` whose VM is stopped: no byte of guest memory changes, whatever is done to its functions."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.integration.test_serve_process import peer, word
from tests.support.serve_guest import CONFIG_REGION, GuestFunction, Ram
from tests.support.serve_process import ONE_UNIT, ServeProcess, serving
from tests.support.serve_scene import (
    DOMAIN,
    ENDPOINT,
    FILLED_GPA,
    FILLED_NBYTES,
    SETTLE_S,
    SOURCE_IOVA,
    TARGET_IOVA,
    Scene,
)
from vdev.wire import pci, viommu
from vdev.wire.accelerator import CompletionStatus, Control, Register, Status

NBYTES = 1 << 20  # more than one slice of the engine
NWRITES = 400
SEED = 3
UNIT_BARS = {0: [range(0x40), range(0x2000, 0x2030), range(0x3000, 0x3008)]}  # common, device, notifications
ACCEL_BARS = {0: [range(0x60)], 2: [range(0x100)]}  # registers, device memory


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with serving(ONE_UNIT, tmp_path_factory.mktemp("freeze") / "run") as running:
        yield running


@pytest.fixture
async def scene(process: ServeProcess) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield await Scene.enter(stack, process.directory, stack.enter_context(Ram()))
        process.ask("thaw")
    process.idle()


async def hashes(scene: Scene) -> tuple[int, int]:
    """All of RAM, now and many slices later."""
    before = zlib.crc32(scene.ram.view)
    await asyncio.sleep(SETTLE_S)
    return before, zlib.crc32(scene.ram.view)


async def test_ram_stands_still_while_frozen_and_moves_before_and_after(scene: Scene, process: ServeProcess) -> None:
    await scene.attach()
    await scene.start_long_fill()
    moving = await scene.bytes_land()

    process.ask("freeze")
    scene.put(FILLED_GPA, bytes(4096))
    before, after = await hashes(scene)
    process.ask("thaw")

    assert moving
    assert before == after
    assert await scene.bytes_land()


async def test_requests_made_just_before_a_freeze_are_answered_after_it(scene: Scene, process: ServeProcess) -> None:
    process.ask("freeze")
    attaching = asyncio.create_task(scene.unit.attach(DOMAIN, ENDPOINT))
    await asyncio.sleep(SETTLE_S)
    waited = not attaching.done()
    before, after = await hashes(scene)

    process.ask("thaw")

    assert waited
    assert before == after
    assert await attaching == viommu.S_OK


async def test_registers_and_configuration_are_answered_while_frozen(scene: Scene, process: ServeProcess) -> None:
    process.ask("freeze")
    assert await scene.accel.config(0, 4) == 0x7664_1234
    assert await scene.accel.register(Register.STATUS) == 0
    assert (await scene.unit.unit_config()).bypass == 1


async def test_an_engine_disabled_while_frozen_completes_its_copy_as_aborted_afterwards(
    scene: Scene, process: ServeProcess
) -> None:
    await scene.attach()
    await scene.start_long_fill()
    process.ask("freeze")
    before = zlib.crc32(scene.ram.view)
    await scene.accel.set_register(Register.CONTROL, Control.IRQ_ENABLE)
    held = zlib.crc32(scene.ram.view), scene.accel.interrupts(0)

    process.ask("thaw")

    await scene.accel.interrupted(0)
    assert held == (before, 0)
    assert scene.accel.completion(0).status == CompletionStatus.ABORTED


async def test_a_system_reset_works_while_frozen_and_the_machine_starts_anew(
    scene: Scene, process: ServeProcess
) -> None:
    await scene.attach()
    await scene.start_long_fill()
    process.ask("freeze")
    for function in (scene.unit, scene.accel):
        await function.client.reset()
    at_reset = await scene.accel.register(Register.STATUS)

    process.ask("thaw")

    assert at_reset == 0
    assert not await scene.bytes_land()
    await scene.unit.start()
    assert await scene.attach() == Status.RUNNING
    await scene.map_buffers(NBYTES)
    assert (await scene.accel.copy(SOURCE_IOVA, TARGET_IOVA, NBYTES)).status == CompletionStatus.OK


async def _write_anything(function: GuestFunction, bars: dict[int, list[range]], rng: random.Random) -> None:
    """One access a stopped VM's QEMU could still let through: registers, doorbells, bus master, resets."""
    match rng.randrange(12):
        case 0:
            await function.bus_master(rng.random() < 0.7)
        case 1:
            await function.client.reset()
        case 2:
            await function.client.region_write(CONFIG_REGION, pci.COMMAND, rng.randbytes(2))
        case _:
            bar, nbytes = rng.choice(list(bars)), rng.choice([1, 2, 4, 8])
            offset = rng.choice(rng.choice(bars[bar])) // nbytes * nbytes
            await function.client.region_write(bar, offset, bytes([rng.choice([0, 1, 2, 15, 255])]) * nbytes)


async def test_nothing_written_to_the_functions_of_a_frozen_vm_changes_its_memory(
    scene: Scene, process: ServeProcess
) -> None:
    rng = random.Random(SEED)
    await scene.attach()
    await scene.start_long_fill()
    process.ask("freeze")
    scene.put(FILLED_GPA, bytes(FILLED_NBYTES))  # so that the fill's next byte would show
    before = zlib.crc32(scene.ram.view)

    for _ in range(NWRITES):
        if rng.random() < 0.5:
            await _write_anything(scene.unit, UNIT_BARS, rng)
        else:
            await _write_anything(scene.accel, ACCEL_BARS, rng)

    assert zlib.crc32(scene.ram.view) == before
    assert not any(scene.get(FILLED_GPA, FILLED_NBYTES))  # a fill that goes on may be done before the first hash


async def test_the_status_and_the_history_tell_who_froze_the_vm(scene: Scene, process: ServeProcess) -> None:
    since = process.next_event()
    answer = process.ask("freeze", by="a test")
    frozen = process.ask("query-status")["frozen"]
    process.ask("thaw", by="another test")

    assert answer["frozen"]["by"] == frozen["by"] == "a test"
    assert frozen["since"] == answer["frozen"]["since"]
    assert "frozen" not in process.ask("query-status")
    told = [(event["frozen"], event["by"]) for event in process.events("RunStateChanged", since=since)]
    assert told == [(True, "a test"), (False, "another test")]


def test_the_next_qemu_does_not_inherit_a_stop(tmp_path: Path) -> None:
    with serving(ONE_UNIT, tmp_path / "run") as process:
        with peer("hold", process) as popen:
            word(popen)
            process.ask("freeze", by="the launcher of a QEMU that dies")
        with peer("knock", process) as popen:
            answer = word(popen)
        status = process.ask("query-status")

    assert answer == "admitted"
    assert "frozen" not in status
    assert not status["scheduler"]["paused"]
