"""`python -m vdev.parts fetch [KERNEL...]` fills the cache; `python -m vdev.parts doctor` reports."""

from __future__ import annotations

import sys

from vdev.errors import PartsError
from vdev.parts.cache import Cache
from vdev.parts.doctor import doctor
from vdev.parts.kernel import DEFAULT_FLAVOUR, find_kernel
from vdev.parts.progress import to_stderr
from vdev.parts.qemu import find_qemu
from vdev.parts.userland import guest_userland

USAGE = "usage: python -m vdev.parts fetch [KERNEL...] | doctor"


def main(arguments: list[str]) -> int:
    """Run one of the two commands; 2 for a wrong command line or a part that cannot be had."""
    if arguments == ["doctor"]:
        return doctor(to_stderr)
    if arguments[:1] != ["fetch"]:
        to_stderr(USAGE)
        return 2
    try:
        cache = Cache()
        find_qemu(None, to_stderr, cache)
        for spec in arguments[1:] or [DEFAULT_FLAVOUR]:
            find_kernel(spec, to_stderr, cache)
        guest_userland(cache, to_stderr)
    except PartsError as error:
        to_stderr(str(error))
        return 2
    except KeyboardInterrupt:
        to_stderr("stopped; what is complete stays in the cache")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
