"""Text to plain data, and the small notations inside it: sizes ("4K") and PCI addresses ("01:00.0").

Knows nothing of what a configuration means; `vdev.config` does.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

import yaml

from vdev.errors import ConfigError

WHOLE = "the file"  # the key of an error that has none
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)\s*([KMGT]?)(?:i?B)?", re.ASCII)
_SIZE_SHIFTS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_BDF = re.compile(r"([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])", re.ASCII)
_MAX_DEPTH = 16  # of nested YAML collections; a cycle of aliases ends here


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2: `01:00.0` is not a number in base 60, and `on` is the word on."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 # set per class by PyYAML


def _resolve(tag: str, pattern: str, first: str) -> None:
    regexp = re.compile(rf"(?:{pattern})\Z", re.ASCII)
    for character in first or [""]:
        _PlainLoader.yaml_implicit_resolvers.setdefault(character, []).append((f"tag:yaml.org,2002:{tag}", regexp))


_resolve("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("int", "[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F_]+|0b[01_]+", "-+0123456789")
_resolve("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", "-+.0123456789")
_resolve("null", "~|null|Null|NULL", "~nN")
_resolve("null", "", "")


def parse_yaml(text: str) -> Any:
    """The one document in `text` as plain data.

    Raises ConfigError: not YAML (with line and column), nested too deeply, or a mapping with the same key twice.
    """
    loader = _PlainLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise ConfigError(WHOLE, "is empty", "it needs at least a list of units")
        _refuse_duplicates(node, "", 0)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = f"not valid YAML{where}: {error.problem or error.context}"
        raise ConfigError(WHOLE, problem, "indent with spaces only, and quote text with ': ' or '#' in it") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: PyYAML of a number such as 0x_
        raise ConfigError(WHOLE, f"not valid YAML: {error}".replace("\n", " ")) from None
    finally:
        loader.dispose()


def _refuse_duplicates(node: yaml.Node, path: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ConfigError(path, f"nested more than {_MAX_DEPTH} deep", "no key of a configuration is nested like this")
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _refuse_duplicates(item, f"{path}[{index}]", depth + 1)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            word = str(key.value)
            here = f"{path}.{word}" if path else word
            line = key.start_mark.line + 1
            if word in lines:
                raise ConfigError(here, f"given twice, in lines {lines[word]} and {line}", "keep one of them")
            lines[word] = line
            _refuse_duplicates(value, here, depth + 1)


def closest(word: str, known: list[str]) -> str:
    """A cure that names what `word` was probably meant to be, or everything it could have been."""
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else "known here: " + ", ".join(known)


def parse_size(value: int | str, key: str = "size") -> int:
    """Bytes, from an integer or from a number with a binary suffix: "4K", "512M", "1G", "0x1000".

    Raises ConfigError for anything else and for negative numbers.
    """
    if isinstance(value, int) and value >= 0:
        return value
    match = _SIZE.fullmatch(str(value).strip())
    if match is None:
        raise ConfigError(key, f"{value!r} is not a size", "write bytes, or a number with K, M, G or T, such as 512M")
    return int(match[1], 0 if match[1][:2].lower() == "0x" else 10) << _SIZE_SHIFTS[match[2]]


def parse_bdf(text: str, key: str = "bdf") -> int:
    """The 16-bit PCI address of "BUS:SLOT.FUNCTION" (hexadecimal): bus << 8 | slot << 3 | function.

    Raises ConfigError.
    """
    match = _BDF.fullmatch(text)
    slot = int(match[2], 16) if match else 0
    if match is None or slot > 0x1F:
        rule = "slots end at 1f" if match else "not a PCI address"
        raise ConfigError(key, f"{text!r}: {rule}", "write BUS:SLOT.FUNCTION in hexadecimal, such as 01:00.0")
    return int(match[1], 16) << 8 | slot << 3 | int(match[3])


def format_bdf(bdf: int) -> str:
    """The inverse of `parse_bdf`."""
    return f"{bdf >> 8:02x}:{bdf >> 3 & 0x1F:02x}.{bdf & 7}"
