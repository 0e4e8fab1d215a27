"""Hostile acts with guest RAM: maps that make no sense, are too many or too large, and files that shrink."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.hostile_peer import Peer, dma_map
from vdev.transports.ram import MAX_FILES
from vdev.wire import vfio_user as wire
from vdev.wire.vfio_user import Command

PAGE = 4096
HUGE_NBYTES = 1 << 44


@contextmanager
def memfd(nbytes: int, *, sealed: bool = True) -> Iterator[int]:
    """A memfd, sealed as QEMU seals."""
    fd = os.memfd_create("hostile-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, nbytes)
        if sealed:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        yield fd
    finally:
        os.close(fd)


def senseless(gpa: int, nbytes: int, offset: int = 0) -> Callable[[Path], None]:
    """A map of one page's file that must be refused."""

    def act(path: Path) -> None:
        with Peer(path).negotiated() as peer, memfd(PAGE) as fd:
            peer.refused(Command.DMA_MAP, dma_map(gpa, nbytes, offset), [fd])

    return act


def truncated(path: Path) -> None:
    """Unsealed RAM, truncated once it is mapped; then something that would touch it."""
    with Peer(path).negotiated() as peer, memfd(1 << 20, sealed=False) as fd:
        peer.request(Command.DMA_MAP, dma_map(0, 1 << 20), [fd])
        os.ftruncate(fd, 0)
        peer.request(Command.DEVICE_RESET)


def sparse(path: Path) -> None:
    """Files of 16 TiB with nothing in them: eight of them are our whole address space."""
    with Peer(path).negotiated() as peer:
        for index in range(12):
            with memfd(HUGE_NBYTES) as fd:
                peer.request(Command.DMA_MAP, dma_map(index << 45, HUGE_NBYTES), [fd])


def many_files(path: Path) -> None:
    with Peer(path).negotiated() as peer:
        for index in range(MAX_FILES + 4):
            with memfd(PAGE) as fd:
                peer.request(Command.DMA_MAP, dma_map(index * PAGE, PAGE), [fd])


def many_maps(path: Path) -> None:
    """As many as are promised, one more, and all away again one by one from the front."""
    with Peer(path).negotiated() as peer:
        for index in range(wire.MAX_DMA_MAPS):
            peer.message(Command.DMA_MAP, dma_map((1 + index) * PAGE, PAGE), flags=wire.NO_REPLY)
        peer.refused(Command.DMA_MAP, dma_map(0, PAGE))
        for index in range(wire.MAX_DMA_MAPS):
            payload = wire.DmaUnmap(24, 0, (1 + index) * PAGE, PAGE).pack()
            peer.message(Command.DMA_UNMAP, payload, flags=wire.NO_REPLY)
        peer.request(Command.DMA_MAP, dma_map(0, PAGE))


def shared_map_storm(path: Path) -> None:
    """The same file mapped and unmapped again and again."""
    with Peer(path).negotiated() as peer, memfd(PAGE) as fd:
        for _ in range(500):
            peer.request(Command.DMA_MAP, dma_map(0, PAGE), [fd])
            peer.request(Command.DMA_UNMAP, wire.DmaUnmap(24, 0, 0, PAGE).pack())


ACTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "beyond": ("maps more than the file has", senseless(0, 2 * PAGE), "the map ends at 0x2000"),
    "offset": ("maps from an offset behind the file", senseless(0, PAGE, 1 << 62), "the map ends at"),
    "offset-overflow": ("maps from an offset no file has", senseless(0, PAGE, (1 << 64) - PAGE), "DMA_MAP of"),
    "overflow": ("maps past the end of the address space", senseless((1 << 64) - PAGE, 2 * PAGE), "DMA_MAP of 0x2000"),
    "nothing": ("maps no bytes", senseless(0, 0), "DMA_MAP of 0x0"),
    "truncated": ("truncates its unsealed RAM once it is mapped", truncated, "not sealed against shrinking"),
    "sparse": ("maps twelve files of 16 TiB", sparse, "takes the VM past"),
    "many-files": ("maps 260 files", many_files, "more than 256 RAM files"),
    "many-maps": ("makes 65536 maps", many_maps, "more than 65535 DMA maps"),
    "map-storm": ("maps and unmaps 500 times", shared_map_storm, ""),
}
