"""The cache of parts: ROOT/PART/VERSION/, each made complete in a staging directory and then renamed into place.

`current.json` in the root maps a part to the directory in use, so that a second run needs no network.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vdev.errors import PartsError
from vdev.parts.progress import Say, quiet

MANIFEST = "manifest.json"
INDEX = "current.json"
FORMAT = 2  # raise it when the layout of a part changes: older directories are then fetched anew
CHUNK_NBYTES = 1 << 20


@dataclass(frozen=True)
class Package:
    """One Debian package a part was made from; `sha256` is that of the .deb."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a part is made of. `files` are those it cannot do without: SHA-256 by relative path (see `digests`)."""

    part: str
    version: str
    packages: tuple[Package, ...]
    files: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read and check the manifest of `directory`.

        :raise PartsError: absent, malformed, of another format, or a file it names is missing or changed.
        """
        try:
            data = json.loads((directory / MANIFEST).read_text())
            found = data.pop("format")
            packages = tuple(Package(**package) for package in data.pop("packages"))
            manifest = cls(packages=packages, files=dict(data.pop("files")), **data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise PartsError("cache", f"{directory} has no usable {MANIFEST} ({error!r})") from error
        if found != FORMAT:
            raise PartsError("cache", f"{directory} has format {found}, not {FORMAT}")
        for name, digest in manifest.files.items():
            if not (directory / name).is_file():
                raise PartsError("cache", f"{directory} lacks {name}")
            if sha256_of(directory / name) != digest:
                raise PartsError("cache", f"{directory / name} is damaged")
        return manifest


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_NBYTES):
            digest.update(chunk)
    return digest.hexdigest()


def digests(directory: Path, *names: str) -> dict[str, str]:
    """SHA-256 of files by their path relative to `directory`, as a manifest keeps them."""
    return {name: sha256_of(directory / name) for name in names}


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`: a reader sees the old or the new content, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    Path(name).replace(path)


def default_root(environ: Mapping[str, str]) -> Path:
    """VDEV_CACHE, else XDG_CACHE_HOME/vdev, else ~/.cache/vdev."""
    if named := environ.get("VDEV_CACHE"):
        return Path(named).expanduser().absolute()
    if xdg := environ.get("XDG_CACHE_HOME"):
        return Path(xdg).absolute() / "vdev"
    return Path.home() / ".cache" / "vdev"


class Cache:
    """All parts under one root directory. Parts are named by paths such as `qemu` or `kernel/cloud`."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = default_root(os.environ) if root is None else root

    def current(self, part: str, say: Say = quiet) -> Path | None:
        """Directory of the complete part in use, or None; `say` is told why one is not used.

        Touches no network and takes no lock. What cannot be read counts as absent.
        """
        named = self._index().get(part)
        candidates = [self.root / named] if isinstance(named, str) else []
        # Without an index entry (index lost or damaged) the newest complete directory is still good.
        for directory in dict.fromkeys((*candidates, *self._newest_first(part))):
            try:
                if Manifest.load(directory).part == part:
                    return directory
            except (PartsError, OSError) as why:
                say(f"not used: {why.problem if isinstance(why, PartsError) else why}")
        return None

    def _newest_first(self, part: str) -> list[Path]:
        try:
            manifests = sorted((self.root / part).glob(f"*/{MANIFEST}"), key=lambda path: -path.stat().st_mtime)
        except OSError:
            return []
        return [path.parent for path in manifests]

    def get(self, part: str, fetch: Callable[[Path], Manifest], say: Say) -> Path:
        """The part in use; when there is none, `fetch` fills a staging directory that then becomes it.

        :raise PartsError: `fetch` failed, or the cache cannot be written. Nothing half-made stays.
        """
        if found := self.current(part):
            return found
        try:
            with self.lock(say):
                return self.current(part, say) or self._install(part, fetch)
        except OSError as error:
            cure = "free space there, or set VDEV_CACHE to another directory of yours"
            raise PartsError("cache", f"{self.root}: {error}", cure) from error

    @contextmanager
    def lock(self, say: Say) -> Iterator[None]:
        """Hold the cache against other processes; the kernel releases it if we die."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another vdev is filling {self.root}; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _install(self, part: str, fetch: Callable[[Path], Manifest]) -> Path:
        staging_root = self.root / "staging"
        shutil.rmtree(staging_root, ignore_errors=True)  # we hold the lock: what is there was interrupted
        staging_root.mkdir(parents=True)
        try:
            staging = Path(tempfile.mkdtemp(dir=staging_root))
            staging.chmod(0o755)
            manifest = fetch(staging)
            (staging / MANIFEST).write_text(manifest.to_json())
            Manifest.load(staging)
            os.sync()  # a rename that survives a power cut must not survive its content
            target = self.root / part / directory_name(manifest.version)
            shutil.rmtree(target, ignore_errors=True)  # only an incomplete one can be there: current() found none
            target.parent.mkdir(parents=True, exist_ok=True)
            staging.rename(target)
        finally:
            shutil.rmtree(staging_root, ignore_errors=True)
        index = {**self._index(), part: str(target.relative_to(self.root))}
        write_atomically(self.root / INDEX, json.dumps(index, indent=1, sort_keys=True) + "\n")
        return target

    def _index(self) -> dict[str, object]:
        try:
            index = json.loads((self.root / INDEX).read_text())
        except (OSError, ValueError):
            return {}
        return index if isinstance(index, dict) else {}


def directory_name(version: str) -> str:
    """`version` as a directory name: no `:` or `;`, which separate entries of a library path."""
    return "".join(char if char.isalnum() or char in ".+-~" else "_" for char in version)
