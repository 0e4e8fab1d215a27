"""Guest RAM: one mapping per inode, who may touch what, and files that must not be trusted."""

from __future__ import annotations

import errno
import fcntl
import gc
import logging
import mmap
import os
from pathlib import Path

import pytest

from tests.support import vfio_scene
from tests.support.ram_scene import RamScene as Scene
from tests.support.vfio_scene import PAGE, GuestRam, open_fds
from vdev.errors import MemoryAccessError, MessageError
from vdev.transports.ram import MAX_FILES, RamFiles, is_shared
from vdev.wire import vfio_user as wire

every_fd_is_closed = vfio_scene.every_fd_is_closed


def test_both_sides_see_the_same_bytes() -> None:
    with GuestRam(16 * PAGE) as guest:
        assert guest.map is not None
        scene = Scene()
        scene.map(0x10000, 4 * PAGE, guest.fd, offset=2 * PAGE)

        guest.map[2 * PAGE : 2 * PAGE + 5] = b"hello"
        scene.table.write(0x10000 + PAGE, b"world")

        assert scene.table.read(0x10000, 5) == b"hello"
        assert guest.map[3 * PAGE : 3 * PAGE + 5] == b"world"


def test_a_file_is_mapped_once_for_all_connections_and_forgotten_with_the_last_region() -> None:
    with GuestRam(16 * PAGE) as guest:
        files = RamFiles()
        first, second = Scene(files), Scene(files)
        before = len(open_fds())
        another = os.dup(guest.fd)
        first.map(0, PAGE, guest.fd)
        first.map(PAGE, PAGE, another, offset=PAGE)
        second.map(0, 2 * PAGE, another)
        os.close(another)

        assert len(files) == 1
        assert files.describe()[0]["regions"] == 3
        assert len(open_fds()) == before + 1  # the mapping's own duplicate

        first.ram.clear()
        assert len(files) == 1
        second.unmap(0, 2 * PAGE)
        gc.collect()
        assert len(files) == 0
        assert len(open_fds()) == before


def test_a_view_kept_past_the_unmap_stays_readable() -> None:
    with GuestRam(PAGE) as guest:
        scene = Scene()
        scene.map(0, PAGE, guest.fd)
        view = scene.table.slices(0, 16, write=True)[0]

        scene.unmap(0, PAGE)

        view[:4] = b"ring"
        assert bytes(view[:4]) == b"ring"


def test_memory_mapped_without_write_permission_cannot_be_written() -> None:
    with GuestRam(PAGE) as guest:
        scene = Scene()
        scene.map(0, PAGE, guest.fd, flags=wire.DmaFlags.READ)

        assert scene.table.read(0, 4) == bytes(4)
        with pytest.raises(MemoryAccessError):
            scene.table.write(0, b"x")


def test_a_read_only_fd_gives_read_only_memory(tmp_path: Path) -> None:
    path = tmp_path / "rom"
    path.write_bytes(b"rom!" + bytes(PAGE - 4))
    fd = os.open(path, os.O_RDONLY)
    scene = Scene(pid=0)
    scene.map(0, PAGE, fd)
    os.close(fd)

    assert scene.table.read(0, 4) == b"rom!"
    with pytest.raises(MemoryAccessError):
        scene.table.write(0, b"x")


def test_memory_mapped_without_read_permission_cannot_be_read() -> None:
    with GuestRam(PAGE) as guest:
        scene = Scene()
        scene.map(0, PAGE, guest.fd, flags=wire.DmaFlags.WRITE)

        scene.table.write(0, b"x")
        with pytest.raises(MemoryAccessError):
            scene.table.read(0, 1)


def test_main_ram_without_fd_is_not_dma_able_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()

    scene.map(0, PAGE)
    scene.unmap(0, PAGE)
    scene.map(0, PAGE)

    assert scene.ram.describe() == {"regions": 1, "dma_able_nbytes": 0, "unreachable_nbytes": PAGE}
    assert [record.message for record in caplog.records if "memory-backend-memfd" in record.message] != []
    assert len(caplog.records) == 1


def test_privately_mapped_ram_is_accepted_but_not_dma_able_and_share_on_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with GuestRam(2 * PAGE, share=False) as guest:
        scene = Scene()

        scene.map(0, PAGE, guest.fd)
        scene.map(PAGE, PAGE, guest.fd, offset=PAGE)

        assert [region.view for region in scene.table.regions()] == [None, None]
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert "share=on" in caplog.text
        assert len(scene.files) == 0


def test_ram_whose_sharing_cannot_be_seen_is_used() -> None:
    with GuestRam(PAGE, mapped=False) as guest:
        scene = Scene()
        scene.map(0, PAGE, guest.fd)

        assert scene.table.read(0, 1) == b"\0"
        assert scene.files.describe()[0]["shared"] == "unknown"


def test_sharing_is_read_from_the_maps_of_the_process() -> None:
    with GuestRam(PAGE) as shared, GuestRam(PAGE, share=False) as private, GuestRam(PAGE, mapped=False) as unmapped:
        verdicts = []
        for guest in (shared, private, unmapped):
            status = os.fstat(guest.fd)
            verdicts.append(is_shared(os.getpid(), status.st_dev, status.st_ino))

        assert verdicts == [True, False, None]
        assert is_shared(0, 1, 1) is None


def test_unsealed_ram_is_used_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with GuestRam(PAGE, sealed=False) as guest, caplog.at_level(logging.WARNING):
        scene = Scene()
        scene.map(0, PAGE, guest.fd)

        assert scene.files.describe()[0]["sealed"] is False
        assert scene.table.read(0, 1) == b"\0"
        assert "not sealed" in caplog.text


def test_sealed_ram_is_used_silently(caplog: pytest.LogCaptureFixture) -> None:
    with GuestRam(PAGE) as guest:
        scene = Scene()
        scene.map(0, PAGE, guest.fd)

        assert scene.files.describe()[0]["sealed"] is True
        assert caplog.text == ""


def test_unsealed_ram_is_not_dma_able_where_seals_are_required(caplog: pytest.LogCaptureFixture) -> None:
    with GuestRam(PAGE, sealed=False) as guest:
        scene = Scene(RamFiles(require_sealed=True))
        scene.map(0, PAGE, guest.fd)

        assert scene.table.regions()[0].view is None
        assert "not sealed" in caplog.text
        assert "vm.unsealed_ram: allow" in caplog.text


def test_a_map_beyond_the_file_is_refused() -> None:
    with GuestRam(2 * PAGE) as guest:
        scene = Scene()
        with pytest.raises(MessageError) as refusal:
            scene.map(0, 2 * PAGE, guest.fd, offset=PAGE)

        assert refusal.value.errno == errno.EINVAL
        assert len(scene.table) == len(scene.files) == 0


def test_a_file_that_has_grown_is_mapped_again() -> None:
    with GuestRam(PAGE, sealed=False) as guest:
        scene = Scene()
        scene.map(0, PAGE, guest.fd)
        os.ftruncate(guest.fd, 4 * PAGE)

        scene.map(PAGE, PAGE, guest.fd, offset=PAGE)
        scene.table.write(PAGE - 2, b"span")

        assert os.pread(guest.fd, 4, PAGE - 2) == b"span"


def test_a_write_sealed_file_is_read_only() -> None:
    with GuestRam(PAGE, sealed=False, mapped=False) as guest:
        fcntl.fcntl(guest.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK)
        scene = Scene()
        scene.map(0, PAGE, guest.fd)

        assert scene.table.regions()[0].writable is False


def test_an_fd_that_is_no_file_is_not_dma_able() -> None:
    reading, writing = os.pipe()
    scene = Scene()
    scene.map(0, PAGE, reading)
    os.close(reading)
    os.close(writing)

    assert scene.table.regions()[0].view is None


def test_a_file_too_large_to_map_is_not_dma_able() -> None:
    with GuestRam(PAGE, sealed=False, mapped=False) as guest:
        os.ftruncate(guest.fd, 1 << 50)
        scene = Scene()
        scene.map(0, PAGE, guest.fd)

        assert scene.table.regions()[0].view is None


def test_the_number_of_ram_files_is_capped() -> None:
    scene = Scene()
    for index in range(MAX_FILES + 1):
        with GuestRam(PAGE, mapped=False) as guest:
            scene.map(index * PAGE, PAGE, guest.fd)

    assert len(scene.files) == MAX_FILES
    assert scene.table.regions()[-1].view is None
    scene.ram.clear()


def test_the_number_of_regions_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_DMA_MAPS", 8)
    scene = Scene()
    for index in range(8):
        scene.map(index * PAGE, PAGE)
    with pytest.raises(MessageError) as refusal:
        scene.map(8 * PAGE, PAGE)

    assert refusal.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    "request_",
    [
        wire.DmaMap(31, 3, 0, 0, PAGE),
        wire.DmaMap(32, 0x10, 0, 0, PAGE),
        wire.DmaMap(32, 3, 0, 0, 0),
        wire.DmaMap(32, 3, 0, (1 << 64) - PAGE, 2 * PAGE),
        wire.DmaMap(32, 3, (1 << 64) - 1, 0, PAGE),
    ],
)
def test_a_map_that_makes_no_sense_is_refused(request_: wire.DmaMap) -> None:
    scene = Scene()
    with pytest.raises(MessageError) as refusal:
        scene.ram.map(request_, None)

    assert refusal.value.errno == errno.EINVAL
    assert len(scene.table) == 0


def test_an_overlapping_map_is_refused_and_holds_no_file() -> None:
    with GuestRam(4 * PAGE) as guest:
        scene = Scene()
        scene.map(0, 2 * PAGE)
        with pytest.raises(MessageError) as refusal:
            scene.map(PAGE, PAGE, guest.fd)

        assert refusal.value.errno == errno.EEXIST
        assert len(scene.files) == 0


def test_unmap_all_removes_everything() -> None:
    with GuestRam(4 * PAGE) as guest:
        scene = Scene()
        scene.map(0, PAGE, guest.fd)
        scene.map(1 << 40, PAGE)

        scene.unmap(0, 0, wire.UNMAP_ALL)

        assert len(scene.table) == len(scene.files) == 0


def test_one_unmap_may_cover_several_regions() -> None:
    with GuestRam(4 * PAGE) as guest:
        scene = Scene()
        for index in range(3):
            scene.map(index * PAGE, PAGE, guest.fd, offset=index * PAGE)

        scene.unmap(0, 2 * PAGE)

        assert [region.gpa for region in scene.table.regions()] == [2 * PAGE]
        assert scene.files.describe()[0]["regions"] == 1


@pytest.mark.parametrize(
    ("gpa", "nbytes", "flags", "code"),
    [
        (0, PAGE, 0, errno.EINVAL),  # splits the region
        (1 << 30, PAGE, 0, errno.ENOENT),
        (0, 0, 0, errno.EINVAL),
        ((1 << 64) - PAGE, 2 * PAGE, 0, errno.EINVAL),
        (0, PAGE, wire.UNMAP_ALL, errno.EINVAL),
        (0, 2 * PAGE, wire.UNMAP_DIRTY_BITMAP, errno.ENOTSUP),
        (0, 2 * PAGE, 0x80, errno.EINVAL),
    ],
)
def test_a_refused_unmap_changes_nothing(gpa: int, nbytes: int, flags: int, code: int) -> None:
    scene = Scene()
    scene.map(0, 2 * PAGE)
    generation = scene.table.generation
    with pytest.raises(MessageError) as refusal:
        scene.unmap(gpa, nbytes, flags)

    assert refusal.value.errno == code
    assert (len(scene.table), scene.table.generation) == (1, generation)


def test_the_page_size_assumed_here_is_the_hosts() -> None:
    assert mmap.PAGESIZE == PAGE
