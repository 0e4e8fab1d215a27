"""Where random bytes for guests come from: the host's generator, or a stream that is the same in every run."""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import sha256

BLOCK_NBYTES = 32


def open_entropy(seed: int | None) -> Callable[[int], bytes]:
    """A source of as many bytes as one asks it for; `seed` None is the host's own generator. Never blocks."""
    return os.urandom if seed is None else SeededEntropy(seed)  # urandom is getrandom(2) until all bytes are there


class SeededEntropy:
    """A deterministic stream: block i is SHA-256 of the text "SEED:i", so that a test can compute it for itself."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._next = 0  # block
        self._rest = b""

    def __call__(self, nbytes: int) -> bytes:
        """The stream's next `nbytes` bytes."""
        missing = -(-max(nbytes - len(self._rest), 0) // BLOCK_NBYTES)
        blocks = range(self._next, self._next + missing)
        self._next += missing
        data = self._rest + b"".join(sha256(f"{self._seed}:{number}".encode()).digest() for number in blocks)
        self._rest = data[nbytes:]
        return data[:nbytes]
