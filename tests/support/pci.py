"""A PCI function that notes its hooks, and a driver's configuration accesses to it."""

from __future__ import annotations

from vdev.pci import capabilities
from vdev.pci.base import PciFunction
from vdev.pci.config_space import Identity
from vdev.pci.function import Bar
from vdev.pci.msix import MsixLayout

IDENTITY = Identity(0x1234, 0x7664, 0x088000, 1, 0x1234, 0x7664)
BARS = (Bar(0, 4096), Bar(2, 1 << 20, prefetchable=True), Bar(4, 4096, is_64bit=False))
EXTENDED = (
    capabilities.aer(),
    capabilities.ats(),
    capabilities.pri(64),
    capabilities.pasid(16, execute=True),
    capabilities.acs(),
)


class Recorder(PciFunction):
    """A function that notes its hooks."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        super().__init__("recorder", IDENTITY, BARS, MsixLayout(2, 4), extended=EXTENDED)

    def on_reset(self) -> None:
        self.calls.append(f"reset dma={self.dma_enabled}")

    def on_bus_master(self, enabled: bool) -> None:
        self.calls.append(f"bus master {enabled}")

    def read_register(self, bar: int, offset: int, nbytes: int) -> bytes:
        return bytes([0xAB]) * nbytes

    def write_register(self, bar: int, offset: int, data: bytes) -> None:
        self.calls.append(f"write {bar}:{offset:#x} {data.hex()}")


def put(function: PciFunction, offset: int, nbytes: int, value: int) -> None:
    function.config_write(offset, value.to_bytes(nbytes, "little"))


def get(function: PciFunction, offset: int, nbytes: int) -> int:
    return int.from_bytes(function.config_read(offset, nbytes), "little")


def standard(function: PciFunction, cap_id: int) -> int:
    offset = function.config.find(cap_id)
    assert offset is not None
    return offset


def extended(function: PciFunction, cap_id: int) -> int:
    offset = function.config.find(cap_id, extended=True)
    assert offset is not None
    return offset


def extended_chain(function: PciFunction) -> list[tuple[int, int]]:
    """(id, offset) along the extended list."""
    out, offset = [], 0x100
    while offset:
        word = get(function, offset, 4)
        out.append((word & 0xFFFF, offset))
        offset = word >> 20
    return out
