"""QEMU's command line as data: its option syntax both ways, and an argument vector taken apart.

Two forms exist for the value of an option: `first,key=value,flag` where two commas stand for one, and one JSON object.
Source: QEMU's "Invocation" manual and util/qemu-option.c. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

_ON = frozenset({"on", "yes", "true", "y"})
# Options that take no value. After any other one, an argument that does not start with "-" is its value.
_FLAGS = frozenset({
    "S", "s", "daemonize", "enable-kvm", "full-screen", "h", "help", "mem-prealloc", "no-reboot", "no-shutdown",
    "no-user-config", "nodefaults", "nographic", "only-migratable", "preconfig", "snapshot", "usb", "version",
})  # fmt: skip
_TEXT = frozenset({"append", "kernel", "initrd"})  # their value may start with "-"
_BINARY = re.compile(r"(?:.*/)?qemu(?:-system-\w+|-kvm|-kvm-spice)?", re.ASCII)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its name without dashes, its value as given, and that value taken apart.

    `kind` is what stands first without a key, such as a device's driver; "" when there is none.
    """

    name: str
    value: str = ""
    kind: str = ""
    properties: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How a person finds it again: by its id, else by what it is."""
        return (
            f"{self.kind or self.name} {self.properties['id']}" if "id" in self.properties else self.kind or self.name
        )


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A QEMU command: the words up to its binary ([] if there is none among them), then its options in order."""

    program: list[str]
    options: list[Option]

    def named(self, *names: str) -> list[Option]:
        """The options of these names, in order."""
        return [option for option in self.options if option.name in names]

    def merged(self, name: str) -> dict[str, Any]:
        """All properties of an option that QEMU merges when it is given more than once; the last one wins."""
        found: dict[str, Any] = {}
        for option in self.named(name):
            found.update(option.properties)
        return found


def quote_value(value: str) -> str:
    """`value` as it stands in the comma form: a comma ends a value there, two of them are one."""
    return value.replace(",", ",,")


def join_value(kind: str, properties: Iterable[tuple[str, str]]) -> str:
    """The comma form of an option's value; the inverse of `split_value`. `kind` may be ""."""
    items = [f"{key}={quote_value(value)}" for key, value in properties]
    return ",".join([quote_value(kind), *items] if kind else items)


def split_value(text: str) -> tuple[str, list[tuple[str, str]]]:
    """What stands first without a key ("" if a key does), and the properties in order.

    A bare word after the first item is a property that is on, as QEMU has it.
    """
    kind = ""
    properties: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        end = min((found for mark in "=," if (found := text.find(mark, at)) >= 0), default=len(text))
        if text[end : end + 1] == "=":
            value, following = _value(text, end + 1)
            properties.append((text[at:end], value))
        elif at == 0:
            kind, following = _value(text, 0)
        else:
            word, following = _value(text, at)
            properties.append((word, "on"))
        at = following
    return kind, properties


def _value(text: str, start: int) -> tuple[str, int]:
    """The value at `start` with its commas single again, and where the next item begins."""
    value = ""
    while True:
        comma = text.find(",", start)
        if comma < 0:
            return value + text[start:], len(text)
        value += text[start:comma]
        if text[comma : comma + 2] != ",,":
            return value, comma + 1
        value += ","
        start = comma + 2


def parse_option(name: str, value: str) -> Option:
    """One option taken apart. JSON that is damaged counts as a word: QEMU will refuse it itself."""
    if value.startswith("{"):
        try:
            properties = json.loads(value)
        except ValueError:
            return Option(name, value, value)
        kind = properties.get("driver") or properties.get("qom-type") or ""
        return Option(name, value, str(kind), properties)
    kind, pairs = split_value(value)
    found: dict[str, Any] = dict(pairs)
    kind = kind or found.get("driver") or found.get("qom-type") or found.get("type", "")
    return Option(name, value, kind, found)


def parse_command(argv: Sequence[str]) -> CommandLine:
    """The words of a QEMU command, or of a part of one, taken apart. What is no option is passed over."""
    words = list(argv)
    while words and _ASSIGNMENT.fullmatch(words[0]):  # libvirt's log shows the environment first
        del words[0]
    binary = next((index for index, word in enumerate(words) if _BINARY.fullmatch(word)), -1)
    program, rest = words[: binary + 1], words[binary + 1 :]
    options: list[Option] = []
    index = 0
    while index < len(rest):
        word = rest[index]
        index += 1
        if not word.startswith("-") or word == "-":
            continue
        name = word[2:] if word.startswith("--") else word[1:]
        follows = rest[index] if index < len(rest) else None
        if name in _FLAGS or follows is None or (follows.startswith("-") and name not in _TEXT):
            options.append(Option(name))
            continue
        options.append(parse_option(_CANONICAL.get(name, name), follows))
        index += 1
    return CommandLine(program, options)


_CANONICAL = {"M": "machine"}


def is_on(value: object, default: bool) -> bool:
    """An on/off property, as a bool of JSON or a word; `default` when it is not given."""
    if value is None:
        return default
    return value if isinstance(value, bool) else str(value).lower() in _ON
