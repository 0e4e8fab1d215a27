"""The directory one running VM lives in: sockets, VIOT, logs. Private, short, and gone afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from vdev.errors import ConfigError

PREFIX = "vdev-"
_MAX_BASE_NBYTES = 50  # leaves room for "/vdev-12345678/NAME.sock" in a socket's address
_BAD_IN_OPTIONS = ":,"  # QEMU's options would take them apart


def runtime_base() -> Path:
    """Where runtime directories are made: the user's own place if it is there and short, else /tmp."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    usable = given.startswith("/") and len(given.encode()) <= _MAX_BASE_NBYTES and not set(given) & set(_BAD_IN_OPTIONS)
    return Path(given) if usable and os.access(given, os.W_OK | os.X_OK) else Path("/tmp")


class RunDirectory:
    """Made by the constructor with mode 0700; `remove` takes it away, `keep_logs` moves its logs out first."""

    def __init__(self, base: Path | None = None) -> None:
        """Raises ConfigError when no directory can be made."""
        base = base or runtime_base()
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
            self.logs = self.path / "logs"
            try:
                self.logs.mkdir()
            except OSError:
                self.remove()
                raise
        except OSError as error:
            raise ConfigError("runtime directory", f"{error}", "set XDG_RUNTIME_DIR to a directory of yours") from None

    def keep_logs(self, target: Path, name: str) -> Path:
        """Move the logs to `target`/`name`-TIME and return that path.

        Raises OSError when they do not fit; nothing of them is left there then.
        """
        target.mkdir(parents=True, exist_ok=True)
        stamp = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        kept = target / stamp
        for attempt in range(2, 1000):
            if not kept.exists():
                break
            kept = target / f"{stamp}-{attempt}"
        try:
            shutil.move(self.logs, kept)
        except shutil.Error as error:  # of the copy to another file system: it tells of every file
            shutil.rmtree(kept, ignore_errors=True)
            raise OSError(str(error.args[0][0][-1])) from error
        return kept

    def remove(self) -> None:
        """Delete the directory with everything in it. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
