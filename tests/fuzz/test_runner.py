"""The runner: shares of time, findings that are kept, a record that adds up."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import __main__, record
from tests.fuzz.child import saving
from tests.fuzz.places import file_name
from tests.fuzz.plan import LONGEST_SLICE_SECONDS, plan
from tests.fuzz.process import Run, State
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize(("seconds", "jobs", "ntargets"), [(60, 1, 8), (30, 2, 7), (3600, 2, 5), (600, 4, 3)])
def test_every_target_gets_its_share_of_every_core(seconds: int, jobs: int, ntargets: int) -> None:
    names = [f"target{index}" for index in range(ntargets)]

    cores = plan(names, seconds, jobs)

    spent = {name: sum(each.seconds for core in cores for each in core if each.target == name) for name in names}
    share = seconds * jobs / ntargets
    assert len(cores) == jobs
    assert all(abs(sum(each.seconds for each in core) - seconds) < 0.1 * seconds + 3 for core in cores)
    assert all(abs(value - share) < 0.1 * share + 3 for value in spent.values())
    assert all(each.seconds <= 1.5 * LONGEST_SLICE_SECONDS for core in cores for each in core)


def test_a_finding_is_kept_with_what_the_process_said(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    # One byte that is no flag of any engine: the process ends at once, as it does after a finding.
    run = Run("requests", ["-runs=1", str(bad)], tmp_path / "log.txt", tmp_path / "findings")
    (tmp_path / "log.left" / "crash-1234").write_bytes(b"input")
    (tmp_path / "log.left" / "slow-unit-1").write_bytes(b"slow")

    while (state := run.poll()) is None:
        pass

    assert [path.name for path in state.findings] == ["crash-1234"]
    assert state.findings[0].read_bytes() == b"input"
    assert (tmp_path / "findings" / "crash-1234.txt").read_text()
    assert state.cpu_seconds > 0


@pytest.mark.parametrize(("end", "status"), [(Run.stop, 0), (Run.kill, -signal.SIGKILL)], ids=["asked", "killed"])
def test_a_run_that_is_late_and_ends_when_asked_has_not_failed(
    tmp_path: Path, end: Callable[[Run], None], status: int
) -> None:
    run = Run("requests", ["-max_total_time=600", str(tmp_path)], tmp_path / "log.txt", tmp_path / "findings")

    end(run)
    while (state := run.poll()) is None:
        time.sleep(0.05)

    assert state.status == status
    assert state.findings == []


def test_an_input_that_raises_is_in_its_file_before_the_engine_hears_of_it(tmp_path: Path) -> None:
    def one_input(data: bytes) -> None:
        raise ValueError(data)

    play = saving(one_input, ["-runs=1", f"-artifact_prefix={tmp_path}/", "corpus"])

    with pytest.raises(ValueError, match="input"):
        play(b"input")

    assert (tmp_path / f"crash-{file_name(b'input')}").read_bytes() == b"input"


def test_a_record_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RECORD", tmp_path / "fuzz.json")
    record.add("requests", State(executions=10, cpu_seconds=1.5, peak_rss_mb=50, coverage=9))
    record.add("rings", State(executions=1, cpu_seconds=1, peak_rss_mb=1))

    record.add("requests", State(executions=5, cpu_seconds=0.5, peak_rss_mb=40, findings=[tmp_path]))

    rows = {row["target"]: row for row in json.loads((tmp_path / "fuzz.json").read_text())}
    assert list(rows) == ["requests", "rings"]
    kept = {key: rows["requests"][key] for key in ("executions", "cpu_seconds", "peak_rss_mb", "findings", "coverage")}
    assert kept == {"executions": 15, "cpu_seconds": 2.0, "peak_rss_mb": 50, "findings": 1, "coverage": 9}


def test_replay_plays_the_input_and_lets_what_it_raises_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good"
    good.write_bytes(TARGETS["requests"].seeds()[0])

    assert __main__.main(["replay", "requests", str(good)]) == 0
    assert "good passes" in capsys.readouterr().out

    monkeypatch.setattr("vdev.iommu.engine.Engine.handle", lambda *_: b"no tail")
    with pytest.raises(AssertionError):
        __main__.main(["replay", "requests", str(good)])


def test_the_targets_are_listed_with_what_they_stand_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["list"]) == 0

    said = capsys.readouterr().out
    assert all(name in said and target.what in said for name, target in TARGETS.items())
