"""One bad client in a process of its own: `python -m benchmarks.monitor PATH SECONDS`."""

from __future__ import annotations

import sys
import time

from benchmarks.monitor.crowd import malformed

if __name__ == "__main__":
    end = time.monotonic() + float(sys.argv[2])
    malformed(sys.argv[1], lambda: time.monotonic() < end, seed=1)
