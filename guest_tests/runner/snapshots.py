"""The saved guests in the cache, found by everything a saved guest depends on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from qmp_bridge.errors import VmDied
from qmp_bridge.plan import Options, Parts, paths_in, with_append
from qmp_bridge.snapshot import save_guest
from vdev.config import Config
from vdev.parts.cache import Cache
from vdev.parts.progress import Say
from vdev.qemu.restorable import source_arguments

DIRECTORY = "guest-snapshots"
KEPT = 8  # 150 MB each on disk; our own suites have four
UNFINISHED_S = 3600.0
_ANYWHERE = Path("/run/vdev")  # sockets and logs are elsewhere each time


def snapshot_path(config: Config, parts: Parts, options: Options, cache: Cache) -> Path:
    """Where the guest is, or would be, that can be restored as this machine."""
    config = msgspec.structs.replace(config, vm=msgspec.structs.replace(config.vm, name="any"))
    arguments = source_arguments(with_append(config, options), paths_in(_ANYWHERE, parts), parts.accel)
    named = (parts.kernel, parts.initrd, parts.qemu[0])
    files = [_identity(path) for path in named if path and not Path(path).is_relative_to(cache.root)]
    text = json.dumps([arguments, parts.version, list(parts.qemu), files])
    return cache.root / DIRECTORY / hashlib.sha256(text.encode()).hexdigest()[:24]


async def saved_guest(config: Config, parts: Parts, options: Options, cache: Cache, say: Say) -> Path | None:
    """A guest to restore, made now if there is none; None, and `say` is told why, when it cannot be made."""
    path = snapshot_path(config, parts, options, cache)
    try:
        if not path.is_file():
            say(f"booting {config.vm.name} once to save it; from then on it is restored in half a second")
            await save_guest(config, parts, options, path)
            prune(path.parent, time.time())
        os.utime(path)
    except (VmDied, OSError) as error:
        say(f"guests are booted, not restored: {error}")
        return None
    return path


def forget(path: Path) -> None:
    """Remove a saved guest that cannot be restored."""
    with suppress(OSError):
        path.unlink()


def prune(directory: Path, now: float) -> None:
    """Keep the saved guests used last; remove what an interrupted save left."""
    saved = [path for path in directory.iterdir() if not path.name.startswith(".")]
    for path in sorted(saved, key=lambda path: path.stat().st_mtime)[:-KEPT]:
        forget(path)
    for path in directory.glob(".saving-*"):
        if now - path.stat().st_mtime > UNFINISHED_S:
            forget(path)


def _identity(path: str) -> list[object]:
    """What tells a user's own file from another version of it; those of the cache never change under their name."""
    try:
        stat = os.stat(path)
    except OSError:
        return [path]
    return [path, stat.st_size, stat.st_mtime_ns]
