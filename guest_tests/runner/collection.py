"""The tests of a suite, as the guest's Python finds them on this host; kept until a file of the directory changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from guest_tests.runner.library import GuestLibrary, tier_of_environment
from vdev.errors import PartsError
from vdev.parts.cache import Cache

COLLECT_SECONDS = 120.0
PATTERNS = ("test_*.py", "*_test.py")
MAX_FILE_NBYTES = 16 << 20
MAX_NFILES = 2000
MAX_STDERR = 3000
NO_TESTS = 5  # pytest's exit status


@dataclass(frozen=True)
class Found:
    """One test; `id` is what the guest's pytest calls it, `chain` the names below its module."""

    id: str
    chain: tuple[str, ...]
    line: int | None
    marks: tuple[Mapping[str, Any], ...]
    keywords: tuple[str, ...]


@dataclass(frozen=True)
class Collection:
    """What a directory holds. Modules are named by their path relative to it, with slashes."""

    modules: Mapping[str, tuple[Found, ...]]
    problems: Mapping[str, Mapping[str, Any]]  # module or directory -> outcome ("failed", "skipped"), text, line
    pycache: Path  # where compiled files lie: below it, the source's absolute directory

    def problem(self, module: str) -> Mapping[str, Any]:
        """What is wrong with a module or a directory above it; empty where nothing is."""
        places = [module, *(str(parent) for parent in PurePosixPath(module).parents), ""]
        return next((self.problems[place] for place in places if place in self.problems), {})


def collect(root: Path, library: GuestLibrary, cache: Cache) -> Collection:
    """Collect the directory `root`. Raises PartsError when the guest's Python or its pytest does not run."""
    files = dict(sources(root))
    digest = hashlib.sha256(f"{library.root}\0{root}\0{tier_of_environment()}".encode())
    for name, path in files.items():
        digest.update(f"{name}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}\0".encode())
    pycache = cache.root / "guest-collected" / hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    kept = pycache / "collected.json"
    answer = _kept(kept, digest.hexdigest())
    if answer is None:
        answer = _ask(root, library, pycache)
        with suppress(OSError):  # a full cache costs the next run some time
            pycache.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps({"digest": digest.hexdigest(), "answer": answer}))
    modules: dict[str, tuple[Found, ...]] = {}
    for item in answer["items"]:
        found = Found(item["id"], tuple(item["chain"]), item["line"], tuple(item["marks"]), tuple(item["keywords"]))
        modules[item["module"]] = (*modules.get(item["module"], ()), found)
    return Collection(modules, answer["problems"], pycache)


def _kept(path: Path, digest: str) -> Any:
    try:
        kept = json.loads(path.read_text())
        return kept["answer"] if kept["digest"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _ask(root: Path, library: GuestLibrary, pycache: Path) -> Any:
    request = {"root": str(root), "pycache": str(pycache), "ini": str(library.ini), "files": [str(root)]}
    done = library.run("guest_tests.payload.collecting", json.dumps(request), COLLECT_SECONDS)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = {"status": done.returncode, "items": [], "problems": {}}
    if not answer["items"] and not answer["problems"] and answer["status"] != NO_TESTS:
        raise PartsError("guest pytest", f"it cannot collect {root}: {done.stderr[-MAX_STDERR:].strip()}")
    return answer


def sources(root: Path) -> Iterator[tuple[str, Path]]:
    """Every file of the directory that goes into the guest, by its path relative to `root`. Raises PartsError."""
    count = 0
    for directory, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name != "__pycache__" and not name.startswith("."))
        for name in sorted(files):
            path = Path(directory, name)
            if name.startswith(".") or not path.is_file():
                continue
            count += 1
            if count > MAX_NFILES:
                raise PartsError("guest tests", f"{root} has more than {MAX_NFILES} files", "give tests a directory")
            if path.stat().st_size > MAX_FILE_NBYTES:
                raise PartsError(
                    "guest tests", f"{path} has more than {MAX_FILE_NBYTES >> 20} MiB", "keep it elsewhere"
                )
            yield path.relative_to(root).as_posix(), path


def compiled(root: Path, pycache: Path) -> Iterator[tuple[str, Path]]:
    """(absolute path in the guest, file here) of everything compiled for the sources below `root`."""
    base = pycache / root.relative_to("/")
    for path in sorted(base.rglob("*.pyc")):
        yield str(root / path.parent.relative_to(base) / "__pycache__" / path.name), path
