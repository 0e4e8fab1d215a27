"""docs/monitor-commands.md: every command, type and event of the schema, for people. Pure text."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from vdev.qapi.model import Builtin, Command, Enum, Event, ListOf, Member, Schema, Struct, Type
from vdev.qapi.words import to_words

_DEFAULT = re.compile(r" ?\(default:? ([^()]+)\)")
_BUILTINS = {
    "str": "string",
    "bool": "boolean",
    "int": "integer",
    "uint32": "integer of 32 bits",
    "uint64": "integer of 64 bits",
    "number": "number",
    "any": "any value",
}
_INTRODUCTION = """\
# Monitor commands

<!-- Made from vdev/qapi/vdev.qapi by `python -m vdev.qapi`; a test compares them. Change the schema, not this page. -->

vdev adds commands and events of its own to QEMU's monitor. They are the same in three places:

| where | how a command is spelled | for whom |
|---|---|---|
| `monitor.sock` in the VM's runtime directory | `{prefix}NAME` | who speaks QMP: `qmp-shell`, `QMPClient` |
| `control.sock` there: one JSON object a line | `NAME` | launchers, tests |
| [`vdev ctl`](ctl.md), which takes the one that is there | `NAME --member value ...` | people |

`monitor.sock` is QEMU's monitor and ours in one. The bridge serves it: `qmp-bridge up`, or `qmp-bridge attach` for a
QEMU that somebody else started. Commands that need QEMU as well are only there.

Arguments are checked by this schema and refused in QEMU's words, such as `Parameter 'x' is unexpected`. Whatever else
is refused says the rule, the value and the cure. Errors have QMP's classes; programs must not parse their text.
On QMP `query-qmp-schema` and `query-commands` describe our commands as they do QEMU's.

A member that is marked optional and has nothing to say is absent, never null. Addresses and sizes are in bytes; the
`end` of a range is its last address. Members of type "any value" are not promised: they change with vdev's versions.
"""


def page(schema: Schema) -> str:
    """The whole page, with a newline at its end."""
    return "\n".join([*_introduction(schema), *_body(schema)]).rstrip("\n") + "\n"


def _introduction(schema: Schema) -> Iterator[str]:
    yield _INTRODUCTION.replace("{prefix}", schema.prefix)
    yield "## Contents"
    yield ""
    for heading in schema.headings:
        commands = [f"[{name}](#{name})" for name, found in schema.commands.items() if found.heading == heading]
        events = [f"[{name}](#{name.lower()})" for name, found in schema.events.items() if found.heading == heading]
        yield f"* [{heading}](#{_anchor(heading)}): {', '.join(commands + events)}"
    yield ""


def _body(schema: Schema) -> Iterator[str]:
    """Each type comes after the first command or event that uses it."""
    shown: set[str] = set()
    for heading in schema.headings:
        yield from (f"## {heading}", "")
        for command in schema.commands.values():
            if command.heading == heading:
                yield from _command(schema, command)
                returned = [command.returns] if command.returns is not None else []
                yield from _types([*_types_of(command.arguments), *returned], shown)
        for event in schema.events.values():
            if event.heading == heading:
                yield from _event(schema, event)
                yield from _types(_types_of(event.members), shown)


def _command(schema: Schema, command: Command) -> Iterator[str]:
    yield from (f"### {command.name}", "", _text(command.doc), "")
    if command.bridge_only:
        yield from ("Needs QEMU's monitor as well: on the bridge's `monitor.sock` only.", "")
    if command.control_only:
        yield from ("On vdev's `control.sock` only.", "")
    yield from _members("argument", command.arguments, "Takes no arguments.")
    yield f"Returns {_article(command.returns)}." if command.returns is not None else "Returns nothing: `{}`."
    yield ""
    if command.errors:
        yield "Refused when:"
        yield ""
        yield from (f"* {_text(error)}" for error in command.errors)
        yield ""
    for example in command.examples or ("{}",):
        yield from _example(schema, command, json.loads(example))


def _example(schema: Schema, command: Command, arguments: dict[str, Any]) -> Iterator[str]:
    execute = command.name if command.control_only else schema.prefix + command.name
    message = {"execute": execute, **({"arguments": arguments} if arguments else {})}
    yield from ("```", json.dumps(message), "```", "")
    yield from ("```", shlex.join(["vdev", "ctl", command.name, *to_words(command, arguments)]), "```", "")


def _event(schema: Schema, event: Event) -> Iterator[str]:
    yield from (f"### {event.name}", "", f"On QMP: `{schema.prefix}{event.name}`. {_text(event.doc)}", "")
    yield from _members("member", event.members, "It has no data.")


def _types(used: Iterable[Type], shown: set[str]) -> Iterator[str]:
    for given in used:
        while isinstance(given, ListOf):
            given = given.item
        if isinstance(given, Builtin) or given.name in shown:
            continue
        shown.add(given.name)
        yield from (f'#### <a id="type-{given.name.lower()}"></a>{given.name}', "")
        if given.doc:
            yield from (_text(given.doc), "")
        if isinstance(given, Enum):
            yield from _values(given)
        else:
            yield from _members("member", given.members, "An object without members.")
            yield from _types(_types_of(given.members), shown)


def _values(given: Enum) -> Iterator[str]:
    if not any(value.doc for value in given.values):
        yield from ("One of " + ", ".join(f"`{value.name}`" for value in given.values) + ".", "")
        return
    yield from ("| value | |", "|---|---|")
    yield from (f"| `{value.name}` | {_cell(value.doc)} |" for value in given.values)
    yield ""


def _members(word: str, members: tuple[Member, ...], none: str) -> Iterator[str]:
    if not members:
        yield from (none, "")
        return
    with_default = any(_DEFAULT.search(member.doc) for member in members)
    yield f"| {word} | type | | default |" if with_default else f"| {word} | type | |"
    yield "|---|---|---|---|" if with_default else "|---|---|---|"
    for member in members:
        kind = _type(member.type) + (", optional" if member.optional else "")
        default = _DEFAULT.search(member.doc)
        text = _cell(_DEFAULT.sub("", member.doc))
        row = f"| `{member.name}` | {kind} | {text} |"
        yield row + f" {_cell(default[1]) if default else ''} |" if with_default else row
    yield ""


def _types_of(members: tuple[Member, ...]) -> list[Type]:
    return [member.type for member in members]


def _type(given: Type) -> str:
    match given:
        case Builtin():
            return _BUILTINS[given.name]
        case ListOf():
            return f"list of {_type(given.item)}"
        case Enum() | Struct():
            return f"[{given.name}](#type-{given.name.lower()})"


def _article(given: Type) -> str:
    return ("a " if isinstance(given, ListOf) else "") + _type(given)


def _text(doc: str) -> str:
    """@name is how a schema's comments name a member."""
    return re.sub(r"@([a-z][a-z0-9-]*)", r"`\1`", doc)


def _cell(doc: str) -> str:
    return _text(doc).replace("\n", " ").replace("|", "\\|")


def _anchor(heading: str) -> str:
    """The anchor forges make of a heading."""
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
