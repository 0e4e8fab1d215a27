"""`{{name}}` in a scenario: variables are filled in when the file is read, results when a step begins. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vdev.config.text import closest
from vdev.errors import ConfigError

NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
MARK = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
_STEPS = re.compile(r"[^.\s]+(?:\.[^.\s]+)*")
MAX_SHOWN = 200
HEX_FROM = 0x10000


class NoSuchValue(Exception):
    """A dotted path leads nowhere; the text says where it ends."""


def fill(value: Any, key: str, look_up: Callable[[str, str], Any]) -> Any:
    """`value` with each `{{path}}` replaced by `look_up(path, key)`, in mappings and lists as well.

    A text that is nothing but one mark becomes the value itself, of whatever type; else the value is put into the text.
    """
    match value:
        case str():
            if (whole := MARK.fullmatch(value)) is not None:
                return look_up(whole[1], key)
            return MARK.sub(lambda mark: str(look_up(mark[1], key)), value)
        case Mapping():
            return {name: fill(one, f"{key}.{name}" if key else name, look_up) for name, one in value.items()}
        case list() | tuple():
            return [fill(one, f"{key}[{number}]", look_up) for number, one in enumerate(value)]
    return value


def marks(value: Any) -> Iterator[str]:
    """The path in each mark of `value`."""
    match value:
        case str():
            yield from MARK.findall(value)
        case Mapping():
            for one in value.values():
                yield from marks(one)
        case list() | tuple():
            for one in value:
                yield from marks(one)


def head(path: str) -> str:
    """The name a dotted path begins with."""
    return path.partition(".")[0]


def only(variables: Mapping[str, Any]) -> Callable[[str, str], Any]:
    """For `fill`: the variables; every other mark stays as it is."""
    return lambda path, key: variables.get(path, f"{{{{{path}}}}}")


def check_path(path: str, key: str, known: list[str]) -> None:
    """Raises ConfigError unless `path` begins with a name of `known`."""
    if _STEPS.fullmatch(path) is None:
        raise ConfigError(key, f"{path!r} is no name, or names with dots between", "write first.status, say")
    if head(path) not in known:
        problem = f"nothing before this step is called {head(path)!r}"
        cure = closest(head(path), known) if known else "give a step `as: NAME`, or a variable in vars"
        raise ConfigError(key, problem, cure)


def value_at(results: Mapping[str, Any], path: str) -> Any:
    """What the dotted `path` leads to; numbers are places in a list, negative ones from its end. Raises NoSuchValue."""
    found: Any = results
    walked = ""
    for step in path.split("."):
        try:
            match found:
                case Mapping():
                    found = found[step]
                case list() | tuple():
                    found = found[int(step)]
                case _:
                    raise LookupError
        except (LookupError, ValueError):
            where = f"{walked} is" if walked else "there is"
            raise NoSuchValue(f"{path}: {where} {shown(found)}, without {step!r}") from None
        walked = f"{walked}.{step}" if walked else step
    return found


def shown(value: Any) -> str:
    """A value as reports show it, in YAML's words, cut where it is long; numbers that may be addresses in hex."""
    text = _words(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _words(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case int() if value >= HEX_FROM:
            return f"{value:#x}"
        case Mapping():
            return "{" + ", ".join(f"{name}: {_words(one)}" for name, one in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(_words(one) for one in value) + "]"
    return str(value)
