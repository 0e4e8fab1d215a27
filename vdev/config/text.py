"""Text to typed data, and the small notations inside it: sizes ("4K") and PCI addresses ("01:00.0").

Knows nothing of what a configuration means; `vdev.config` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml

from vdev.errors import ConfigError

WHOLE = "the file"  # the key of an error that has none
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]{1,30}|[0-9]{1,30})\s*([KMGT]?)(?:i?B)?", re.ASCII)
_SIZE_SHIFTS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_BDF = re.compile(r"([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])", re.ASCII)
_TEXT_TAG = "tag:yaml.org,2002:str"
_INT_TAG = "tag:yaml.org,2002:int"
_MAX_DEPTH = 16  # of nested YAML collections; a cycle of aliases ends here
_MAX_VALUES = 200_000  # in a file, those behind each alias counted again: aliases of aliases make as many as they like
_MAX_NUMBER_NBITS = 128  # what a key takes is for `checks` to say; every number can be shown
# What YAML lets a quoted text have by an escape, and no file, name or argument should.
_ODD_CHARACTER = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+|\.\.\.)\]")  # of a msgspec path: a field, an index, or a value of a mapping
_MAX_SHOWN = 80  # characters of a wrong value
_PLAIN_TYPES = {
    "object": "keys with values", "array": "a list", "str": "text", "int": "a whole number", "float": "a number",
    "bool": "true or false", "null": "nothing",
}  # fmt: skip

T = TypeVar("T")


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2: `01:00.0` is not a number in base 60, and `on` is the word on."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 # set per class by PyYAML


def _resolve(tag: str, pattern: str, first: str) -> None:
    regexp = re.compile(rf"(?:{pattern})\Z", re.ASCII)
    for character in first or [""]:
        _PlainLoader.yaml_implicit_resolvers.setdefault(character, []).append((f"tag:yaml.org,2002:{tag}", regexp))


_resolve("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("int", "[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F_]+|0b[01_]+", "-+0123456789")
_resolve("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", "-+.0123456789")
_resolve("null", "~|null|Null|NULL", "~nN")
_resolve("null", "", "")


def parse_yaml(text: str) -> Any:
    """The one document in `text` as plain data: collections, text without control characters, numbers of 128 bits.

    Raises ConfigError: not YAML (with line and column), nested too deeply, or a mapping with the same key twice.
    """
    try:
        loader = _PlainLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise ConfigError(WHOLE, "is empty", "it needs at least a list of units")
            _Checker(loader).check(node, "", 0)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = f"not valid YAML{where}: {error.problem or error.context}"
        raise ConfigError(WHOLE, problem, "indent with spaces only, and quote text with ': ' or '#' in it") from None
    except yaml.YAMLError as error:
        raise ConfigError(WHOLE, f"not valid YAML: {error}".replace("\n", " ")) from None
    except RecursionError:
        raise _too_deep(WHOLE) from None


def _not_valid(node: yaml.Node, problem: str, cure: str) -> ConfigError:
    return ConfigError(WHOLE, f"not valid YAML at line {node.start_mark.line + 1}: {problem}", cure)


def _too_deep(key: str) -> ConfigError:
    return ConfigError(key, f"nested more than {_MAX_DEPTH} deep", "no key of a configuration is nested like this")


class _Checker:
    """Looks at a document before it is made into data, each alias as often as it is used."""

    def __init__(self, loader: _PlainLoader) -> None:
        self._loader = loader
        self._left = _MAX_VALUES

    def check(self, node: yaml.Node, path: str, depth: int) -> None:
        """ConfigError for what no configuration has; `path` is the key of `node`."""
        self._left -= 1
        if self._left < 0:
            raise ConfigError(path or WHOLE, f"more than {_MAX_VALUES} values in one file", "use fewer aliases")
        if depth > _MAX_DEPTH:
            raise _too_deep(path)
        shown = self._loader.resolve(type(node), node.value, (True, False))  # type: ignore[no-untyped-call]
        if node.tag not in (shown, _TEXT_TAG):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise _not_valid(node, f"what stands there is not of the type {tag:.{_MAX_SHOWN}}", "leave the type out")
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.check(item, item_key(path, index, _name_in(item)), depth + 1)
        elif isinstance(node, yaml.MappingNode):
            self._check_mapping(node, path, depth)
        elif isinstance(node, yaml.ScalarNode):
            self._check_scalar(node)

    def _check_mapping(self, node: yaml.MappingNode, path: str, depth: int) -> None:
        lines: dict[str, int] = {}
        for key, value in node.value:
            word = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            here = f"{path}.{word}" if path else word
            line = key.start_mark.line + 1
            if key.tag != _TEXT_TAG or not isinstance(key, yaml.ScalarNode):
                raise ConfigError(here, f"the key in line {line} is not a word", "every key of a configuration is one")
            self._check_scalar(key)
            if word in lines:
                raise ConfigError(here, f"given twice, in lines {lines[word]} and {line}", "keep one of them")
            lines[word] = line
            self.check(value, here, depth + 1)

    def _check_scalar(self, node: yaml.ScalarNode) -> None:
        if odd := _ODD_CHARACTER.search(node.value):
            problem = f"the text has the character U+{ord(odd[0]):04X}"
            raise _not_valid(node, problem, "no name, path or argument needs one like it")
        if node.tag == _INT_TAG and not self._is_number(node):
            raise _not_valid(node, f"{node.value:.{_MAX_SHOWN}} is no number vdev can read", "write 0x10 or 16")

    def _is_number(self, node: yaml.ScalarNode) -> bool:
        if len(node.value) > _MAX_NUMBER_NBITS:
            return False
        try:
            return int(self._loader.construct_yaml_int(node)).bit_length() <= _MAX_NUMBER_NBITS
        except ValueError:  # PyYAML of 0x_
            return False


def _name_in(item: yaml.Node) -> object:
    pairs = item.value if isinstance(item, yaml.MappingNode) else []
    return next((value.value for key, value in pairs if key.value == "name"), None)


def convert(data: Any, root: type[T], examples: Mapping[str, str]) -> T:
    """`data` as an object of `root`; `examples` has a cure by the last name of a key.

    Raises ConfigError for the first thing that does not fit.
    """
    try:
        return msgspec.convert(data, root)
    except msgspec.ValidationError as error:
        problem, _, at = str(error).partition(" - at ")
        key, value, kind = _follow(data, root, at.strip("`").removeprefix("$"))
        field = re.search(r"Object (contains unknown|missing required) field `(.*)`", problem)
        if field is None:
            raise ConfigError(key or WHOLE, _wrong_value(problem, value, kind), _cure(kind, key, examples)) from None
        where = f"{key}.{field[2]}" if key else field[2]
        if field[1] == "missing required":
            raise ConfigError(where, "this key is missing", examples.get(field[2], "")) from None
        raise ConfigError(where, "there is no such key", closest(field[2], _fields(kind))) from None


def item_key(items: str, index: int, name: object) -> str:
    """How errors call an item of a list: by its name, or by its number while it has none."""
    return f"{items}[{name}]" if isinstance(name, str) and 0 < len(name) < 32 else f"{items}[{index}]"


def _follow(data: Any, kind: Any, path: str) -> tuple[str, Any, Any]:
    """The key, the value and the declared type at msgspec's `path`."""
    key = ""
    for name, index in _STEP.findall(path):
        if name:
            key, data, kind = f"{key}.{name}" if key else name, data.get(name), _given(_type_of(kind, name))
        elif index == "...":
            # It does not say which value; those that fit are scalars.
            last = next((word for word, value in data.items() if not isinstance(value, str | bool | int)), "?")
            key, data, kind = f"{key}.{last}", data.get(last), None
        else:
            data, kind = data[int(index)], (get_args(kind) or (None,))[0]
            key = item_key(key, int(index), data.get("name") if isinstance(data, dict) else None)
    return key, data, kind


def _type_of(kind: Any, name: str) -> Any:
    """The declared type of the key `name`, whose field may be called otherwise: `with` is no name in Python."""
    field = next(field.name for field in msgspec.structs.fields(kind) if field.encode_name == name)
    return get_type_hints(kind)[field]


def _given(kind: Any) -> Any:
    """What a key that may be left out is when it is there: X of `X | None`."""
    is_union = get_origin(kind) in (UnionType, Union)  # the latter of a Literal
    kinds = [one for one in get_args(kind) if one is not NoneType] if is_union else []
    return kinds[0] if len(kinds) == 1 else kind


def _fields(kind: Any) -> list[str]:
    is_struct = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    return [field.encode_name for field in msgspec.structs.fields(kind)] if is_struct else []


def _cure(kind: Any, key: str, examples: Mapping[str, str]) -> str:
    """What may stand there: the words of a choice, the keys of a mapping, or an example."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    fields = _fields(kind)
    return "keys here: " + ", ".join(fields) if fields else examples.get(key.rpartition(".")[2], "")


def _wrong_value(problem: str, value: object, kind: Any) -> str:
    """msgspec's words as somebody says them who knows YAML and not JSON or Python."""
    shown = f"{value!r:.{_MAX_SHOWN}} is " if isinstance(value, str | int | float) else "this is "
    expected = re.fullmatch(r"Expected `(.*?)`(?: of length (\d+))?, got (.*)", problem)
    if expected is None or get_origin(kind) is Literal:
        return shown + "not a possible value"
    if expected[2]:
        return f"this is a list of {expected[3]}, not of {expected[2]}"
    wanted = " or ".join(_PLAIN_TYPES.get(name, name) for name in expected[1].split(" | "))
    got = _PLAIN_TYPES.get(expected[3].strip("`"), expected[3])
    return f"{shown}{got}, not {wanted}"


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
        raise ConfigError(
            key, f"{value!r:.{_MAX_SHOWN}} is not a size", "write bytes, or a number with K, M, G or T, such as 512M"
        )
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
