"""The backend with one thing taken away: a unit's suspended rings do not hold the DMA of its endpoints.

test_stop_cont runs it to see guest RAM change, without which its comparison could not be known to be able to fail over
vhost-user. `python -m guest_tests.unheld_backend ARGUMENTS-OF-VDEV...`
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
