"""Machines of guest-suite.yaml: those of the soak, those that another kernel makes the same; and in what order."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guest_tests.runner import plugin
from guest_tests.runner.nodes import GuestItem
from guest_tests.runner.suite import load_suite
from vdev.errors import ConfigError

FILE = """\
machines:
  - {config: machine.yaml, attach: [vfio-user, vhost-user]}
  - {config: machine.yaml, attach: [vfio-user], kernels: [cloud-backports]}
  - {config: machine.yaml, attach: [vhost-user], kernels: [cloud-backports], tier: soak}
"""
MACHINE = """\
units: [{name: iommu0}]
endpoints: [{name: accel0}]
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite's directory with no tests in it."""
    (tmp_path / "guest-suite.yaml").write_text(FILE)
    (tmp_path / "machine.yaml").write_text(MACHINE)
    return tmp_path


def test_a_machine_of_the_soak_is_there_in_the_soak_only(suite: Path) -> None:
    normal = [machine.id for machine in load_suite(suite).machines]
    soak = [machine.id for machine in load_suite(suite, tier="soak").machines]

    assert normal == ["vfio-user", "vhost-user", "vfio-user-cloud-backports"]
    assert soak == [*normal, "vhost-user-cloud-backports"]


def test_the_tests_learn_the_tier_of_the_session(suite: Path) -> None:
    assert {machine.facts()["tier"] for machine in load_suite(suite).machines} == {"normal"}
    assert {machine.facts()["tier"] for machine in load_suite(suite, tier="soak").machines} == {"soak"}


def test_machines_that_the_chosen_kernel_makes_the_same_are_one(suite: Path) -> None:
    chosen = load_suite(suite, ("generic",), "soak")

    assert [machine.id for machine in chosen.machines] == ["vfio-user-generic", "vhost-user-generic"]


def test_two_machines_of_one_name_are_refused_where_no_kernel_was_chosen(suite: Path) -> None:
    (suite / "guest-suite.yaml").write_text(FILE + "  - {config: machine.yaml, attach: [vfio-user]}\n")

    with pytest.raises(ConfigError, match="two machines are called 'vfio-user'"):
        load_suite(suite)


def guest_item(module: str, order: int, suite: str = "stock") -> GuestItem:
    """As much of an item as its place among others depends on."""
    item = GuestItem.__new__(GuestItem)
    made = {"_id": f"{module}::test", "order": order, "machine": SimpleNamespace(suite=Path(suite))}
    for name, value in made.items():
        setattr(item, name, value)
    return item


def test_a_suites_machines_come_one_after_another_across_its_modules(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "_end_in_order_on_sigterm", lambda config: None)
    host = SimpleNamespace(nodeid="test_host.py::test")
    items: list[Any] = [guest_item("a", 0), guest_item("a", 1), host, guest_item("b", 0), guest_item("b", 1)]

    plugin.pytest_collection_modifyitems(pytestconfig, items)

    assert [item.nodeid + str(getattr(item, "order", "")) for item in items] == [
        "a::test0", "b::test0", "a::test1", "b::test1", "test_host.py::test",
    ]  # fmt: skip


def test_pytest_timeout_leaves_guest_tests_to_their_own_limit() -> None:
    assert plugin.pytest_timeout_set_timer(guest_item("a", 0)) is True
    assert plugin.pytest_timeout_set_timer(SimpleNamespace()) is None  # type: ignore[arg-type]
