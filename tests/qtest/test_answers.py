"""Every device still answers every probe as answers.yaml says, and the page says the same."""

from __future__ import annotations

import pytest

from guest_tests.payload.bar import Registers
from tests.conformance.table import load_table
from tests.qtest.answers import MARK, PAGE, column, load, table
from tests.qtest.asker import PROBES, answer_of
from tests.qtest.dma_probes import DMA_PROBES, dma_answer
from tests.qtest.subjects import Subject

ROWS = load()


@pytest.mark.parametrize("id", [id for id in ROWS if id not in DMA_PROBES])
def test_the_answer_is_the_recorded_one(subject: Subject, id: str) -> None:
    expected = column(ROWS[id], subject)

    answer = answer_of(subject, id)

    assert answer == expected, f"{id} ({ROWS[id]['asks']}) is answered otherwise by {subject.name}"


@pytest.mark.parametrize("id", DMA_PROBES)
def test_dma_behind_qemus_device_does_what_is_recorded(dma: tuple[Subject, Registers], id: str) -> None:
    subject, registers = dma

    answer = dma_answer(subject, registers, id)

    assert answer == ROWS[id]["qemu"], f"{id} ({ROWS[id]['asks']}) is another with this QEMU"


def test_every_probe_has_its_row_and_every_row_its_clause() -> None:
    clauses = {clause.id for section in load_table() for clause in section.clauses}

    assert set(ROWS) == set(PROBES) | set(DMA_PROBES)
    assert set(ROWS) <= clauses


def test_the_page_has_the_recorded_answers() -> None:
    generated = PAGE.read_text(encoding="utf-8").split(MARK)[1]

    assert generated == table(ROWS), "run: python -m tests.qtest"
