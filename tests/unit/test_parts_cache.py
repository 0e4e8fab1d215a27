"""The cache: complete parts only, one index, one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path

import pytest

from vdev.errors import PartsError
from vdev.parts.cache import INDEX, MANIFEST, Cache, Manifest, Package, default_root, digests, directory_name
from vdev.parts.progress import Percent, quiet

PACKAGE = Package("tool", "1:2.0", "ab" * 32)


def _fetch(directory: Path, version: str = "1:2.0") -> Manifest:
    (directory / "tool").write_bytes(b"tool")
    return Manifest("tools", version, (PACKAGE,), digests(directory, "tool"))


def _never(directory: Path) -> Manifest:
    raise AssertionError("fetched although it was there")


def test_a_fetched_part_is_found_again_without_fetching(tmp_path: Path) -> None:
    first = Cache(tmp_path).get("tools", _fetch, quiet)

    again = Cache(tmp_path).get("tools", _never, quiet)

    assert again == first == tmp_path / "tools" / "1_2.0"
    assert Manifest.load(again).packages == (PACKAGE,)
    assert json.loads((tmp_path / INDEX).read_text()) == {"tools": "tools/1_2.0"}


def test_an_interrupted_fetch_leaves_no_part_behind(tmp_path: Path) -> None:
    def interrupted(directory: Path) -> Manifest:
        (directory / "tool").write_bytes(b"to")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path).get("tools", interrupted, quiet)

    assert Cache(tmp_path).current("tools") is None
    assert not (tmp_path / "tools").exists()
    assert not (tmp_path / "staging").exists()


def test_what_a_killed_process_left_in_staging_is_removed(tmp_path: Path) -> None:
    (tmp_path / "staging" / "old").mkdir(parents=True)

    Cache(tmp_path).get("tools", _fetch, quiet)

    assert not (tmp_path / "staging").exists()


def test_a_part_whose_manifest_names_a_missing_file_is_not_complete(tmp_path: Path) -> None:
    directory = Cache(tmp_path).get("tools", _fetch, quiet)
    (directory / "tool").unlink()

    assert Cache(tmp_path).current("tools") is None
    assert Cache(tmp_path).get("tools", _fetch, quiet) == directory
    assert (directory / "tool").is_file()


@pytest.mark.parametrize("content", [b"", b"toolx", b"looT"])
def test_a_damaged_file_is_told_and_fetched_again(tmp_path: Path, content: bytes) -> None:
    said: list[str] = []
    directory = Cache(tmp_path).get("tools", _fetch, quiet)
    (directory / "tool").write_bytes(content)

    assert Cache(tmp_path).current("tools") is None
    assert Cache(tmp_path).get("tools", _fetch, said.append) == directory

    assert said == [f"not used: {directory / 'tool'} is damaged"]
    assert (directory / "tool").read_bytes() == b"tool"


def test_a_damaged_part_stays_until_a_good_one_has_arrived(tmp_path: Path) -> None:
    def offline(directory: Path) -> Manifest:
        raise PartsError("apt", "no network")

    directory = Cache(tmp_path).get("tools", _fetch, quiet)
    (directory / "tool").write_bytes(b"damaged")

    with pytest.raises(PartsError, match="no network"):
        Cache(tmp_path).get("tools", offline, quiet)

    assert (directory / "tool").read_bytes() == b"damaged"
    assert Cache(tmp_path).current("tools") is None


NO_FORMAT = '{"part": "tools", "version": "1", "packages": [], "files": {}}'
OLD_FORMAT = '{"format": 1, "part": "tools", "version": "1", "packages": [], "files": []}'
NO_VERSION = '{"format": 2, "part": "tools", "packages": [], "files": {}}'
UNKNOWN_FIELD = '{"format": 2, "part": "tools", "version": "1", "packages": [], "files": {}, "x": 1}'


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", NO_FORMAT, OLD_FORMAT, NO_VERSION, UNKNOWN_FIELD])
def test_a_wrong_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)

    with pytest.raises(PartsError):
        Manifest.load(tmp_path)


def test_a_directory_that_claims_to_be_another_part_is_passed_over(tmp_path: Path) -> None:
    directory = Cache(tmp_path).get("tools", _fetch, quiet)
    (tmp_path / INDEX).write_text(json.dumps({"others": str(directory.relative_to(tmp_path))}))

    assert Cache(tmp_path).current("others") is None


def test_a_lost_index_falls_back_to_the_newest_complete_directory(tmp_path: Path) -> None:
    old = Cache(tmp_path).get("tools", _fetch, quiet)
    new = old.rename(tmp_path / "tools" / "3.0")
    (new / MANIFEST).write_text(Manifest("tools", "3.0", (), digests(new, "tool")).to_json())
    (tmp_path / INDEX).write_text("damaged")
    Cache(tmp_path / "other").get("tools", _fetch, quiet).rename(old)
    os.utime(old / MANIFEST, (1, 1))

    assert Cache(tmp_path).current("tools") == new


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(PartsError) as caught:
        Cache(tmp_path / "file").get("tools", _fetch, quiet)

    assert "VDEV_CACHE" in caught.value.cure


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_cache_of_somebody_else_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)

    with pytest.raises(PartsError) as caught:
        Cache(tmp_path / "closed" / "vdev").get("tools", _fetch, quiet)

    assert "VDEV_CACHE" in caught.value.cure


def test_a_second_process_waits_and_says_so(tmp_path: Path) -> None:
    said = threading.Event()
    found: list[Path] = []
    cache = Cache(tmp_path)
    with (tmp_path / "lock").open("a") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        waiter = threading.Thread(target=lambda: found.append(cache.get("tools", _fetch, lambda line: said.set())))
        waiter.start()
        waited = said.wait(5)
    waiter.join(5)

    assert waited
    assert found == [tmp_path / "tools" / "1_2.0"]


def test_the_root_comes_from_the_environment() -> None:
    assert default_root({"VDEV_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert default_root({"XDG_CACHE_HOME": "/b"}) == Path("/b/vdev")
    assert default_root({}) == Path.home() / ".cache" / "vdev"


def test_a_version_becomes_a_directory_name_fit_for_a_library_path() -> None:
    assert directory_name("1:11.1.3+ds-1~bpo13+1") == "1_11.1.3+ds-1~bpo13+1"


def test_percentages_are_said_once_a_step_and_never_backwards() -> None:
    lines: list[str] = []
    percent = Percent("x", lines.append)

    for value in (0.0, 5.0, 21.0, 22.0, 19.0, 85.0, 100.0, 100.0):
        percent.update(value)

    assert lines == ["x: 21 %", "x: 85 %", "x: 100 %"]
