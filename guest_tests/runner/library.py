"""What every guest of the runner carries: pytest and our payload, compiled by the guest's own Python.

Without compiled files a guest spends ten seconds on the imports. They carry no time stamps and so are never stale; the
directory they are kept in is named by the content they were made of.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from vdev.errors import PartsError
from vdev.parts.cache import Cache
from vdev.parts.progress import Say
from vdev.parts.userland import PYTHON, ROOT, GuestPython, guest_userland

PACKAGES = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging")
# What pytest imports of the largest of its dependencies.
PYGMENTS = (
    "__init__", "console", "filter", "filters/__init__", "formatter", "formatters/__init__", "formatters/_mapping",
    "formatters/terminal", "lexer", "lexers/__init__", "lexers/_mapping", "lexers/diff", "lexers/python", "modeline",
    "plugin", "regexopt", "style", "styles/__init__", "styles/_mapping", "token", "unistring", "util",
)  # fmt: skip
MAIN = b"import sys\nfrom guest_tests.payload.agent import main\n\nsys.exit(main())\n"
INI = "pytest.ini"
COMPILE_SECONDS = 120
KEPT = 4  # libraries of earlier versions that stay in the cache


class GuestLibrary:
    """A directory that is /payload in the guest."""

    def __init__(self, root: Path, python: GuestPython) -> None:
        self.root = root
        self.python = python

    @property
    def ini(self) -> Path:
        """The settings of pytest, in the guest and where tests are collected for it."""
        return self.root / INI

    def files(self) -> dict[str, Path | bytes]:
        """Every file by its path below /payload: what `Options.payload_files` takes."""
        return {str(path.relative_to(self.root)): path for path in sorted(self.root.rglob("*")) if path.is_file()}

    def run(self, module: str, text: str, seconds: float) -> subprocess.CompletedProcess[str]:
        """Run one of our modules here, by the guest's Python, with `text` as its input. Raises PartsError."""
        code = (
            f"import runpy, sys; sys.path.insert(0, {str(self.root)!r}); runpy.run_module({module!r}, None, '__main__')"
        )
        command = [*self.python.argv, "-S", "-c", code]
        try:
            return subprocess.run(
                command,
                env={**self.python.env, **tier_of_environment()},
                input=text,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PartsError("guest Python", f"{module} was not done within {seconds:.0f} s on this host") from None
        except OSError as error:
            raise PartsError("guest Python", f"it does not run on this host: {error}", "x86-64 is needed") from None


def guest_library(cache: Cache, say: Say) -> GuestLibrary:
    """The library of this version of pytest and of our payload. Raises PartsError."""
    python = GuestPython.in_root(guest_userland(cache, say) / ROOT)
    sources = dict(_sources())
    kept = cache.root / "guest-library"
    root = kept / _digest(sources)
    try:
        if not (root / INI).is_file():  # written last
            say("compiling pytest and the payload for the guest")
            _make(root, sources, python)
            _prune(kept, root)
    except OSError as error:
        raise PartsError("guest library", f"{root}: {error}", "free space there, or set VDEV_CACHE") from error
    return GuestLibrary(root, python)


def _sources() -> Iterator[tuple[str, bytes]]:
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise PartsError("guest library", f"this Python has no {name}", "pip install pytest")
        origin = Path(spec.origin)
        if spec.submodule_search_locations is None:
            yield origin.name, origin.read_bytes()
            continue
        for path in sorted(origin.parent.rglob("*.py")):
            yield f"{name}/{path.relative_to(origin.parent)}", path.read_bytes()
    spec = importlib.util.find_spec("pygments")
    assert spec is not None
    assert spec.origin is not None
    for name in PYGMENTS:
        yield f"pygments/{name}.py", (Path(spec.origin).parent / f"{name}.py").read_bytes()
    payload = Path(__file__).parent.parent / "payload"
    for path in sorted(payload.rglob("*.py")):
        yield f"guest_tests/payload/{path.relative_to(payload)}", path.read_bytes()
    yield "guest_tests/__init__.py", b""
    yield "main.py", MAIN


def _digest(sources: dict[str, bytes]) -> str:
    digest = hashlib.sha256(f"{PYTHON} {importlib.metadata.version('pytest')}".encode())
    for name, content in sources.items():
        digest.update(f"{len(name)}:{name}:{len(content)}:".encode() + content)
    return digest.hexdigest()[:16]


def _make(root: Path, sources: dict[str, bytes], python: GuestPython) -> None:
    shutil.rmtree(root, ignore_errors=True)  # an interrupted one
    for name, content in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if problem := python.compile(root, root, "/payload", COMPILE_SECONDS):
        raise PartsError("guest library", f"the guest's Python cannot compile it: {problem}")
    (root / INI).write_text("[pytest]\n")


def _prune(kept: Path, current: Path) -> None:
    others = sorted((path for path in kept.iterdir() if path != current), key=lambda path: path.stat().st_mtime)
    for path in others[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def tier_of_environment() -> dict[str, str]:
    """VDEV_TIER where it is set: the time a test may take can depend on it."""
    return {"VDEV_TIER": os.environ["VDEV_TIER"]} if "VDEV_TIER" in os.environ else {}
