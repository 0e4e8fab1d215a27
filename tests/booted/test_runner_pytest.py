"""Guest tests behave as tests in pytest do: what is selected, reported, captured, marked, and kept between tests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.suite_lab import BOTH, Ended, junit, run, write

pytestmark = [pytest.mark.guest, pytest.mark.timeout(450)]

OUTCOMES = """\
import warnings
import pytest

torn_down = []

@pytest.fixture
def broken_setup():
    raise RuntimeError("no setup")

@pytest.fixture
def broken_teardown():
    yield
    raise RuntimeError("no teardown")

def test_passes():
    pass

def test_fails_and_printed(faults):
    rule = faults.add("timer", "config-change", id="for-no-reason")
    while not rule.fired:
        pass
    print("what it printed")
    assert {"a": 1} == {"a": 2}

def test_skips():
    pytest.skip("not today")

@pytest.mark.skipif(True, reason="not on this one")
def test_is_marked_skip():
    raise AssertionError

@pytest.mark.xfail(reason="known")
def test_xfails():
    raise AssertionError

@pytest.mark.xfail(reason="fixed meanwhile")
def test_xpasses():
    pass

@pytest.mark.xfail(strict=True, reason="must fail")
def test_xpasses_strictly():
    pass

def test_has_no_setup(broken_setup):
    pass

def test_has_no_teardown(broken_teardown):
    pass

def test_warns():
    warnings.warn("careful with that", DeprecationWarning)

@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4096], ids=["one", "page"])
def test_with_sizes(size, record_property):
    record_property("size", size)

class TestClass:
    def test_in_class(self):
        pass

    class TestInner:
        def test_inside(self):
            pass
"""
KEPT = """\
import os
import helper
import pytest

@pytest.fixture(scope="module")
def kept(host):
    host_log = helper.log(host)
    host_log("set up")
    yield os.getpid()
    host_log("torn down")

def test_first(kept, from_conftest):
    assert from_conftest == "of the suite"
    helper.seen.append(kept)

def test_second(kept):
    assert helper.seen == [kept]
"""
HELPER = """\
seen = []

def log(host):
    return lambda text: host.step("log", text=text)
"""
CONFTEST = """\
import pytest

@pytest.fixture
def from_conftest():
    return "of the suite"
"""
STEPS = """\
async def log(vm, text):
    with (vm.suite / "log").open("a") as log:
        log.write(f"{text}\\n")
"""
SUITE = {
    "guest-suite.yaml": BOTH,
    "conftest.py": CONFTEST,
    "helper.py": HELPER,
    "host_steps.py": STEPS,
    "test_kept.py": KEPT,
    "test_outcomes.py": OUTCOMES,
    "left_out/test_left_out.py": 'import pytest\n\npytest.skip("left out here", allow_module_level=True)\n',
    "a/test_same.py": "def test_same():\n    pass\n",
    "b/test_same.py": "def test_same():\n    pass\n",
}
OTHER = {
    "guest-suite.yaml": BOTH.replace("attach: [vfio-user, vhost-user]", "name: other"),
    "test_other.py": "def test_of_another_suite(machine):\n    assert machine['name'].startswith('other-')\n",
}


@dataclass(frozen=True)
class Whole:
    """A run of everything in two suites, started somewhere else by absolute paths."""

    where: Path
    ended: Ended
    cases: dict[str, ElementTree.Element]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    where = tmp_path_factory.mktemp("whole")
    write(where / "suite", SUITE)
    write(where / "other", OTHER)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    ended = run(
        elsewhere, str(where / "suite"), str(where / "other"), "-v", "-rA", f"--junitxml={where}/junit.xml", "-vv"
    )
    return Whole(where, ended, junit(where / "junit.xml"))


@pytest.mark.parametrize("machine", ["vfio-user", "vhost-user"])
@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("test_passes[{}]", "PASSED"),
        ("test_fails_and_printed[{}]", "FAILED"),
        ("test_skips[{}]", "SKIPPED"),
        ("test_is_marked_skip[{}]", "SKIPPED"),
        ("test_xfails[{}]", "XFAIL"),
        ("test_xpasses[{}]", "XPASS"),
        ("test_xpasses_strictly[{}]", "FAILED"),
        ("test_has_no_setup[{}]", "ERROR"),
        ("test_has_no_teardown[{}]", "ERROR"),
        ("test_warns[{}]", "PASSED"),
        ("test_with_sizes[{}-one]", "PASSED"),
        ("test_with_sizes[{}-page]", "PASSED"),
        ("TestClass::test_in_class[{}]", "PASSED"),
        ("TestClass::TestInner::test_inside[{}]", "PASSED"),
        ("test_first[{}]", "PASSED"),
        ("test_second[{}]", "PASSED"),
        ("test_same[{}]", "PASSED"),
    ],
)
def test_each_outcome_is_the_one_pytest_has_for_it(whole: Whole, machine: str, test: str, outcome: str) -> None:
    assert whole.ended.outcomes()[test.format(machine)] == outcome


def test_another_suite_runs_on_its_own_machine(whole: Whole) -> None:
    assert whole.ended.outcomes()["test_of_another_suite[other-vfio-user]"] == "PASSED"


def test_a_failure_shows_values_and_output(whole: Whole) -> None:
    said = whole.ended.failure("test_fails_and_printed[vhost-user]")
    assert "assert {'a': 1} == {'a': 2}" in said
    assert "what it printed" in said
    assert "injected faults" in said
    assert "rule for-no-reason, 1: config-change (function=iommu0) at timer" in said


def test_a_broken_fixture_is_an_error_of_setup_or_teardown(whole: Whole) -> None:
    assert "RuntimeError: no setup" in whole.ended.failure("ERROR at setup of test_has_no_setup[vfio-user]")
    assert "RuntimeError: no teardown" in whole.ended.failure("ERROR at teardown of test_has_no_teardown[vfio-user]")


def test_reasons_are_in_the_summary(whole: Whole) -> None:
    summary = whole.ended.output.partition("short test summary info")[2]
    skips = OUTCOMES[: OUTCOMES.index("pytest.skip(")].count("\n") + 1
    assert re.search(rf"^SKIPPED \[2\] \S*test_outcomes\.py:{skips}: not today$", summary, re.MULTILINE)
    assert re.search(r"^SKIPPED \[1\] \S*left_out/test_left_out\.py:3: left out here$", summary, re.MULTILINE)
    assert re.search(r"^XFAIL \S+test_xfails\[vfio-user\] - known$", summary, re.MULTILINE)
    assert "[XPASS(strict)] must fail" in whole.ended.output


def test_warnings_are_shown_with_their_place(whole: Whole) -> None:
    at = OUTCOMES[: OUTCOMES.index("warnings.warn")].count("\n") + 1
    assert f"{whole.where}/suite/test_outcomes.py:{at}: DeprecationWarning: careful with that" in whole.ended.output


def test_a_modules_fixture_lives_once_on_each_machine(whole: Whole) -> None:
    assert (whole.where / "suite/log").read_text().split("\n")[:-1] == ["set up", "torn down"] * 2


def test_the_whole_run_counts_right_and_leaves_nothing(whole: Whole) -> None:
    assert whole.ended.counted() == "4 failed, 23 passed, 5 skipped, 2 xfailed, 2 xpassed, 2 warnings, 4 errors"
    assert (whole.ended.status, whole.ended.left) == (1, [])


def test_junit_has_every_test_with_its_verdict(whole: Whole) -> None:
    failure = whole.cases["test_fails_and_printed[vfio-user]"].find("failure")
    skipped = whole.cases["test_skips[vfio-user]"].find("skipped")
    sizes = whole.cases["test_with_sizes[vhost-user-page]"]

    assert failure is not None
    assert "assert {'a': 1} == {'a': 2}" in failure.attrib["message"]
    assert "test_outcomes.py" in (failure.text or "")
    assert skipped is not None
    assert skipped.attrib["message"] == "not today"
    assert {p.attrib["name"]: p.attrib["value"] for p in sizes.iter("property")} == {
        "size": "4096",
        "machine": "vhost-user",
    }
    assert all(float(case.attrib["time"]) >= 0 for case in whole.cases.values())
    assert whole.cases["test_inside[vfio-user]"].attrib["classname"].endswith("test_outcomes.TestClass.TestInner")


COUNTED = """\
import pytest

@pytest.mark.parametrize("n", range(3))
def test_fails(n):
    assert n < 0

def test_passes():
    pass
"""
SMALL = {"guest-suite.yaml": BOTH, "test_small.py": COUNTED, "sub/test_below.py": "def test_below():\n    pass\n"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("small")
    write(where / "s", SMALL)
    return where


def test_x_stops_at_the_first_failure_and_lf_runs_it_again(small: Path) -> None:
    first = run(small, "s", "-x")
    again = run(small, "s", "--lf", "-v")

    assert (first.status, first.left) == (1, [])
    assert "stopping after 1 failures" in first.output
    assert first.counted() == "1 failed, 1 passed"  # the first module's test, on the first machine
    assert again.outcomes() == {"test_fails[vfio-user-0]": "FAILED"}
    assert "run-last-failure: rerun previous 1 failure" in again.output


def test_maxfail_and_a_short_traceback_of_one_line(small: Path) -> None:
    ended = run(small, "s/test_small.py", "--maxfail=2", "--tb=line", "-q")

    assert "stopping after 2 failures" in ended.output
    assert re.search(rf"^{small}/s/test_small\.py:5: assert 0 < 0$", ended.output, re.MULTILINE)


def test_a_test_is_run_by_its_whole_name(small: Path) -> None:
    ended = run(small, "s/test_small.py::test_fails[vhost-user-2]", "s/test_small.py::test_passes[vfio-user]", "-v")

    assert ended.outcomes() == {"test_fails[vhost-user-2]": "FAILED", "test_passes[vfio-user]": "PASSED"}


def test_a_directory_below_the_suite_is_guest_tests_too(small: Path) -> None:
    ended = run(small / "s" / "sub", "-v", "--guest-machine=vhost-user")

    assert ended.outcomes() == {"test_below[vhost-user]": "PASSED"}
    assert ended.status == 0
