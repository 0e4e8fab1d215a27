"""What a race that is lost raises."""

from __future__ import annotations


class RaceError(AssertionError):
    """Something moved after it must not, or an operation came to something it never may."""
