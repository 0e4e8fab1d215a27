"""The quick way to make a mutation: in a process that has imported everything, give one function its changed code.

It is open to a change inside the body of a plain function or method. What a module does when it is imported (layouts,
constants, tables, defaults) has happened by then: such rows go the long way, by `overlay`, as do those that nobody
noticed the quick way, since objects that were made before the change might hide it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from tests.mutation.table import ROOT, Mutation, definition


def is_quick(mutation: Mutation) -> bool:
    """Whether the row changes nothing but the body of one function, and may do it late."""
    if not mutation.at or mutation.anew:
        return False
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    node = definition(source, mutation.at, mutation.id)
    if isinstance(node, ast.ClassDef):
        return False
    body_line = node.body[0].lineno
    changed = mutation.apply(source).splitlines()
    first = next(at for at, (old, new) in enumerate(zip(source.splitlines(), changed, strict=False), 1) if old != new)
    return first >= body_line and bool(_code(mutation, source))


def apply(mutation: Mutation) -> bool:
    """Change the function in this process; False, with nothing changed, where it is not loaded or cannot be."""
    module = sys.modules.get(mutation.module)
    if module is None:
        return False
    function = _function(module, mutation.at)
    (code,) = _code(mutation, (ROOT / mutation.file).read_text(encoding="utf-8"))
    if function is None or function.__code__.co_freevars != code.co_freevars:
        return False
    function.__code__ = code
    return True


def _code(mutation: Mutation, source: str) -> list[CodeType]:
    """The changed code of the function."""
    whole = compile(mutation.apply(source), str(ROOT / mutation.file), "exec", dont_inherit=True)
    return [code for code in _codes(whole) if code.co_qualname == mutation.at]


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _function(module: ModuleType, name: str) -> FunctionType | None:
    found: Any = module
    for word in name.split("."):
        found = vars(found)[word]
    if isinstance(found, property):
        found = found.fget
    if isinstance(found, staticmethod | classmethod):
        found = found.__func__
    return found if isinstance(found, FunctionType) and not hasattr(found, "__wrapped__") else None
