"""docs/benchmarks.md: its text is written by hand, the table of the committed baseline between two marks by us."""

from __future__ import annotations

from pathlib import Path

from benchmarks import table
from benchmarks.compare import BUSY
from benchmarks.describe import ROOT
from benchmarks.results import Results, ResultsError

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- baseline: written by `make bench BASELINE=1` -->", "<!-- end of the baseline -->"


def update(results: Results, page: Path = PAGE) -> Path:
    """Put the baseline's table in its place on the page. Raises ResultsError where the marks are gone."""
    page.write_text(with_table(page.read_text(encoding="utf-8"), results), encoding="utf-8")
    return page


def with_table(text: str, results: Results) -> str:
    """The page's text with the table of `results` between the marks. Raises ResultsError."""
    before, found_begin, rest = text.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not found_begin or not found_end:
        raise ResultsError(f"{PAGE.name}: the lines {BEGIN!r} and {END!r} are not there")
    shown = "\n".join(table.lines(results))
    return f"{before}{BEGIN}\n\n{_warning(results)}```\n{shown}\n```\n\n{END}{after}"


def _warning(results: Results) -> str:
    """What must stand above the numbers of a machine that had other things to do."""
    if results.others <= BUSY:
        return ""
    others = f"others kept up to {results.others:.2f} of its {results.machine.cores} CPUs busy during a VM"
    return f"**Taken on a busy machine: {others}. These numbers describe that, and are to be taken again.**\n\n"
