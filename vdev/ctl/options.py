"""The command line of `vdev ctl`, made from the schema: a sub-command for each command, an option for each argument."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vdev.config.text import parse_yaml
from vdev.errors import ConfigError
from vdev.qapi.model import Builtin, Command, Enum, ListOf, Member, Schema, Type
from vdev.qapi.words import from_words, is_plain, option

EVENTS = "events"  # a better name for people than events-follow
_FOLLOW = "events-follow"
PASID = "vdev ctl pasid list|show|quota|reclaim: PASIDs of one VM, or of all of the host, as tables (--help)"
FAULT = "vdev ctl fault add|load|list|log|remove|release|clear|actions: faults, injected (--help)"
_WIDTH = 110
_STATUS = "exit status: 0, 1 the command was refused or not answered, 2 the input is wrong"


def parser(schema: Schema) -> argparse.ArgumentParser:
    """What it parses has `command` (a name of the schema), the members by `name_of`, and where to connect."""
    found = argparse.ArgumentParser(
        prog="vdev ctl",
        usage="vdev ctl [--runtime-dir DIR | --socket PATH] [--json] COMMAND [--member VALUE ...]",
        description="The monitor's commands on the command line. COMMAND --help says what one does and takes.",
        epilog=_overview(schema),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common(found, None)
    commands = found.add_subparsers(dest="given", metavar="COMMAND", required=True, title="commands", prog="vdev ctl")
    for command in schema.commands.values():
        aliases = [EVENTS] if command.name == _FOLLOW else []
        one = commands.add_parser(
            command.name,
            aliases=aliases,
            description=_described(command),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        one.set_defaults(command=command.name)
        _add_common(one, argparse.SUPPRESS)
        arguments = one.add_argument_group("arguments of the command") if command.arguments else one
        for member in command.arguments:
            _add_member(arguments, member)
    return found


def _add_common(found: argparse.ArgumentParser, default: Any) -> None:
    """On both levels, so that they may stand on either side of COMMAND."""
    where = found.add_mutually_exclusive_group()
    where.add_argument(
        "--runtime-dir", type=Path, metavar="DIR", default=default,
        help="the VM's: monitor.sock there, or control.sock (default: the one VM that runs)",
    )  # fmt: skip
    where.add_argument(
        "--socket", type=Path, metavar="PATH", default=default, help="control.sock, or a monitor by another name"
    )
    found.add_argument(
        "--json", action="store_true", default=False if default is None else default, help="the reply as it came"
    )


def name_of(member: Member) -> str:
    """Where the words of a member are in what was parsed."""
    return f"member {member.name}"


def arguments_of(command: Command, given: argparse.Namespace) -> dict[str, Any]:
    """The arguments as QMP has them. ArgumentError for a word that is no value of its type."""
    found = {}
    for member in command.arguments:
        words: list[str] | None = getattr(given, name_of(member))
        if words is not None:
            found[member.name] = from_words(member, words, _read)
    return found


def _add_member(found: argparse._ActionsContainer, member: Member) -> None:
    text = _plain(member.doc)
    if isinstance(member.type, Enum):
        text += ": " + ", ".join(value.name for value in member.type.values)
    more: dict[str, Any] = {}
    if member.type == Builtin("bool"):
        more = {"nargs": "?", "const": "true"}
    found.add_argument(
        option(member),
        dest=name_of(member),
        action="append",
        required=not member.optional,
        metavar=_metavar(member.type),
        help=text.replace("%", "%%"),
        **more,
    )


def _metavar(given: Type) -> str:
    if isinstance(given, ListOf):
        return f"{_metavar(given.item)},..." if is_plain(given.item) else "JSON"
    if isinstance(given, Enum):
        return "WORD"
    if isinstance(given, Builtin):
        return {"str": "TEXT", "bool": "BOOL", "number": "NUMBER", "any": "JSON"}.get(given.name, "NUMBER")
    return "JSON"


def _read(text: str) -> Any:
    """JSON, or YAML as configurations have it: hexadecimal numbers and words without quotes are welcome."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return parse_yaml(text)
    except ConfigError as error:
        raise ValueError(error.problem) from None


def _overview(schema: Schema) -> str:
    found = []
    for heading in schema.headings:
        commands = [command for command in schema.commands.values() if command.heading == heading]
        if commands:
            found += ["", f"{heading}:"]
            found += [_entry(EVENTS if command.name == _FOLLOW else command.name, command) for command in commands]
    return "\n".join([*found, "", PASID, FAULT, "", _STATUS]).lstrip("\n")


def _entry(name: str, command: Command) -> str:
    summary = _plain(command.doc).split(". ")[0].split(": ")[0].rstrip(".")
    return f"  {name:<17} {textwrap.shorten(summary, _WIDTH - 20, placeholder=' ...')}"


def _described(command: Command) -> str:
    paragraphs = [textwrap.fill(_plain(part), _WIDTH) for part in command.doc.split("\n\n")]
    if command.bridge_only:
        paragraphs.append("Needs a bridge: QEMU's monitor and vdev in one (qmp-bridge up, qmp-bridge attach).")
    if command.errors:
        errors: Sequence[str] = [
            textwrap.fill(_plain(error), _WIDTH, initial_indent="  * ", subsequent_indent="    ")
            for error in command.errors
        ]
        paragraphs.append("\n".join(["refused when:", *errors]))
    return "\n\n".join(paragraphs)


def _plain(doc: str) -> str:
    return doc.replace("\n", " ").replace("@", "")
