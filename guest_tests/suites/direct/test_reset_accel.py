"""Resets of the accelerator: by its register, by its function; the IOMMU keeps what it knows of the endpoint."""

from __future__ import annotations

import zlib

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import READ, Accel, DmaArena, Viommu
from guest_tests.payload.direct.accel import RING_IOVA
from guest_tests.payload.fixtures import OpenAccel
from guest_tests.payload.host import Host

SOURCE, TARGET, PAGE = 0x1_0000, 0x20_0000, 4096
MIB = 1 << 20
POWER_ON = {
    engine.STATUS: 0,
    engine.CONTROL: 0,
    engine.RING_SIZE: 0,
    engine.RING_HEAD: 0,
    engine.RING_TAIL: 0,
    engine.ERROR: 0,
    engine.COMPLETED: 0,
    engine.FAULTED: 0,
}


def used_engine(accel: Accel) -> None:
    """Leave something in every register."""
    accel.run_all([Operation(engine.NOP), Operation(engine.FILL, dst=0xDEAD_0000, nbytes=8)])
    accel.registers.write32(engine.RING_TAIL, engine.RING_NENTRIES)


def registers_of(accel: Accel) -> dict[int, int]:
    """Those of POWER_ON, now."""
    return {offset: accel.registers.read32(offset) for offset in POWER_ON}


def test_the_reset_bit_puts_all_registers_to_their_power_on_values(mapped_accel: Accel) -> None:
    used_engine(mapped_accel)
    assert registers_of(mapped_accel) != POWER_ON

    mapped_accel.reset()

    assert registers_of(mapped_accel) == POWER_ON


def test_a_function_level_reset_does_so_too(mapped_accel: Accel) -> None:
    used_engine(mapped_accel)

    mapped_accel.function.flr()

    assert registers_of(mapped_accel) == POWER_ON


def test_the_reset_bit_keeps_device_memory(accel: Accel) -> None:
    accel.devmem.write64(0x100, 0x1122_3344_5566_7788)

    accel.reset()

    assert accel.devmem.read64(0x100) == 0x1122_3344_5566_7788


def test_a_function_level_reset_clears_device_memory(accel: Accel) -> None:
    accel.devmem.write64(0x100, 0x1122_3344_5566_7788)

    accel.function.flr()

    assert accel.devmem.read64(0x100) == 0


def test_no_byte_lands_after_the_reset_bit_under_load(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena, host: Host
) -> None:
    target = dma.alloc(2 * MIB)
    viommu.map_buffer(mapped_accel.domain, TARGET, target)
    work = [Operation(engine.FILL, dst=TARGET, nbytes=2 * MIB, arg=number) for number in range(1, 41)]
    mapped_accel.engine.submit(*work)

    mapped_accel.reset()
    just_after = target.read() + mapped_accel.ring.read()
    host.control("query-status")

    assert target.read() + mapped_accel.ring.read() == just_after


def test_no_byte_lands_after_a_function_level_reset_under_load(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    target = dma.alloc(2 * MIB)
    for number in range(16):  # the same memory again and again: an operation takes long
        viommu.map_buffer(mapped_accel.domain, (64 + 2 * number) * MIB, target)
    work = [Operation(engine.FILL, dst=64 * MIB, nbytes=32 * MIB, arg=number) for number in range(1, 61)]
    last = mapped_accel.engine.submit(*work)

    mapped_accel.function.flr()
    target.fill(0)

    assert mapped_accel.engine.status_of(last) == engine.PENDING
    assert not any(target.read())


def test_an_endpoint_that_was_reset_is_still_attached(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    page = dma.random(PAGE)
    viommu.map_buffer(mapped_accel.domain, SOURCE, page, READ)

    mapped_accel.function.flr()
    mapped_accel.start(RING_IOVA)

    assert mapped_accel.checksum(SOURCE, PAGE) == zlib.crc32(page.read())


def test_a_reset_of_one_accelerator_is_nothing_to_the_other(viommu: Viommu, open_accel: OpenAccel) -> None:
    first, second = (open_accel(number).start_in(viommu, domain=number + 1) for number in range(2))

    first.function.flr()

    second.nop()


def test_clearing_enable_stops_the_engine_and_keeps_its_counters(mapped_accel: Accel) -> None:
    mapped_accel.nop()

    mapped_accel.registers.write32(engine.CONTROL, 0)

    assert mapped_accel.registers.read32(engine.STATUS) == 0
    assert mapped_accel.registers.read32(engine.COMPLETED) == 1
