"""Interrupts of the accelerator: vector 0 for completions that ask for it, vector 1 for errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import Accel, DmaArena, Viommu
from guest_tests.payload.direct.accel import RING_IOVA
from guest_tests.payload.direct.msix import MsixTable, Vector
from guest_tests.payload.host import Host

NOTHING = 0x3_0000
CLOCKS = Path("/sys/devices/system/clocksource/clocksource0/available_clocksource")
NOP_WITH_INTERRUPT = Operation(engine.NOP, flags=engine.FLAG_IRQ)


@dataclass
class Interrupting:
    """An accelerator in a domain, its interrupts enabled, and its two vectors."""

    accel: Accel
    table: MsixTable

    @property
    def completion(self) -> Vector:
        return self.table.vectors[0]

    @property
    def error(self) -> Vector:
        return self.table.vectors[1]

    def enable(self, enabled: bool) -> None:
        """IRQ_ENABLE, of an engine that runs."""
        bit = engine.IRQ_ENABLE if enabled else 0
        self.accel.registers.write32(engine.CONTROL, engine.ENABLE | bit)


@pytest.fixture(autouse=True)
def _messages_reach_memory() -> None:
    if "kvm-clock" in CLOCKS.read_text():
        pytest.skip("KVM takes a message for an interrupt wherever it is addressed, and memory never sees it")


@pytest.fixture
def interrupting(mapped_accel: Accel, dma: DmaArena) -> Iterator[Interrupting]:
    """With the table disabled afterwards."""
    table = MsixTable(mapped_accel.function, dma)
    found = Interrupting(mapped_accel, table)
    found.enable(True)
    yield found
    mapped_accel.reset()
    table.close()


def settle(host: Host) -> None:
    """An interrupt the device has raised by now has arrived when the host's answer has: both pass through QEMU."""
    host.control("query-status")


def test_a_completion_that_asks_for_it_interrupts(interrupting: Interrupting) -> None:
    interrupting.accel.do(NOP_WITH_INTERRUPT)

    assert interrupting.completion.wait()


def test_the_completion_is_in_memory_when_its_interrupt_comes(interrupting: Interrupting) -> None:
    index = interrupting.accel.engine.submit(NOP_WITH_INTERRUPT)

    assert interrupting.completion.wait()
    assert interrupting.accel.engine.status_of(index) == engine.OK


def test_a_completion_that_does_not_ask_does_not_interrupt(interrupting: Interrupting, host: Host) -> None:
    interrupting.accel.nop()
    settle(host)

    assert not interrupting.completion.has_fired


def test_a_completion_does_not_fire_the_vector_of_errors(interrupting: Interrupting, host: Host) -> None:
    interrupting.accel.do(NOP_WITH_INTERRUPT)
    settle(host)

    assert not interrupting.error.has_fired


def test_a_refused_operation_interrupts_as_well(interrupting: Interrupting) -> None:
    operation = Operation(engine.FILL, dst=NOTHING, nbytes=8, flags=engine.FLAG_IRQ)

    completion = interrupting.accel.run(operation)

    assert completion.status == engine.TRANSLATION_FAULT
    assert interrupting.completion.wait()


def test_without_irq_enable_no_completion_interrupts_nor_is_made_up_for(interrupting: Interrupting, host: Host) -> None:
    interrupting.enable(False)
    interrupting.accel.do(NOP_WITH_INTERRUPT)

    interrupting.enable(True)
    settle(host)

    assert not interrupting.completion.has_fired


def test_an_error_fires_the_vector_of_errors_alone(interrupting: Interrupting, host: Host) -> None:
    interrupting.accel.registers.write32(engine.RING_TAIL, engine.RING_NENTRIES)

    assert interrupting.error.wait()
    settle(host)
    assert not interrupting.completion.has_fired


def test_without_irq_enable_no_error_interrupts(interrupting: Interrupting, host: Host) -> None:
    interrupting.enable(False)

    interrupting.accel.registers.write32(engine.RING_TAIL, engine.RING_NENTRIES)
    settle(host)

    assert interrupting.accel.error == engine.ERROR_BAD_TAIL
    assert not interrupting.error.has_fired


def test_a_masked_completion_vector_is_held_back_and_fires_when_unmasked(
    interrupting: Interrupting, host: Host
) -> None:
    vector = interrupting.completion
    vector.mask()
    interrupting.accel.do(NOP_WITH_INTERRUPT)
    settle(host)
    seen_masked = vector.has_fired

    vector.unmask()

    assert not seen_masked
    assert vector.wait()


def test_masking_one_vector_leaves_the_other_alone(interrupting: Interrupting) -> None:
    interrupting.completion.mask()

    interrupting.accel.registers.write32(engine.RING_TAIL, engine.RING_NENTRIES)

    assert interrupting.error.wait()
    interrupting.completion.unmask()


def test_messages_are_not_translated_by_the_iommu(interrupting: Interrupting, viommu: Viommu, dma: DmaArena) -> None:
    # The message is the machine's write, not DMA of the engine's: what its domain has at that address is not meant.
    page, iova = dma.alloc(), interrupting.table.buffer.gpa & ~0xFFF
    viommu.map_buffer(interrupting.accel.domain, iova, page)

    interrupting.accel.do(NOP_WITH_INTERRUPT)

    assert interrupting.completion.wait()
    assert not any(page.read())


def test_without_bus_master_no_error_interrupts(interrupting: Interrupting, host: Host) -> None:
    function = interrupting.accel.function
    function.bus_master(False)

    interrupting.accel.registers.write32(engine.RING_TAIL, 1)
    settle(host)
    seen = (interrupting.accel.error, interrupting.error.has_fired)
    function.bus_master(True)

    assert seen == (engine.ERROR_NOT_RUNNING, False)


def test_bus_master_taken_away_halts_without_an_interrupt(interrupting: Interrupting, host: Host) -> None:
    interrupting.accel.function.bus_master(False)
    interrupting.accel.function.bus_master(True)
    settle(host)

    assert interrupting.accel.error == engine.ERROR_BUS_MASTER_OFF
    assert not interrupting.error.has_fired


def test_after_a_function_level_reset_interrupts_come_once_they_are_programmed(interrupting: Interrupting) -> None:
    accel = interrupting.accel
    accel.function.flr()
    interrupting.table.program()
    accel.start(RING_IOVA)
    interrupting.enable(True)

    accel.do(NOP_WITH_INTERRUPT)

    assert interrupting.completion.wait()


def test_an_interrupt_of_before_a_pause_comes_after_it(interrupting: Interrupting, host: Host) -> None:
    interrupting.accel.engine.submit(*[Operation(engine.NOP)] * 40, NOP_WITH_INTERRUPT)

    host.pause(0.05)

    assert interrupting.completion.wait()
