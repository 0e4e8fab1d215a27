"""A pytest plugin that puts the changed module in the place of the one on disk; the tree is never written to.

It has to be the first `-p` of a session: those after it import what is to be changed, and the finder has to stand
before that of pytest, which takes all modules of a project with plugins.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from tests.mutation.table import ROOT, Mutation


class _Loader(SourceFileLoader):
    """The changed source of one module."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        """Compiled anew: no file caches it."""
        return compile(self._source, self.path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the changed module; `is_used` says whether anybody asked for it."""

    def __init__(self, mutation: Mutation) -> None:
        self.is_used = False
        self._name = mutation.module
        self._path = str(ROOT / mutation.file)
        self._loader = _Loader(self._name, self._path, mutation.apply(Path(self._path).read_text(encoding="utf-8")))

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Its spec; None for any other module."""
        if fullname != self._name:
            return None
        self.is_used = True
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self._loader)


finder: Finder | None = None  # set in a fork, before pytest starts


def pytest_addoption() -> None:
    """The first hook of a plugin."""
    if finder is not None:
        sys.meta_path.insert(0, finder)
