"""Numbers and columns as text. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.summary import Spread

NOTHING = "-"


def number(value: float) -> str:
    """Three digits that count, without an exponent."""
    size = abs(value)
    return f"{value:.{0 if size >= 99.95 else 1 if size >= 9.995 else 2}f}"


def with_spread(found: Spread | None) -> str:
    """Median, and lowest and highest where there was more than one."""
    if found is None:
        return NOTHING
    rest = f" [{number(found.low)}..{number(found.high)}]" if found.count > 1 else ""
    return number(found.median) + rest


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
