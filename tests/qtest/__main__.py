"""Measure anew: writes answers.yaml and the table in docs/qtest.md."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.qtest.answers import FILE, MARK, PAGE, load, measure, measure_dma, table
from tests.qtest.dma_probes import writer
from tests.qtest.subjects import ours, qemus_own

with (
    tempfile.TemporaryDirectory() as first,
    tempfile.TemporaryDirectory() as second,
    qemus_own(Path(first)) as theirs,
    ours(Path(second)) as units,
    tempfile.TemporaryDirectory() as third,
    writer(Path(third)) as (subject, registers),
):
    FILE.write_text(measure({**theirs, **units}) + measure_dma(subject, registers), encoding="utf-8")
PAGE.write_text(PAGE.read_text(encoding="utf-8").split(MARK)[0] + MARK + table(load()), encoding="utf-8")
