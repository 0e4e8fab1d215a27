"""DMA from before any driver exists: under `isolation: required` no byte of RAM changes, under `preferred` it lands.

All software there is, after SeaBIOS, is a boot sector (guest_tests/bare_metal.py). It finds the accelerator, stores
rings in RAM and starts the engine; `tests/support/firmware_scene.py` says when RAM is hashed. That the hashes can
differ is what `preferred` shows: by the same steps exactly the pages named change.

Blocked, the engine gets no further than its first access, the fetch of a descriptor. More cannot be tried without a
driver: there is no memory the engine may read a descriptor from. So the program then becomes a driver itself, maps a
ring and little else, and tries the other accesses one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from guest_tests.payload.direct import Status
from tests.support.firmware_dma import (
    ELSEWHERE,
    ERROR_INTERRUPT,
    FAR,
    HIGH,
    INTERRUPT,
    LOW,
    OPERANDS,
    PROGRAMS,
    SECRET,
    STOLEN,
    Outcome,
    Program,
)
from tests.support.firmware_scene import Attempt, Fault, Story, tell
from tests.support.firmware_session import RING, session
from vdev.config import ATTACHMENTS

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

READ, WRITE = 1, 2
NO_RING = [Outcome.no_ring(program) for program in PROGRAMS]
RING_FAULTS: list[Fault] = [("no-domain", READ, program.ring) for program in PROGRAMS]
LANDED = Attempt(
    outcomes=[Outcome.done(len(program.operations)) for program in PROGRAMS],
    changed=HIGH.pages | LOW.pages,
    faults=[],
)
OPERAND_FAULTS: list[Fault] = [
    ("not-mapped", WRITE, FAR),
    ("not-mapped", READ, SECRET),
    ("not-mapped", WRITE, STOLEN),
    ("not-mapped", READ, SECRET),
    ("not-mapped", READ, SECRET),
]


SESSION_ANSWERS = 6  # rows of the page's session that say what is answered
BY_HAND: Fault = ("no-domain", READ, RING)


def blocked(programs: Sequence[Program] = PROGRAMS) -> Attempt:
    """Not a byte: neither the ring is read, nor the interrupt written that tells of it."""
    faults = [
        fault
        for program in programs
        for fault in (("no-domain", READ, program.ring), ("no-domain", WRITE, ERROR_INTERRUPT))
    ]
    return Attempt(outcomes=[Outcome.no_ring(program) for program in programs], changed=set(), faults=faults)


@pytest.fixture(scope="module", params=ATTACHMENTS)
def required(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    return asyncio.run(tell("required", request.param, tmp_path_factory.mktemp("firmware")))


@pytest.fixture(scope="module", params=ATTACHMENTS)
def preferred(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    return asyncio.run(tell("preferred", request.param, tmp_path_factory.mktemp("firmware")))


def test_the_session_of_the_page_goes_as_it_says_under_preferred(preferred: Story) -> None:
    expected = [(row.typed, row.preferred) for row in session() if row.preferred]

    found = [(row.typed, answers) for row, answers in zip(session(), preferred.by_hand, strict=True) if row.preferred]

    assert found == expected
    assert len(expected) == SESSION_ANSWERS


def test_the_session_of_the_page_goes_as_it_says_under_required(required: Story) -> None:
    expected = [(row.typed, row.required) for row in session() if row.required]

    found = [(row.typed, answers) for row, answers in zip(session(), required.by_hand, strict=True) if row.required]

    assert found == expected
    assert len(expected) == SESSION_ANSWERS


def test_under_preferred_firmware_time_dma_lands_where_it_was_aimed_and_nowhere_else(preferred: Story) -> None:
    assert preferred.firmware == LANDED
    assert preferred.records_due == []


def test_under_required_no_byte_of_ram_changes_and_the_fault_is_logged(required: Story) -> None:
    assert required.firmware == blocked()
    for reason, access, iova in required.firmware.faults:
        assert (
            f"FaultRaised unit=iommu0 endpoint=01:00.0 reason={reason} access={access} iova={iova:#x}" in required.log
        )


def test_a_driver_to_come_has_the_fault_records(required: Story) -> None:
    flags = {READ: ["read"], WRITE: ["write"]}

    faults = [BY_HAND, *required.firmware.faults]
    assert required.records_due == [("domain", flags[access], iova) for _, access, iova in faults]


def test_the_trace_has_the_faults_too(required: Story) -> None:
    words = {READ: "read", WRITE: "write"}
    faults = [BY_HAND, *required.firmware.faults]

    shown = [" ".join(line.split()[1:]) for line in required.trace[: len(faults)]]

    assert shown == [
        f"iommu0 FAULT 01:00.0 (accel0) {words[access]} {iova:#012x} {why}" for why, access, iova in faults
    ]


def test_under_required_nothing_is_read_where_there_is_no_ram_either(required: Story) -> None:
    assert required.elsewhere == blocked(ELSEWHERE)


def test_under_required_neither_a_write_by_hand_nor_a_driver_who_takes_all_there_is_opens_it(required: Story) -> None:
    assert required.bypass_bytes == [0, 0, 0]
    assert not required.bypass_offered
    assert required.bypass_domain == Status.INVAL
    assert required.beside_a_driver == blocked()


def test_under_preferred_the_byte_is_the_drivers_to_clear(preferred: Story) -> None:
    assert preferred.bypass_bytes == [1, 1, 1]
    assert preferred.bypass_offered
    assert preferred.beside_a_driver == LANDED
    assert preferred.left_alone is not None
    assert (preferred.left_alone.outcomes, preferred.left_alone.faults) == (NO_RING, RING_FAULTS)


def test_of_a_domain_with_a_ring_every_other_access_is_refused_by_itself(required: Story) -> None:
    assert required.operands == Attempt(
        outcomes=[Outcome.done(len(OPERANDS.operations), faulted=len(OPERANDS.operations))],
        changed={OPERANDS.completions},
        faults=[found for fault in OPERAND_FAULTS for found in (fault, ("not-mapped", WRITE, INTERRUPT))],
    )
    assert required.completions == Attempt(
        outcomes=[Outcome("COMPLETION_WRITE", OPERANDS.completions, 0, 0)],
        changed=set(),
        faults=[("not-mapped", WRITE, iova) for iova in (FAR, OPERANDS.completions, ERROR_INTERRUPT)],
    )


def test_under_required_an_endpoint_whose_driver_left_is_blocked(required: Story) -> None:
    assert required.left_alone == blocked()


def test_under_required_a_machine_that_was_reset_is_blocked_again_with_its_processor_halted(required: Story) -> None:
    assert required.after_reset == blocked()


def test_under_preferred_a_reset_brings_the_boot_value_of_bypass_back(preferred: Story) -> None:
    assert preferred.after_reset == LANDED


def test_under_preferred_an_interrupt_is_qemus_and_writes_where_the_vector_table_says(preferred: Story) -> None:
    """So it is no access the IOMMU is asked about (docs/isolation.md)."""
    assert preferred.left_alone is not None
    assert preferred.left_alone.changed == {INTERRUPT}
