"""Stands in for `vdev` under the launcher: `python fake_backend.py PART serve --exit-with-vm CONFIG --runtime-dir DIR`.

PART is serve, refuse, die (0.5 s after it was ready), early (before), garbage or elsewhere (its sockets are not where
they should be).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from vdev.config import load_config
from vdev.qemu.machine import expected_functions


def main() -> int:
    part, _, _, config_path, _, directory = sys.argv[1:]
    config = load_config(Path(config_path))
    if part == "refuse":
        sys.stderr.write("vdev: test.yaml: endpoints[0].model: there is no model 'toaster'\n")
        return 2
    if part == "early":
        sys.stderr.write("something is very wrong\n")
        return 1
    place = "/elsewhere" if part == "elsewhere" else directory
    sockets = {name: f"{place}/{name}.sock" for name in expected_functions(config)}
    ready = json.dumps({"ready": True, "sockets": sockets, "control": f"{directory}/control.sock"})
    sys.stdout.write("garbage\n" if part == "garbage" else ready + "\n")
    sys.stdout.flush()
    if part == "die":
        time.sleep(0.5)
        sys.stderr.write("the backend's last words\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
