"""`vdev ctl fault`: the fault plan of a running VM, from a command line. docs/faults.md says what faults there are.

    vdev ctl fault add --at request --do status --with status=NOMEM --match type=MAP --when nth=3
    vdev ctl fault load PLAN.yaml [--replace]     all rules of a file, or none
    vdev ctl fault list                           the rules, and how often each has met something and fired
    vdev ctl fault log [--rule ID]                what was injected, and into what
    vdev ctl fault remove ID [--release]          one rule less; what it holds stays held
    vdev ctl fault release [ID]                   let go of what is held
    vdev ctl fault clear                          no rules any more, and what they left is undone
    vdev ctl fault actions [--at POINT]           what can be done where

--match, --when and --with take NAME=VALUE, and may be repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vdev.config.load import named, read_text
from vdev.config.text import parse_yaml
from vdev.ctl.client import Client
from vdev.ctl.target import Target
from vdev.ctl.text import table
from vdev.errors import ArgumentError, ConfigError
from vdev.qapi.check import check_arguments
from vdev.qapi.schema import schema

ANSWER_S = 30.0
PAGE = 1000
LISTS = ("nth", "window")  # may be given as 1,3

Reply = dict[str, Any]


def run(argv: Sequence[str]) -> int:
    """The exit status. ConfigError: the input is wrong. VdevError: the command was refused, or not answered."""
    given = _parser().parse_args(argv)
    command, arguments = _COMMANDS[given.action](given)
    described = schema().commands[command]
    try:
        check_arguments(described, arguments)
    except ArgumentError as error:
        raise ConfigError(f"fault {given.action}", str(error), f"vdev ctl fault {given.action} --help") from None
    client = Target(given.runtime_dir, given.socket).connect(described, schema().prefix)
    try:
        shown = _all_of(client, arguments) if command == "query-fault-log" else client.execute(
            command, arguments, ANSWER_S
        )  # fmt: skip
    finally:
        client.close()
    if given.action == "actions" and given.at is not None:
        shown = [action for action in shown if given.at in action["at"]]
    for line in [json.dumps(shown)] if given.json else _TEXT[given.action](shown):
        sys.stdout.write(line + "\n")
    sys.stdout.flush()
    return 0


def _all_of(client: Client, arguments: Reply) -> list[Reply]:
    """The whole log, a page at a time."""
    found: list[Reply] = []
    while True:
        page = client.execute("query-fault-log", {**arguments, "limit": PAGE}, ANSWER_S)
        found += page
        if len(page) < PAGE:
            return found
        arguments = {**arguments, "since": page[-1]["seq"] + 1}


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="vdev ctl fault", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    actions = found.add_subparsers(dest="action", metavar="|".join(_COMMANDS), required=True)
    parsers = {name: _add(actions, name, text) for name, (text, _) in _WORDS.items()}
    for name, parser in parsers.items():
        _WORDS[name][1](parser)
    return found


def _add(actions: Any, name: str, text: str) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
    where = one.add_mutually_exclusive_group()
    where.add_argument("--runtime-dir", type=Path, metavar="DIR", help="of the VM (default: the one that runs)")
    where.add_argument("--socket", type=Path, metavar="PATH", help="its control.sock or monitor")
    one.add_argument("--json", action="store_true", help="the reply as it came")
    return one


def _of_add(one: argparse.ArgumentParser) -> None:
    one.add_argument("--at", required=True, metavar="POINT", help="where the rule waits")
    one.add_argument("--do", required=True, metavar="ACTION", help="what it does")
    one.add_argument("--id", help="its name (default: r1, r2 ...)")
    for option, text in (
        ("--match", "what it is about, such as type=MAP or iova=0x1000-0x1fff"),
        ("--when", "when it fires, such as nth=3 or probability=0.25"),
        ("--with", "a parameter of the action, such as status=NOMEM"),
    ):
        one.add_argument(option, action="append", default=[], metavar="NAME=VALUE", help=text)
    one.add_argument("--times", type=int, metavar="N", help="how often at most")


def _of_load(one: argparse.ArgumentParser) -> None:
    one.add_argument("plan", type=Path, metavar="PLAN.yaml", help="a file with rules, and perhaps a seed")
    one.add_argument("--replace", action="store_true", help="clear what there is before")


def _of_log(one: argparse.ArgumentParser) -> None:
    one.add_argument("--rule", metavar="ID", help="only what this one did")
    one.add_argument("--since", type=int, metavar="SEQ", help="only from this number on")


def _of_remove(one: argparse.ArgumentParser) -> None:
    one.add_argument("id", metavar="ID", help="the rule's name")
    one.add_argument("--release", action="store_true", help="let go of what it holds")


def _of_release(one: argparse.ArgumentParser) -> None:
    one.add_argument("id", metavar="ID", nargs="?", help="only what this rule holds")


def _of_actions(one: argparse.ArgumentParser) -> None:
    one.add_argument("--at", metavar="POINT", help="only those of this point")


def _no_more(one: argparse.ArgumentParser) -> None:
    pass


_WORDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "add": ("add a rule", _of_add),
    "load": ("add the rules of a file", _of_load),
    "list": ("the rules there are", _no_more),
    "log": ("what was injected", _of_log),
    "remove": ("take a rule away", _of_remove),
    "release": ("let go of what is held", _of_release),
    "clear": ("take all rules away and undo what they left", _no_more),
    "actions": ("what can be done where", _of_actions),
}


# the commands


def _add_command(given: argparse.Namespace) -> tuple[str, Reply]:
    maps = {name: _pairs(f"--{name}", getattr(given, name)) for name in ("match", "when", "with")}
    plain = {name: getattr(given, name) for name in ("at", "do", "id", "times")}
    wanted = {**plain, **{name: pairs or None for name, pairs in maps.items()}}
    return "fault-add", {name: value for name, value in wanted.items() if value is not None}


def _load_command(given: argparse.Namespace) -> tuple[str, Reply]:
    with named(given.plan.name):
        plan = parse_yaml(read_text(given.plan))
    return "fault-load", {"plan": plan, **({"replace": True} if given.replace else {})}


def _log_command(given: argparse.Namespace) -> tuple[str, Reply]:
    wanted = {"rule": given.rule, "since": given.since}
    return "query-fault-log", {name: value for name, value in wanted.items() if value is not None}


_COMMANDS: dict[str, Callable[[argparse.Namespace], tuple[str, Reply]]] = {
    "add": _add_command,
    "load": _load_command,
    "list": lambda given: ("query-fault-plan", {}),
    "log": _log_command,
    "remove": lambda given: ("fault-remove", {"id": given.id, **({"release": True} if given.release else {})}),
    "release": lambda given: ("fault-release", {} if given.id is None else {"id": given.id}),
    "clear": lambda given: ("fault-clear", {}),
    "actions": lambda given: ("query-fault-actions", {}),
}


def _pairs(option: str, words: Iterable[str]) -> Reply:
    """NAME=VALUE as members, values read as a plan's are. ConfigError."""
    found: Reply = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not name or not equals:
            raise ConfigError(option, f"{word!r} is not NAME=VALUE", "such as type=MAP")
        if name in found:
            raise ConfigError(option, f"{name} is given twice", "keep one of them")
        parts = text.split(",") if name in LISTS and not text.startswith("[") else [text]
        try:
            values = [parse_yaml(part) for part in parts]
        except ConfigError as error:
            raise ConfigError(option, f"{word!r}: what is behind = {error.problem}", "such as type=MAP") from None
        found[name] = values if len(values) > 1 else values[0]
    return found


# for people


def _list(shown: Reply) -> list[str]:
    head = [f"seed: {shown['seed']}"]
    if shown["held-by-none"]:
        head.append(f"held for rules that are gone: {shown['held-by-none']}")
    rows = [
        {
            "id": rule["id"],
            "at": rule["at"],
            "do": " ".join([rule["do"], *_words(rule["with"])]),
            "match": ", ".join(_words(rule["match"])) or "all",
            "when": ", ".join([*_words(rule["when"]), *_times(rule)]) or "always",
            **{name: rule[name] for name in ("matched", "fired", "held")},
        }
        for rule in shown["rules"]
    ]
    return [*head, "", *table(rows)] if rows else [*head, "no rules"]


def _times(rule: Reply) -> list[str]:
    return [] if "times" not in rule else ["once" if rule["times"] == 1 else f"{rule['times']} times"]


def _words(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={_word(name, value)}" for name, value in values.items()]


def _word(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_word(name, one) for one in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    is_address = name in ("iova", "register", "start", "end") and isinstance(value, int)
    return f"{value:#x}" if is_address else f"{value:g}" if isinstance(value, float) else str(value)


def _log(shown: Sequence[Reply]) -> list[str]:
    return [f"{one['seq']:>5}  {one['time']:14.6f}  {one['text']}" for one in shown] or ["none"]


def _removed(shown: Reply) -> list[str]:
    return [f"{name}: {shown[name]}" for name in ("matched", "fired", "released")]


def _cleared(shown: Reply) -> list[str]:
    lost = [f"for good: {line}" for line in shown["terminal"]]
    return [f"rules: {shown['removed']}", *(f"undone: {line}" for line in shown["undone"]), *lost]


def _actions(shown: Sequence[Reply]) -> list[str]:
    rows = [
        {
            "do": action["do"],
            "at": "any" if action["free"] else ", ".join(action["at"]),
            "with": ", ".join(_parameter(one) for one in action["with"]) or "-",
            "what": action["about"],
        }
        for action in shown
    ]
    return table(rows) if rows else ["none"]


def _parameter(given: Reply) -> str:
    default = f"={_word(given['name'], given['default'])}" if "default" in given else ""
    return f"{given['name']}{default}" if given["required"] or default else f"[{given['name']}]"


_TEXT: dict[str, Callable[[Any], list[str]]] = {
    "add": lambda shown: [shown["id"]],
    "load": lambda shown: shown["ids"] or ["none"],
    "list": _list,
    "log": _log,
    "remove": _removed,
    "release": lambda shown: [f"released: {shown['released']}"],
    "clear": _cleared,
    "actions": _actions,
}
