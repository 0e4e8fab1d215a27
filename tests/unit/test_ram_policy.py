"""Guest RAM that could kill us or use us up: what is not used, and what is said about it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tests.support import vfio_scene
from tests.support.ram_scene import RamScene as Scene
from tests.support.vfio_scene import PAGE, GuestRam
from vdev.transports.ram import MAX_MAPPED_NBYTES, RamFiles

every_fd_is_closed = vfio_scene.every_fd_is_closed


def test_where_seals_are_required_even_a_wrong_claim_about_an_unsealed_file_is_no_error() -> None:
    with GuestRam(PAGE, sealed=False) as guest:
        scene = Scene(RamFiles(require_sealed=True))
        scene.map(0, 64 * PAGE, guest.fd)

        assert scene.table.regions()[0].view is None


def test_a_seal_against_growth_alone_is_not_enough() -> None:
    with GuestRam(PAGE, sealed=False) as guest:
        fcntl.fcntl(guest.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        scene = Scene(RamFiles(require_sealed=True))
        scene.map(0, PAGE, guest.fd)

        assert scene.table.regions()[0].view is None


def test_the_seal_is_the_inodes_and_stays() -> None:
    with GuestRam(PAGE) as guest:
        scene = Scene(RamFiles(require_sealed=True))
        reopened = os.open(f"/proc/self/fd/{guest.fd}", os.O_RDWR)
        scene.map(0, PAGE, reopened)
        with pytest.raises(PermissionError):
            os.ftruncate(reopened, 0)
        with pytest.raises(PermissionError):
            fcntl.fcntl(reopened, fcntl.F_ADD_SEALS, 0)
        os.close(reopened)

        assert scene.table.read(0, 1) == b"\0"


def test_a_file_is_named_in_the_log_without_its_control_characters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ram\nERROR forged"
    path.write_bytes(bytes(PAGE))
    fd = os.open(path, os.O_RDWR)
    scene = Scene(RamFiles(require_sealed=True))
    scene.map(0, PAGE, fd)
    os.close(fd)

    assert "ram\\nERROR forged" in caplog.text


def test_sparse_files_cannot_use_up_the_address_space(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    for index in range(3):
        with GuestRam(MAX_MAPPED_NBYTES // 2, mapped=False) as guest:
            scene.map(index * PAGE, PAGE, guest.fd)
    third = scene.table.regions()[-1].view
    scene.unmap(0, PAGE)
    with GuestRam(MAX_MAPPED_NBYTES // 2, mapped=False) as guest:
        scene.map(0, PAGE, guest.fd)

    assert third is None
    assert [region.view is not None for region in scene.table.regions()] == [True, True, False]
    assert "takes the VM past" in caplog.text
    scene.ram.clear()
