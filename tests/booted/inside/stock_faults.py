"""Runs in the guest, called by test_faults_stock.py: the accelerator under VFIO, and work that may never end."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager

from guest_tests.payload import symbols, vfio
from guest_tests.payload.guest import KernelLog
from guest_tests.payload.lab import PAGE, SOURCE_IOVA, Lab, copy
from guest_tests.payload.stock_fixtures import opened_lab

DELAY_S = 0.3  # until the answer to the call has reached the host
log = KernelLog()
opened: list[tuple[AbstractContextManager[Lab], Lab]] = []


def places(*, words: list[str]) -> list[symbols.Place]:
    """Functions of the kernel, see `symbols.places`."""
    return symbols.places(*words)


def start() -> None:
    """Open the accelerator; it stays open."""
    holder = opened_lab(log)
    opened.append((holder, holder.__enter__()))


def copies() -> bool:
    """Whether a copy of everything arrives, mapped and unmapped."""
    _, lab = opened[-1]
    content = lab.randomise_source()
    with lab.both_mapped():
        lab.run_ok(copy())
    return lab.target.memory == content


def map_soon(*, npages: int = 1) -> None:
    """Map so many pages, one after the other, in a little while and in a thread of its own."""

    def later() -> None:
        time.sleep(DELAY_S)
        _, lab = opened[-1]
        for start in range(0, npages * PAGE, PAGE):
            offset = start % len(lab.source.memory)
            lab.container.map(SOURCE_IOVA + start, lab.source, vfio.READ, offset=offset, nbytes=PAGE)

    threading.Thread(target=later, daemon=True).start()


def kernel_says(*, words: str) -> list[str]:
    """Lines of the kernel's log with these words."""
    return log.find(words)
