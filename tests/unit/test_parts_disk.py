"""Disk images and firmware by path: what is taken, and what is said of what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdev.errors import PartsError
from vdev.parts.cache import Cache
from vdev.parts.disk import disk_format
from vdev.parts.firmware import find_firmware
from vdev.parts.progress import quiet


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "image"


@pytest.mark.parametrize(
    ("head", "wanted", "found"),
    [
        (b"QFI\xfb\0\0\0\3", "auto", "qcow2"),
        (bytes(510) + b"\x55\xaa", "auto", "raw"),
        (b"QFI\xfb\0\0\0\3", "raw", "raw"),
        (b"\x1f\x8b", "raw", "raw"),
    ],
)
def test_the_format_is_detected_unless_it_is_given(image: Path, head: bytes, wanted: str, found: str) -> None:
    image.write_bytes(head)
    assert disk_format(image, wanted) == found


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        (b"\xfd7zXZ\0", "is compressed by xz, not a raw or qcow2 image\n  cure: unpack it first"),
        (b"KDMV", "is a VMDK image, not a raw or qcow2 image\n  cure: convert it: qemu-img convert"),
        (bytes(257) + b"ustar", "is a tar archive"),
        (b"", "is empty"),
    ],
)
def test_what_is_not_booted_as_it_is_gets_a_cure(image: Path, head: bytes, problem: str) -> None:
    image.write_bytes(head)
    with pytest.raises(PartsError) as caught:
        disk_format(image, "auto")
    assert f"vm.disk: {image} {problem}" in str(caught.value)


def test_an_image_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(PartsError, match=r"vm\.disk: .* is not a file"):
            disk_format(path, "raw")


def test_firmware_is_qemus_own_or_a_file(image: Path, tmp_path: Path) -> None:
    image.touch()
    cache = Cache(tmp_path / "cache")

    assert find_firmware("seabios", quiet, cache) is None
    assert find_firmware(str(image), quiet, cache) == image
    with pytest.raises(PartsError, match=r"vm\.firmware: .* is not a file"):
        find_firmware("./absent", quiet, cache)
