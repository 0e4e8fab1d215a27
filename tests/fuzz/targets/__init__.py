"""The fuzz targets: what receives bytes from a side that nobody trusts.

A target is a module here with

    def one_input(data: bytes) -> None

which plays `data` and raises for nothing: whatever it raises is a finding, as is an input that takes too long or too
much memory. What it plays must depend on `data` alone (no clock, no random numbers, nothing left from the input
before), or a finding cannot be replayed. Beside "nothing raises" it asserts what must hold, with AssertionError.
A module may have

    def seeds() -> Iterable[bytes]

good inputs made from real messages, from which the fuzzer starts. Modules import what they exercise at their top,
and only there: the runner instruments it while it imports the target.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """One row of the table; `packages` are the prefixes of module names whose branches guide the fuzzer."""

    name: str
    max_nbytes: int
    packages: tuple[str, ...]
    what: str

    @property
    def module(self) -> str:
        return f"{__name__}.{self.name}"

    def one_input(self) -> Callable[[bytes], None]:
        """The function that plays one input."""
        return importlib.import_module(self.module).one_input  # type: ignore[no-any-return]

    def seeds(self) -> list[bytes]:
        """Inputs made from real messages; none where the module has none."""
        make: Callable[[], Iterable[bytes]] = getattr(importlib.import_module(self.module), "seeds", tuple)
        return list(make())


_TABLE = (
    Target(
        "requests",
        max_nbytes=1024,
        packages=("vdev.iommu", "vdev.wire"),
        what="requests of any bytes and reply sizes, one after the other, to a unit's engine in every mode",
    ),
    Target(
        "pasids",
        max_nbytes=512,
        packages=("vdev.iommu", "vdev.wire"),
        what="requests of PASIDs to two units of a VM, answers of the host's allocator, accesses, resets, restores",
    ),
    Target(
        "rings",
        max_nbytes=768,
        packages=("vdev.virtio", "vdev.functions", "vdev.memory", "vdev.endpoints", "vdev.wire"),
        what="descriptors, indirect tables and indexes in guest RAM, for a unit's rings and an rng's",
    ),
    Target(
        "registers",
        max_nbytes=512,
        packages=("vdev.pci", "vdev.functions", "vdev.endpoints", "vdev.virtio", "vdev.iommu"),
        what="BAR and configuration space accesses at any offset and width, resets in between, to every function",
    ),
    Target(
        "accelerator",
        max_nbytes=512,
        packages=("vdev.endpoints", "vdev.functions.dma", "vdev.iommu", "vdev.pci.base", "vdev.memory"),
        what="descriptors and registers of the accelerator, and mappings that change under its DMA",
    ),
    Target(
        "faults",
        max_nbytes=512,
        packages=("vdev.faults", "vdev.injector"),
        what="fault plans of any text at a VM at work, traffic that meets them, time, resets and clear",
    ),
    Target(
        "vfio_user",
        max_nbytes=768,
        packages=("vdev.transports", "vdev.wire", "vdev.memory"),
        what="messages and bytes of a vfio-user peer, with any descriptors, at a connection",
    ),
    Target(
        "vhost_user",
        max_nbytes=768,
        packages=("vdev.transports", "vdev.functions", "vdev.virtio", "vdev.wire", "vdev.memory"),
        what="messages and bytes of a vhost-user front end at a unit whose rings run, stop and run again",
    ),
    Target(
        "config_yaml",
        max_nbytes=2048,
        packages=("vdev.config", "vdev.qemu", "vdev.assemble", "guest_tests.runner.suite", "guest_tests.scenario"),
        what="configurations, guest-suite.yaml, scenarios, fault plans, and what is made of those that are accepted",
    ),
    Target(
        "qmp_stream",
        max_nbytes=1024,
        packages=("qmp_bridge.bridge", "qmp_bridge.json_stream", "qmp_bridge.json_text", "vdev.qapi.check"),
        what="bytes of a QMP client, in pieces of any size, at the bridge's monitor",
    ),
    Target(
        "control",
        max_nbytes=1024,
        packages=("vdev.control.server", "vdev.control.messages", "vdev.qapi.check"),
        what="lines of a client of the control socket, in pieces of any size",
    ),
    Target(
        "snapshot",
        max_nbytes=1024,
        packages=("vdev.iommu",),
        what="saved state of a unit, restored in another",
    ),
    Target(
        "trace_file",
        max_nbytes=2048,
        packages=("vdev.trace",),
        what="a trace file that somebody sends, as vdev trace shows it",
    ),
)
TARGETS = {target.name: target for target in _TABLE}
