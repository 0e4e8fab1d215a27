"""The backend with one thing taken away: a unit's suspended rings do not hold the DMA of its endpoints.

tests/booted/test_stop_cont.py runs it to see guest RAM change over vhost-user; without that nobody could tell that its
comparison of hashes can fail there. `python -m tests.support.unheld_backend ARGUMENTS-OF-VDEV...`
"""

from __future__ import annotations

import sys

from vdev.__main__ import main
from vdev.functions.freezer import Freezer

_set = Freezer.set


def _unless_of_the_rings(self: Freezer, holder: str, held: bool) -> None:
    if holder != "rings suspended":
        _set(self, holder, held)


if __name__ == "__main__":
    Freezer.set = _unless_of_the_rings  # type: ignore[method-assign]
    sys.exit(main())
