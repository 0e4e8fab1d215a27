"""The tables of docs/faults.md, from the tables of the code. Pure text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vdev.errors import ConfigError
from vdev.faults.actions import BOUND, FREE, POINTS, Action, Parameter
from vdev.faults.reactions import REACTIONS

BEGIN = "<!-- made by python -m vdev.faults: {name} -->"
END = "<!-- end of what is made -->"
_EVERY = "every"


def key_of(point: str, action: str) -> str:
    """What `REACTIONS` has an action under."""
    return action if action in FREE else f"{point}/{action}"


def rows() -> Iterator[tuple[str, str, Action]]:
    """Every action once: its point, or "every"; its name; itself. In the table's order."""
    for point, actions in BOUND.items():
        yield from ((point, name, action) for name, action in actions.items())
    yield from ((_EVERY, name, action) for name, action in FREE.items())


def with_tables(page: str) -> str:
    """`page` with each table between its markers made anew. ConfigError where a marker is missing."""
    for name, table in (("points", _points()), ("actions", _actions())):
        begin = BEGIN.format(name=name)
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(END)
        if not found or not closed:
            raise ConfigError("docs/faults.md", f"there is no {begin} with an end", "put both back")
        page = "\n".join([before + begin, "", *table, "", closed + after])
    return page


def _points() -> list[str]:
    lines = [
        [f"`{name}`", about, ", ".join(f"`{key}`" for key in sorted(keys)) or "nothing", _names(BOUND[name])]
        for name, (about, keys) in POINTS.items()
    ]
    return _table(["point", "an occurrence is", "`match` may name", "actions of its own"], lines)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _actions() -> list[str]:
    head = [
        "action",
        "point",
        "parameters",
        "undone by `clear`",
        "what stock Linux does",
        "what our guest library does",
    ]
    lines = []
    for point, name, action in rows():
        reaction = REACTIONS[key_of(point, name)]
        parameters = "<br>".join(_parameter(key, known) for key, known in action.parameters.items()) or "none"
        undone = f"**terminal**: {action.terminal}" if action.terminal else action.undone
        lines.append([f"`{name}`: {action.about}", point, parameters, undone, reaction.linux, reaction.library])
    return _table(head, lines)


def _parameter(name: str, parameter: Parameter) -> str:
    value = parameter.default
    shown = str(value).lower() if isinstance(value, bool) else f"{value:#x}" if _is_large(value) else str(value)
    optional = "" if parameter.required else f" (default {shown})" if value is not None else " (may be left out)"
    return f"`{name}`{optional}: {parameter.about}; {parameter.values}"


def _is_large(value: object) -> bool:
    return isinstance(value, int) and value >= 0x40


def _table(head: list[str], lines: Iterable[list[str]]) -> list[str]:
    return [_line(head), "|" + "---|" * len(head), *map(_line, lines)]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
