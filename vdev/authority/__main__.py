"""An authority on demand. It leaves the process that started it behind at once, before anything is imported."""

import os
import sys


def _detach() -> None:
    if os.fork():
        os._exit(0)
    os.setsid()


if __name__ == "__main__":
    _detach()
    from vdev.authority.command import run_on_demand

    sys.exit(run_on_demand(sys.argv[1:]))
