"""Runs in the guest, called by test_commands_in_guest.py: an accelerator opened through VFIO, stock drivers all."""

from __future__ import annotations

import contextlib
import os
import time
from contextlib import ExitStack
from pathlib import Path

from guest_tests.payload import accel, checks_open, vfio
from guest_tests.payload.guest import KernelLog
from guest_tests.payload.lab import MARKER, MIB, NOWHERE_IOVA, PAGE, RING_IOVA, SOURCE_IOVA, TARGET_IOVA, Lab, copy

PAGEMAP_ENTRY_NBYTES = 8
PAGEMAP_PFN = (1 << 55) - 1
OUT_OF_THE_WAY_IOVA = 0x5000_0000
SETTLE_S = 0.1
FILL_IOVA = 0x1_0000_0000
FILL_NTIMES = 128

_open: list[tuple[Lab, ExitStack]] = []


def start() -> dict[str, int]:
    """Open the accelerator and map a source for reading and a target for writing; what is mapped, in bytes, by IOVA."""
    lab, stack = Lab(KernelLog()), ExitStack()
    for check in (checks_open.driver_bound, checks_open.own_group, checks_open.opens_through_vfio):
        check(lab)
    stack.callback(checks_open.gives_everything_back, lab)
    lab.randomise_source()
    stack.enter_context(lab.both_mapped())
    _open.append((lab, stack))
    return {"ring": RING_IOVA, "source": SOURCE_IOVA, "target": TARGET_IOVA, "nbytes": 2 * MIB + lab.ring.nbytes}


def gpa_of_source(offset: int) -> int:
    """The guest-physical address of a byte of the source, as the guest's kernel has it."""
    virtual = _lab().source.address + offset
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(virtual // PAGE * PAGEMAP_ENTRY_NBYTES)
        entry = int.from_bytes(pagemap.read(PAGEMAP_ENTRY_NBYTES), "little")
    return (entry & PAGEMAP_PFN) * PAGE + virtual % PAGE


def refused() -> dict[str, object]:
    """A copy from an address that is not mapped; what the guest saw of its refusal."""
    return _lab().run_refused(copy(PAGE, src=NOWHERE_IOVA), NOWHERE_IOVA, accel.READ)


def copy_works() -> bool:
    """A copy of everything that is mapped."""
    lab = _lab()
    lab.run_ok(copy())
    return bool(lab.source.memory == lab.target.memory)


def is_running() -> bool:
    """Whether the engine works its ring."""
    return bool(_lab().engine.registers.read32(accel.STATUS) & accel.RUNNING)


def map_again() -> None:
    """Map one more page through the domain that Linux thinks it has, and take it away. Linux puts up with a refusal."""
    with contextlib.suppress(OSError):
        _lab().container.map(OUT_OF_THE_WAY_IOVA, _lab().target, vfio.READ, nbytes=PAGE)
    with contextlib.suppress(OSError):
        _lab().container.unmap(OUT_OF_THE_WAY_IOVA, PAGE)


def write_endlessly() -> None:
    """Have the accelerator fill the target for seconds: under many addresses, as often as its ring holds that."""
    lab = _lab()
    nbytes = lab.target.nbytes
    for number in range(FILL_NTIMES):
        lab.container.map(FILL_IOVA + number * nbytes, lab.target, vfio.WRITE)
    fill = accel.Operation(accel.FILL, dst=FILL_IOVA, nbytes=FILL_NTIMES * nbytes, arg=MARKER * 0x0101010101010101)
    lab.engine.submit(*[fill] * (accel.RING_NENTRIES - 1))


def bytes_land() -> bool:
    """Wipe the target; whether anything arrives there afterwards."""
    target = _lab().target
    target.fill(0)
    time.sleep(SETTLE_S)
    return bool(target.memory != bytes(target.nbytes))


def start_anew() -> bool:
    """Give all back, whatever the unit says to it, and open it again; whether a copy works then."""
    lab, stack = _open.pop()
    with contextlib.suppress(Exception):
        stack.close()
    with contextlib.suppress(Exception):
        lab.close()
    start()
    return copy_works()


def config_interrupts() -> int:
    """How many configuration interrupts the IOMMU's driver has had; without MSI-X the others count, too."""
    name = next(entry.name for entry in checks_open.DRIVER.iterdir() if entry.name.startswith("virtio"))
    lines = Path("/proc/interrupts").read_text().splitlines()
    for ending in (f" {name}-config", f" {name}"):
        for line in lines:
            if line.endswith(ending):
                return sum(int(word) for word in line.split()[1 : 1 + (os.cpu_count() or 1)])
    raise LookupError(f"{name} has no interrupt: {lines}")


def trouble() -> list[str]:
    """What the guest's kernel complained of that it should not have."""
    bad = ("BUG:", "Oops", "stall", "soft lockup", "hung task", "Call Trace")
    return [line for word in bad for line in _lab().log.find(word)]


def _lab() -> Lab:
    return _open[-1][0]
