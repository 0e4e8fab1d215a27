"""The text of a schema as expressions, each with the doc comment before it. What they mean is schema.py's affair.

The language is QAPI's: JSON with single quotes and comments; `##` alone on a line begins and ends a doc comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vdev.errors import SchemaError

_TOKEN = re.compile(r"(?P<space>[ \t\n]+|#[^\n]*)|'(?P<text>[^'\\\n]*)'|(?P<mark>[{}\[\]:,])")
_SECTION = re.compile(r"@(?P<name>[^:\s]+):(?: (?P<text>.*))?$|(?P<tag>Errors|Example): (?P<rest>.*)$")


@dataclass(slots=True)
class Doc:
    """A doc comment: what it is about, its text, the texts of members, and its tagged sections."""

    line: int
    name: str = ""
    heading: str = ""
    paragraphs: list[str] = field(default_factory=list)
    members: dict[str, str] = field(default_factory=dict)
    tags: list[tuple[str, str]] = field(default_factory=list)  # (Errors or Example, text)

    @property
    def text(self) -> str:
        """Its paragraphs, a line each, an empty line between two."""
        return "\n\n".join(self.paragraphs)

    def tagged(self, tag: str) -> tuple[str, ...]:
        """The texts of all sections with this tag."""
        return tuple(text for found, text in self.tags if found == tag)


@dataclass(slots=True)
class Expression:
    """One `{...}` and the number of the line it begins in."""

    line: int
    data: dict[str, Any]
    doc: Doc | None


def read(text: str) -> Iterator[Expression | Doc]:
    """Expressions in order, and the doc comments that are headings. SchemaError names the line."""
    lines = text.split("\n")
    at, doc = 0, None
    while at < len(lines):
        line = lines[at]
        if line == "##":
            stop = next((n for n in range(at + 1, len(lines)) if lines[n] == "##"), None)
            if stop is None:
                raise SchemaError(at + 1, "this doc comment does not end")
            if doc is not None:
                raise SchemaError(doc.line, "this doc comment is before no expression")
            doc, at = _read_doc(lines[at + 1 : stop], at + 1), stop + 1
            if doc.heading:
                yield doc
                doc = None
        elif line.startswith("#") or not line.strip():
            at += 1
        else:
            parser = _Parser(lines, at)
            data, first = parser.value(), at + 1
            if not isinstance(data, dict):
                raise SchemaError(first, "an expression is an object: {...}")
            yield Expression(first, data, doc)
            at, doc = parser.line, None
    if doc is not None:
        raise SchemaError(doc.line, "this doc comment is before no expression")


def _read_doc(lines: list[str], first: int) -> Doc:
    doc = Doc(first)
    if len(lines) == 1 and lines[0].startswith("# = "):
        doc.heading = lines[0][4:].strip()
        return doc
    open_section = False  # whether an indented line goes on with a section
    fresh = True  # whether a line begins a paragraph
    for number, raw in enumerate(lines, first + 1):
        if raw != "#" and not raw.startswith("# "):
            raise SchemaError(number, "a line of a doc comment is '#', or '# ' and text")
        line = raw[2:]
        found = _SECTION.match(line)
        if found is not None:
            open_section = _begin_section(doc, found, number)
        elif not line.strip():
            open_section, fresh = False, True
        elif open_section and line.startswith("  "):
            _go_on(doc, line.strip())
        elif doc.members or doc.tags:
            raise SchemaError(number, "text after a section is indented by two spaces and belongs to it")
        elif fresh:
            doc.paragraphs.append(line)
            fresh = False
        else:
            doc.paragraphs[-1] += "\n" + line
    if not doc.name:
        raise SchemaError(first, "a doc comment begins with '# @name:' or is '# = heading'")
    return doc


def _begin_section(doc: Doc, found: re.Match[str], number: int) -> bool:
    """The first one names what the comment is about; no text belongs to that."""
    if found["tag"]:
        doc.tags.append((found["tag"], found["rest"].strip()))
        return True
    if not doc.name:
        doc.name = found["name"]
        return False
    if found["name"] in doc.members:
        raise SchemaError(number, f"@{found['name']} is described twice")
    doc.members[found["name"]] = (found["text"] or "").strip()
    return True


def _go_on(doc: Doc, text: str) -> None:
    if doc.tags:
        tag, before = doc.tags[-1]
        doc.tags[-1] = (tag, f"{before} {text}")
    else:
        name = next(reversed(doc.members))
        doc.members[name] = f"{doc.members[name]} {text}"


class _Parser:
    """Recursive descent over one expression; `line` is the index of the line after it."""

    def __init__(self, lines: list[str], first: int) -> None:
        self._text = "\n".join(lines[first:])
        self._first = first
        self._at = 0

    @property
    def line(self) -> int:
        return self._first + self._text.count("\n", 0, self._at) + 1

    def value(self) -> Any:
        mark, text = self._next()
        if mark == "{":
            return self._object()
        if mark == "[":
            return self._list()
        if text is None:
            raise SchemaError(self.line, f"{mark!r} where a value is expected")
        return text

    def _object(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        mark, key = self._next()
        while mark != "}":
            if key is None:
                raise SchemaError(self.line, f"{mark!r} where a key or '}}' is expected")
            if key in found:
                raise SchemaError(self.line, f"key {key!r} is there twice")
            self._expect(":")
            found[key] = self.value()
            mark = self._expect(",", "}")
            if mark == ",":
                mark, key = self._next()
                if key is None:
                    raise SchemaError(self.line, f"{mark!r} where a key is expected")
        return found

    def _list(self) -> list[Any]:
        found: list[Any] = []
        before = self._at
        if self._next() == ("]", None):
            return found
        self._at = before
        while True:
            found.append(self.value())
            if self._expect(",", "]") == "]":
                return found

    def _expect(self, *marks: str) -> str:
        mark, _ = self._next()
        if mark not in marks:
            raise SchemaError(self.line, f"{mark or 'a string'!r} where {' or '.join(map(repr, marks))} is expected")
        return mark

    def _next(self) -> tuple[str, str | None]:
        """(mark, None), or ("", text) for a string."""
        while True:
            found = _TOKEN.match(self._text, self._at)
            if found is None:
                rest = self._text[self._at : self._at + 20].split("\n")[0]
                raise SchemaError(self.line, f"no QAPI: {rest!r}" if rest else "the expression does not end")
            self._at = found.end()
            if found["mark"]:
                return found["mark"], None
            if found["text"] is not None:
                return "", found["text"]
