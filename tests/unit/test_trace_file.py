"""The trace on disk: bounded, turned over once, never in the VM's way, never over somebody else's file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.trace import FAULT, HEADER, MAPPED, TraceRig
from vdev.errors import ConfigError
from vdev.trace.file import CHUNK_NRECORDS, MAX_PENDING, MIN_NBYTES
from vdev.trace.recorder import TraceOptions


@pytest.fixture
def rig() -> TraceRig:
    return TraceRig()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def start(rig: TraceRig, path: Path, **options: Any) -> None:
    rig.trace.start(TraceOptions(file=str(path), **options))


def test_a_file_begins_with_the_header_and_has_every_record_as_the_query_shows_it(rig: TraceRig, path: Path) -> None:
    start(rig, path)
    rig.emit(MAPPED)
    rig.emit(FAULT)
    rig.trace.stop()

    header, *records = lines(path)
    assert header == HEADER
    assert [record["type"] for record in records] == ["START", "MAP", "FAULT", "STOP"]
    assert records == json.loads(json.dumps([rig.trace._decoder.record(entry) for entry in rig.trace._ring]))
    assert path.stat().st_mode & 0o777 == 0o600


def test_records_are_written_when_the_loop_has_time_and_not_before(rig: TraceRig, path: Path) -> None:
    start(rig, path)
    rig.emit(FAULT)
    before = len(lines(path))

    rig.run_later()

    assert (before, len(lines(path))) == (1, 3)


def test_two_files_together_stay_below_the_bound_and_lose_only_the_oldest(rig: TraceRig, path: Path) -> None:
    start(rig, path, max_bytes=MIN_NBYTES)
    older, sizes = path.with_name("trace.jsonl.1"), []
    for _ in range(40):
        for _ in range(50):
            rig.emit(MAPPED)
        rig.run_later()
        sizes.append(path.stat().st_size + (older.stat().st_size if older.exists() else 0))
    rig.trace.stop()

    first, second = lines(older), lines(path)
    assert max(sizes) <= MIN_NBYTES
    assert first[0] == second[0] == HEADER
    seqs = [record["seq"] for record in (*first[1:], *second[1:])]
    assert seqs == list(range(seqs[0], 40 * 50 + 2))
    assert seqs[0] > 0


def test_a_loop_without_time_loses_records_and_the_file_says_how_many(rig: TraceRig, path: Path) -> None:
    start(rig, path)
    for _ in range(MAX_PENDING + 8):
        rig.emit(MAPPED)
    lost = rig.trace.describe()["file_lost"]
    rig.run_later()
    rig.emit(FAULT)
    rig.trace.stop()

    types = [record["type"] for record in lines(path)[1:]]
    assert lost == 9
    assert types[-3:] == ["LOST", "FAULT", "STOP"]
    assert next(record for record in lines(path) if record.get("type") == "LOST")["fields"] == {"count": 9}


def test_a_flood_is_written_in_chunks_with_others_in_between(rig: TraceRig, path: Path) -> None:
    start(rig, path)
    for _ in range(3 * CHUNK_NRECORDS):
        rig.emit(MAPPED)

    rig.later.pop(0)()

    assert len(lines(path)) == CHUNK_NRECORDS + 1


def test_a_disk_that_is_full_ends_the_file_and_not_the_recording(
    rig: TraceRig, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(rig, path)

    def no_room(fd: int, data: object) -> int:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr("os.write", no_room)
        rig.emit(FAULT)
        rig.run_later()
    rig.emit(FAULT)
    rig.run_later()

    described = rig.trace.describe()
    assert "No space left" in described["file_problem"]
    assert (described["recording"], described["records"]) == (True, 3)
    rig.trace.stop()
    assert "No space left" in rig.trace.describe()["file_problem"]


def test_a_trace_that_was_there_is_kept_as_the_older_one(rig: TraceRig, path: Path) -> None:
    start(rig, path)
    rig.emit(FAULT)
    rig.trace.stop()
    before = path.read_text()

    start(rig, path)
    rig.trace.stop()

    assert path.with_name("trace.jsonl.1").read_text() == before


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "link", "no-directory"])
def test_what_is_no_trace_is_left_alone_and_the_start_is_refused(rig: TraceRig, path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("precious\n")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(path.with_name("precious"))
    else:
        path = path / "below" / "nothing"

    with pytest.raises(ConfigError) as caught:
        start(rig, path)

    assert caught.value.key == "file"
    assert not rig.trace.recording
    assert rig.switched == []
    assert not path.with_name("precious").exists()
    if kind == "file":
        assert path.read_text() == "precious\n"


def test_a_bound_too_small_for_a_trace_is_refused(rig: TraceRig, path: Path) -> None:
    with pytest.raises(ConfigError, match="max-bytes"):
        start(rig, path, max_bytes=MIN_NBYTES - 1)

    assert not path.exists()
