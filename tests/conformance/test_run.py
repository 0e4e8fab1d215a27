"""The session that runs a suite in process: what becomes of tests is told, failures with their text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.run import run

SUITE = """\
machines:
  - {config: machine.yaml, name: compat, attach: [vfio-user, vhost-user]}
  - {config: strict.yaml, name: strict, attach: [vfio-user, vhost-user]}
"""
MACHINE = """\
vm: {name: tiny, memory: 256M}
units: [{name: iommu0, bdf: "00:10.0", mode: MODE}]
endpoints: [{name: accel0, unit: iommu0, bdf: "01:00.0"}]
"""
TESTS = """\
import pytest
from guest_tests.payload.direct import Attach, NoAnswer
from guest_tests.payload.host import HostRefused

def test_d1_knows_its_machine(machine):
    assert (machine["name"], machine["attach"]) == (f"{machine['units'][0]['mode']}-in-process", "in-process")

def test_d2_d3_fails_with_its_text(viommu):
    assert viommu.is_broken, "it is well"

def test_d4_is_skipped():
    pytest.skip("for no reason")

@pytest.mark.machines("*-vfio-user", "strict-in-process")
def test_d5_is_for_some_machines():
    pass

def test_d6_waits_in_vain_for_an_hour_at_once(viommu):
    chain = viommu.chain(Attach(domain=1, endpoint=0x100))
    chain.head = 999
    with pytest.raises(NoAnswer):
        viommu.send_chain(chain, timeout_s=3600)

@pytest.mark.timeout(0.3)
def test_d10_ends_though_it_hangs():
    while True:
        pass

def test_d7_asks_the_host(viommu, mapped_accel, host):
    (unit,) = host.control("query-iommu")
    assert unit["functions"]["accel0"]["mappings"] == 1
    assert host.control("query-mappings", unit="iommu0", domain=mapped_accel.domain)
    assert host.control("query-events", kinds=["RequestHandled"])
    assert host.control("query-status")["functions"][0] == {"function": "iommu0", "connection": {"broken": False}}

def test_d8_the_host_does_a_step(host):
    assert host.step("units") == ["iommu0"]

@pytest.mark.parametrize("what", ["query-status", "stop"])
def test_d9_the_host_has_no_qemu(host, what):
    with pytest.raises(HostRefused):
        host.qmp(what)
    with pytest.raises(HostRefused, match="no QEMU"):
        host.pause(1)
"""
STEPS = """\
async def units(vm):
    return [unit["unit"] for unit in await vm.control("query-iommu")]
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite of one module."""
    (tmp_path / "guest-suite.yaml").write_text(SUITE)
    (tmp_path / "machine.yaml").write_text(MACHINE.replace("MODE", "compat"))
    (tmp_path / "strict.yaml").write_text(MACHINE.replace("MODE", "strict"))
    (tmp_path / "host_steps.py").write_text(STEPS)
    (tmp_path / "test_tiny.py").write_text(TESTS)
    return tmp_path


@pytest.mark.parametrize(("mode", "ntests"), [("compat", 9), ("strict", 10)])
def test_outcomes_of_every_test_for_this_mode_are_told(suite: Path, mode: str, ntests: int) -> None:
    session = run(mode, suite=suite)

    assert session.problem == ""
    assert len(session.outcomes) == ntests
    others = {one.clauses: (one.outcome, one.text) for one in session.outcomes if one.outcome != "passed"}
    assert {clauses: outcome for clauses, (outcome, _) in others.items()} == {
        ("D2", "D3"): "failed",
        ("D4",): "skipped",
        ("D10",): "failed",
    }
    assert "it is well" in others["D2", "D3"][1]
    assert "for no reason" in others[("D4",)][1]


def test_only_tests_for_the_clauses_asked_for_are_run(suite: Path) -> None:
    session = run("compat", clauses=["D3", "D9"], suite=suite)

    assert [one.test for one in session.outcomes] == [
        "test_tiny.py::test_d2_d3_fails_with_its_text",
        *["test_tiny.py::test_d9_the_host_has_no_qemu"] * 2,
    ]


def test_a_module_that_cannot_be_imported_is_a_problem(suite: Path) -> None:
    (suite / "test_worse.py").write_text("import nothing_of_that_name\n")

    assert "nothing_of_that_name" in run("compat", suite=suite).problem


def test_a_mode_without_a_machine_is_a_problem(suite: Path) -> None:
    (suite / "guest-suite.yaml").write_text(SUITE.rsplit("\n", 2)[0])

    assert "no machine of mode strict" in run("strict", suite=suite).problem
