"""The monitor's part of the benchmarks: what is made of latencies, and who does what in a crowd."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from benchmarks import table
from benchmarks.bridge.crowd import percentile
from benchmarks.bridge.loads import LENGTHS, LOADS, WAYS
from benchmarks.bridge.rounds import turns
from benchmarks.bridge.table import lines, summary
from benchmarks.compare import lines as compared
from benchmarks.results import MonitorSample, Results, load, save
from tests.support.bench import monitor_samples, results

ALONE = monitor_samples("alone", {"direct": [0.5, 0.5, 0.5], "bridge": [1.0, 1.0, 1.0]})
CROWD = monitor_samples("crowd", {"direct": [1.0, 2.0, 3.0], "bridge": [1.5, 3.0, 6.0]})


def cells(found: list[MonitorSample], load_title: str, title: str = "query-status, p50") -> list[str]:
    shown = list(lines(found, "11.1.3"))
    start = next(at for at, line in enumerate(shown) if line.startswith(load_title))
    return next(line for line in shown[start:] if line.startswith(title)).removeprefix(title).split("  ")


def run(found: list[MonitorSample]) -> Results:
    whole = results()
    whole.monitor, whole.monitor_qemu = found, "11.1.3"
    return whole


def test_what_is_added_is_the_median_of_the_differences_within_a_round() -> None:
    found = [cell.strip() for cell in cells(ALONE + CROWD, "20 clients, a command") if cell.strip()]

    assert found == ["2.00 [1.00..3.00]", "3.00 [1.50..6.00]", "1.00 [0.50..3.00]", "2.50 [1.00..5.50]"]


def test_a_round_that_lacks_one_way_adds_nothing() -> None:
    found = [cell.strip() for cell in cells(CROWD[:-1], "20 clients, a command") if cell.strip()]

    assert found == ["2.00 [1.00..3.00]", "2.25 [1.50..3.00]", "0.75 [0.50..1.00]", "-"]


def test_a_sample_that_failed_is_in_the_table_with_its_reason() -> None:
    failed = MonitorSample(round=2, load_name="crowd", way="bridge", load=0.0, problem="the monitor hung up")

    assert "FAILED, round 2, crowd, bridge: the monitor hung up" in list(lines([failed], "11.1.3"))


def test_the_part_is_in_the_whole_table() -> None:
    assert "Monitor (QEMU 11.1.3, no guest)" in "\n".join(table.lines(run(CROWD)))
    assert "Monitor" not in "\n".join(table.lines(results()))


def test_two_runs_are_compared_by_what_the_bridge_adds() -> None:
    (line,) = [line for line in compared(run(CROWD), run(CROWD)) if line.startswith("query-status, p50, 20 clients, a")]

    assert line.endswith(" 1.00 [0.50..3.00]  1.00 [0.50..3.00]     1.00")


def test_samples_are_in_the_file_and_so_is_their_summary(tmp_path: Path) -> None:
    save(tmp_path / "x.json", run(CROWD), summary(CROWD))

    assert load(tmp_path / "x.json").monitor == CROWD
    (entry,) = json.loads((tmp_path / "x.json").read_text())["summary"]
    assert (entry["monitor"], entry["row"], entry["added"]["median"]) == ("crowd", "status-p50", 1.0)


def test_a_file_from_before_the_monitor_was_measured_is_read(tmp_path: Path) -> None:
    old = msgspec.to_builtins(results())
    del old["monitor"], old["monitor_qemu"]
    (tmp_path / "x.json").write_text(json.dumps(old))

    assert load(tmp_path / "x.json") == results()


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_a_percentile_is_the_lowest_value_that_so_many_do_not_exceed(share: float, expected: int) -> None:
    assert percentile(range(1, 101), share) == expected


def test_every_load_is_measured_both_ways_in_each_round_one_right_after_the_other() -> None:
    found = list(turns(2))

    pairs = list(zip(found[::2], found[1::2], strict=True))
    assert [first[:2] for first, _ in pairs] == [second[:2] for _, second in pairs]
    assert all({first[2], second[2]} == set(WAYS) for first, second in pairs)
    assert [first[2] for first, _ in pairs] == ["direct"] * len(LOADS) + ["bridge"] * len(LOADS)


@pytest.mark.parametrize("name", ["crowd", "flat-out"])
def test_a_crowd_is_20_of_whom_one_never_reads_and_one_sends_malformed_json(name: str) -> None:
    roles = next(load for load in LOADS if load.name == name).roles()

    assert len(roles) == 20
    assert [roles.count(role) for role in ("silent", "malformed", "stopper", "asking")] == [1, 1, 1, 16]


def test_in_full_malformed_json_comes_for_a_minute() -> None:
    assert LENGTHS["full"].rounds * LENGTHS["full"].seconds["crowd"] >= 60
