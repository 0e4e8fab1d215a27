"""Results as one SVG: a panel a row, a line a contender, a dot a round, a bar to the median. Pure; no library.

Every panel begins at zero and has one scale, so that lengths may be compared within it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import floor, log10
from xml.sax.saxutils import escape

from benchmarks.results import Results
from benchmarks.rows import ROWS, Row
from benchmarks.summary import contenders_in, cpus_in, spread, values
from benchmarks.table import TITLES, vcpus
from benchmarks.text import number

WIDTH, MARGIN, GAP = 1180, 28, 36
NCOLUMNS = 2
HEADER_HEIGHT, FOOTER_HEIGHT = 92, 30
TITLE_HEIGHT, GROUP_HEIGHT, LINE_HEIGHT, AXIS_HEIGHT, PANEL_GAP = 30, 22, 21, 24, 26
LABEL_WIDTH, VALUE_WIDTH = 128, 62
NTICKS = 4
COLOURS = {
    "vdev-vfio-user": "#2563eb",
    "vdev-vhost-user": "#0891b2",
    "virtio-iommu-pci": "#d97706",
    "intel-iommu": "#78716c",
}
STYLE = """\
text { font: 12px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1c1917 }
.h { font-size: 19px; font-weight: 600 } .t { font-size: 14px; font-weight: 600 }
.s { fill: #57534e } .g { fill: #57534e; font-size: 11px; font-weight: 600 } .a { fill: #78716c; font-size: 10.5px }
.e { text-anchor: end } .m { text-anchor: middle } .v { font-weight: 600; text-anchor: end }"""


def svg(results: Results) -> str:
    """The picture, to be written to a file as it is."""
    contenders, groups = contenders_in(results), cpus_in(results)
    shown = [row for row in ROWS if row.name != "identity"]
    height = TITLE_HEIGHT + len(groups) * (GROUP_HEIGHT + len(contenders) * LINE_HEIGHT) + AXIS_HEIGHT
    nrows = -(-len(shown) // NCOLUMNS)
    total = HEADER_HEIGHT + nrows * (height + PANEL_GAP) + FOOTER_HEIGHT
    width = (WIDTH - 2 * MARGIN - (NCOLUMNS - 1) * GAP) / NCOLUMNS
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{total}" viewBox="0 0 {WIDTH} {total}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{total}" fill="#ffffff"/>',
        *_header(results, contenders),
    ]
    for index, row in enumerate(shown):
        x = MARGIN + index % NCOLUMNS * (width + GAP)
        y = HEADER_HEIGHT + index // NCOLUMNS * (height + PANEL_GAP)
        parts.append(f'<g transform="translate({x:.1f},{y})">')
        parts += _panel(results, row, contenders, groups, width)
        parts.append("</g>")
    others = f"others kept up to {results.others:.2f} CPUs busy"
    about = f"{results.date} · commit {results.commit} · {results.machine.cpu} · {others}"
    parts += [_text(MARGIN, total - 14, about, "a"), "</svg>"]
    return "\n".join(parts) + "\n"


def _header(results: Results, contenders: Sequence[str]) -> Iterator[str]:
    yield _text(MARGIN, 34, "The IOMMU in front of a stock Linux guest: vdev and QEMU's own", "h")
    if (setup := results.setup) is not None:
        count = max([0, *(sample.round for sample in results.samples)])
        rounds = f"{count} round{'s' if count != 1 else ''}"
        about = f"QEMU {setup.qemu} ({setup.accel}), guest Linux {setup.guest_kernel}, strict; {rounds}, interleaved"
        yield _text(MARGIN, 55, about, "s")
    x = float(MARGIN)
    for name in contenders:
        title = TITLES.get(name, name)
        yield f'<rect x="{x:.1f}" y="66" width="12" height="12" rx="2" fill="{_colour(name)}"/>'
        yield _text(x + 18, 76, title, "s")
        x += 34 + 7.0 * len(title)
    yield _text(x + 10, 76, "bar: median; dot: one round", "a")


def _panel(results: Results, row: Row, contenders: Sequence[str], groups: Sequence[int], width: float) -> Iterator[str]:
    better = "higher is better" if row.higher_is_better else "lower is better"
    yield _text(0, 16, row.title, "t")
    yield _text(width, 16, f"{row.unit} · {better}", "a e")
    everything = [v for cpus in groups for name in contenders for v in values(results, row.name, name, cpus)]
    step, top = scale(max([*everything, 0.0]))
    left, inner = LABEL_WIDTH, width - LABEL_WIDTH - VALUE_WIDTH
    bottom = TITLE_HEIGHT + len(groups) * (GROUP_HEIGHT + len(contenders) * LINE_HEIGHT)
    for tick in range(round(top / step) + 1):
        x = left + inner * tick * step / top
        yield f'<path d="M{x:.1f} {TITLE_HEIGHT}V{bottom}" stroke="{"#a8a29e" if tick == 0 else "#e7e5e4"}"/>'
        yield _text(x, bottom + 15, f"{tick * step:g}", "a m")
    y = float(TITLE_HEIGHT)
    for cpus in groups:
        yield _text(0, y + 15, vcpus(cpus), "g")
        y += GROUP_HEIGHT
        for name in contenders:
            yield _text(left - 8, y + 14, TITLES.get(name, name), "s e")
            yield from _line(results, row, (name, cpus), y, (left, inner / top))
            found = spread(results, row.name, name, cpus)
            yield _text(width, y + 14, number(found.median) if found else "failed", "v")
            y += LINE_HEIGHT


def _line(results: Results, row: Row, who: tuple[str, int], y: float, place: tuple[float, float]) -> Iterator[str]:
    """The bar and the dots of one contender; `place` is where zero is, and pixels a unit. Below zero is zero."""
    left, factor = place
    found, colour = spread(results, row.name, *who), _colour(who[0])
    if found is None:
        return
    yield (
        f'<rect x="{left:.1f}" y="{y + 4:.1f}" width="{max(found.median, 0) * factor:.1f}" height="12" rx="1.5" '
        f'fill="{colour}" fill-opacity="0.28"/>'
    )
    middle = left + max(found.median, 0) * factor
    yield f'<path d="M{middle:.1f} {y + 2:.1f}v16" stroke="{colour}" stroke-width="2.5"/>'
    for value in values(results, row.name, *who):
        x = left + max(value, 0) * factor
        yield f'<circle cx="{x:.1f}" cy="{y + 10:.1f}" r="3" fill="{colour}" fill-opacity="0.75"/>'


def scale(highest: float) -> tuple[float, float]:
    """Distance of ticks (1, 2 or 5 times a power of ten) and the end of an axis that holds `highest`."""
    if highest <= 0:
        return 1.0, 1.0
    rough = highest / NTICKS
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return step, step * -(-highest // step)


def _colour(contender: str) -> str:
    return COLOURS.get(contender, "#000000")


def _text(x: float, y: float, words: str, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{escape(words)}</text>'
