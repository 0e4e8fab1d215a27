"""Paths that a person gives: made absolute, and looked at once with an error in words."""

from __future__ import annotations

from pathlib import Path

from vdev.errors import PartsError


def own_path(key: str, given: str) -> Path:
    """The absolute path that `given` means, which need not exist; `key` is what errors call it.

    :raise PartsError: it cannot even be looked at. `Path.is_file` and its like would raise OSError for that.
    """
    try:
        path = Path(given).expanduser().absolute()
    except RuntimeError:
        raise PartsError(key, f"{given}: there is no such user", "write the path without ~") from None
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # what that means is the caller's to say
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a path has no NUL in it"
        raise PartsError(key, f"{given}: {reason}", "it must be a path that you may look at") from None
    return path
