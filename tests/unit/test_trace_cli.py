"""`vdev trace` on files: what is shown, what is left out, what is refused."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.support.trace import FAULT, HEADER, MAPPED, REFUSED, TraceRig
from vdev.__main__ import main
from vdev.trace.recorder import TraceOptions


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A trace of five records: START, MAP, refused MAP, FAULT, STOP."""
    rig, path = TraceRig(), tmp_path / "t.jsonl"
    rig.trace.start(TraceOptions(file=str(path)))
    for event in (MAPPED, REFUSED, FAULT):
        rig.emit(event)
    rig.trace.stop()
    return path


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["trace", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["trace", *arguments]) == 2
    return capsys.readouterr().err


def test_a_file_is_shown_whole_with_its_header(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, str(file))

    assert text[0].startswith("# VM test")
    assert [words.split()[2] for words in text[2:]] == ["START", "MAP", "MAP", "FAULT", "STOP"]
    assert "\x1b" not in "".join(text)


def test_filters_may_be_given_with_commas_and_repeated(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, str(file), "--type", "FAULT,DMA", "--type", "map", "--status", "!OK")

    assert [words.split()[2] for words in text[2:]] == ["START", "MAP", "FAULT", "STOP"]


def test_the_newest_are_counted_after_the_filter(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, str(file), "--last", "2", "--type", "MAP")

    assert [words.split()[2] for words in text[2:]] == ["MAP", "STOP"]


def test_json_is_the_records_themselves(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [json.loads(text) for text in shown(capsys, str(file), "--json")] == [
        json.loads(text) for text in file.read_text().splitlines()
    ]


def test_damaged_lines_and_a_cut_off_end_are_left_out_and_counted(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = file.read_bytes().splitlines(keepends=True)
    whole[2] = b"\xff{not json\n"
    whole[3] = b'{"kind": "dma", "type": "DMA", "t": 1}\n'
    whole[4] = b"[]\n"
    file.write_bytes(b"".join(whole)[:-20])

    assert main(["trace", str(file)]) == 0
    said = capsys.readouterr()

    assert [text.split()[2] for text in said.out.splitlines()[2:]] == ["START"]
    assert "4 damaged line(s)" in said.err


def test_the_older_half_comes_first_when_it_is_of_the_same_trace(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = file.with_name("t.jsonl.1")
    header, *records = file.read_text().splitlines(keepends=True)
    older.write_text(header + "".join(records[:2]))
    file.write_text(header + "".join(records[2:]))
    both = shown(capsys, str(file))
    older.write_text(json.dumps({**HEADER, "pid": 1}) + "\n" + records[0])
    one = shown(capsys, str(file))

    assert (len(both), len(one)) == (2 + 5, 2 + 3)


def test_a_file_of_another_format_is_refused_by_its_number(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(json.dumps({**HEADER, "vdev_trace": 2, "vdev": "9.9"}) + "\n")

    assert "has trace format 2, this vdev reads 1 (use the vdev that wrote it (9.9))" in refused(capsys, str(file))


@pytest.mark.parametrize("content", ["", "hello\n", "[1]\n", '{"kind": "header"}\n'])
def test_a_file_that_is_no_trace_is_refused(content: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(content)

    assert "is no trace of vdev" in refused(capsys, str(file))


@pytest.mark.parametrize("spoiled", [{"units": 5}, {"endpoints": [{"name": "a", "bdf": "b"}]}, {"vm": ["x"]}])
def test_a_header_that_names_no_functions_is_refused(
    spoiled: dict[str, object], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(json.dumps({**HEADER, **spoiled}) + "\n")

    assert "has a damaged header" in refused(capsys, str(file))


@pytest.mark.parametrize(
    "line", ["[" * 100_000, json.dumps({"kind": "note", "type": "NOTE", "t": 10**400, "fields": {"text": "x"}})]
)
def test_a_line_beyond_what_python_reads_or_shows_is_counted_as_damaged(
    line: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(json.dumps(HEADER) + "\n" + line + "\n")

    assert main(["trace", str(file)]) == 0
    said = capsys.readouterr()

    assert len(said.out.splitlines()) == 2
    assert "1 damaged line(s)" in said.err


def test_text_of_a_file_gives_the_terminal_no_commands_and_no_more_lines(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"kind": "note", "type": "NOTE", "t": 1.0, "fields": {"text": "a\n\x1b[2Jb\ud800"}}
    file.write_text(json.dumps({**HEADER, "vm": "\x1b[31m"}) + "\n" + json.dumps(record) + "\n")

    header, _, line = shown(capsys, str(file))

    assert r"VM \x1b[31m" in header
    assert line.endswith(r"a\n\x1b[2Jb\ud800")


def test_a_socket_nobody_listens_on_is_refused_with_a_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))

    said = refused(capsys, str(tmp_path))

    assert "nobody listens there" in said
    assert "is its vdev still running?" in said


def test_a_place_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no such trace" in refused(capsys, str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("option", "word", "known"), [("--endpoint", "accel7", "accel0"), ("--type", "X", "UNMAP"), ("--status", "Y", "OK")]
)
def test_wrong_words_are_refused_with_the_known_ones(
    option: str, word: str, known: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, str(file), option, word)

    assert f"there is no '{word}'" in said
    assert known in said


def test_without_a_place_the_one_vm_that_runs_is_meant_and_two_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ("vdev-one", "vdev-two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "control.sock").touch()

    said = refused(capsys)

    assert "running VMs were found" in said
    assert "vdev-one" in said
