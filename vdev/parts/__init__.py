"""Parts from outside, fetched, checked and cached: QEMU, guest kernels, the guest's userland, initramfs.

Imports `vdev.errors` and the standard library only: scripts/bootstrap.py uses it before
anything is installed.
"""

from __future__ import annotations
