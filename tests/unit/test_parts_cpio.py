"""The cpio writer and the initramfs's overlay, read back by a reader written for the test."""

from __future__ import annotations

import io
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from vdev.errors import PartsError
from vdev.parts.cache import Cache, Manifest, digests
from vdev.parts.cpio import CpioWriter
from vdev.parts.initramfs import KEPT_SECONDS, build_initramfs, payload_files, prune
from vdev.parts.kernel import Kernel
from vdev.parts.progress import quiet
from vdev.parts.userland import ARCHIVE, PART


@dataclass(frozen=True)
class Entry:
    mode: int
    content: bytes
    device: tuple[int, int]


def read_newc(data: bytes) -> dict[str, Entry]:
    """Every entry up to the trailer, by name."""
    entries: dict[str, Entry] = {}
    offset = 0
    while True:
        assert data[offset : offset + 6] == b"070701"
        fields = [int(data[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        mode, nbytes, major, minor, name_nbytes = fields[1], fields[6], fields[9], fields[10], fields[11]
        name = data[offset + 110 : offset + 110 + name_nbytes - 1].decode()
        start = (offset + 110 + name_nbytes + 3) & ~3
        offset = (start + nbytes + 3) & ~3
        if name == "TRAILER!!!":
            return entries
        assert name not in entries
        entries[name] = Entry(mode, data[start : start + nbytes], (major, minor))


def test_every_kind_of_entry_is_read_back_as_written() -> None:
    out = io.BytesIO()
    cpio = CpioWriter(out)

    cpio.file("a/b/c", b"hello", 0o755)
    cpio.symlink("bin", "usr/bin")
    cpio.device("dev/console", 5, 1)
    cpio.directory("tmp", 0o1777)
    cpio.close()

    entries = read_newc(out.getvalue())
    assert list(entries) == ["a", "a/b", "a/b/c", "bin", "dev", "dev/console", "tmp"]
    assert entries["a/b/c"] == Entry(stat.S_IFREG | 0o755, b"hello", (0, 0))
    assert entries["bin"] == Entry(stat.S_IFLNK | 0o777, b"usr/bin", (0, 0))
    assert entries["dev/console"] == Entry(stat.S_IFCHR | 0o600, b"", (5, 1))
    assert entries["tmp"].mode == stat.S_IFDIR | 0o1777


@pytest.mark.parametrize("nbytes", range(6))
def test_content_of_any_length_keeps_the_next_header_aligned(nbytes: int) -> None:
    out = io.BytesIO()
    cpio = CpioWriter(out)

    cpio.file("x" * (nbytes + 1), bytes(nbytes))
    cpio.file("next", b"n")
    cpio.close()

    assert read_newc(out.getvalue())["next"].content == b"n"
    assert len(out.getvalue()) % 512 == 0


def test_a_tree_is_the_same_bytes_whatever_its_times(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "tool").write_text("#!/bin/sh\n")
    (tmp_path / "d" / "tool").chmod(0o4755)
    (tmp_path / "link").symlink_to("d/tool")

    archives = []
    for _ in range(2):
        out = io.BytesIO()
        cpio = CpioWriter(out)
        cpio.tree(tmp_path, "opt")
        cpio.close()
        archives.append(out.getvalue())
        (tmp_path / "d" / "tool").touch()

    assert archives[0] == archives[1]
    entries = read_newc(archives[0])
    assert entries["opt/d/tool"].mode == stat.S_IFREG | 0o755
    assert entries["opt/link"].content == b"d/tool"


def test_a_payload_may_be_bytes_files_and_directories(tmp_path: Path) -> None:
    (tmp_path / "pkg" / "__pycache__").mkdir(parents=True)
    (tmp_path / "pkg" / "__pycache__" / "a.pyc").write_bytes(b"stale")
    (tmp_path / "pkg" / "a.py").write_text("A = 1\n")

    files = dict(payload_files({"main.py": b"main", "agent": tmp_path / "pkg", "": tmp_path / "pkg"}))

    assert files == {
        "main.py": (b"main", 0o644),
        "agent/a.py": (b"A = 1\n", 0o644),
        "a.py": (b"A = 1\n", 0o644),
    }


def test_a_payload_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(PartsError, match="absent"):
        list(payload_files({"main.py": tmp_path / "absent"}))


def test_archives_nobody_used_for_long_are_removed(tmp_path: Path) -> None:
    for name in ("used.cpio", ".building-x"):
        (tmp_path / name).touch()
    now = (tmp_path / "used.cpio").stat().st_mtime

    prune(tmp_path, now + KEPT_SECONDS - 60)
    assert (tmp_path / "used.cpio").exists()

    prune(tmp_path, now + KEPT_SECONDS + 60)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A cache whose userland is one short file."""

    def fetch(directory: Path) -> Manifest:
        (directory / ARCHIVE).write_bytes(bytes(512))
        return Manifest(PART, "1", (), digests(directory, ARCHIVE))

    cache = Cache(tmp_path / "cache")
    cache.get(PART, fetch, quiet)
    return cache


def test_the_same_input_gives_the_same_initramfs_without_building_it_again(cache: Cache, tmp_path: Path) -> None:
    said: list[str] = []
    kernel = Kernel(tmp_path / "bzImage", None, "6.12")

    first = build_initramfs(kernel, [], {"main.py": b"1"}, said.append, cache)
    again = build_initramfs(kernel, [], {"main.py": b"1"}, said.append, cache)
    other = build_initramfs(kernel, [], {"main.py": b"2"}, quiet, cache)

    assert first == again != other
    assert len(said) == 1


def test_a_truncated_initramfs_is_built_again(cache: Cache, tmp_path: Path) -> None:
    kernel = Kernel(tmp_path / "bzImage", None, "6.12")
    path = build_initramfs(kernel, [], {"main.py": b"1"}, quiet, cache)
    whole = path.read_bytes()
    path.write_bytes(whole[:600])

    assert build_initramfs(kernel, [], {"main.py": b"1"}, quiet, cache) == path
    assert path.read_bytes() == whole
    assert [file.name for file in path.parent.iterdir()] == [path.name]
