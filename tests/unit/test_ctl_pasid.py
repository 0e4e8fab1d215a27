"""`vdev ctl pasid`: whom it asks, for what, and what it prints. Who answers has a table of answers here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.answering import Make, Pages, answering_in
from vdev.__main__ import main

STATES = {"allocated": 2, "attached": 1, "free-pending": 0}
OF_HOST = {
    "set": 3, "vm": "one", "pid": 77, "state": "held", "quota": 10, "used": 3, "states": {**STATES, "quarantined": 0},
}  # fmt: skip
OF_VM = {
    "vm": "one", "quota": 10, "used": 3, "states": STATES, "lease": {"state": "held", "authority": "/x", "set": 3},
}  # fmt: skip
PAIRS = [
    {"unit": "u", "endpoint": "a", "domain": 7, "follows": False},
    {"unit": "u", "endpoint": "b", "follows": True},
]


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Make]:
    with answering_in(tmp_path) as make:
        yield make


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["ctl", "pasid", *words])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def test_all_vms_of_the_host_are_a_table(answering: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = answering("admin.sock", {"query-pasid-vms": [OF_HOST, {**OF_HOST, "vm": "another", "set": 12}]})

    status, shown, _ = run(capsys, "list", "--authority", str(tmp_path))

    assert status == 0
    assert shown.splitlines() == [
        "vm       set  pid  state  quota  used  allocated  attached  free-pending  quarantined",
        "one        3   77  held      10     3          2         1             0            0",
        "another   12   77  held      10     3          2         1             0            0",
    ]
    assert authority.asked == [("query-pasid-vms", {})]


def test_a_host_without_vms_says_so_and_json_is_the_reply_as_it_came(
    answering: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answering("admin.sock", {"query-pasid-vms": []})

    assert run(capsys, "list", "--authority", str(tmp_path))[1] == "none\n"
    assert run(capsys, "list", "--json", "--authority", str(tmp_path))[1] == "[]\n"


def test_one_vms_pasids_come_with_the_hosts_numbers_from_the_authority(
    answering: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pasids = [{"pasid": 1, "host": 0x51, "state": "attached"}, {"pasid": 2, "host": 0x52, "state": "allocated"}]
    authority = answering("admin.sock", {"query-pasids": {**OF_HOST, "pasids": pasids}})

    _, shown, _ = run(capsys, "show", "one", "--authority", str(tmp_path))

    assert shown.splitlines()[2:] == ["", "pasid  state      host", "0x1    attached   0x51", "0x2    allocated  0x52"]
    assert authority.asked == [("query-pasids", {"vm": "one"})]


def test_a_vm_shows_its_own_page_by_page_with_what_they_are_attached_to(
    answering: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {"pasid": 1, "state": "attached", "owner": "guest", "unit": "u", "pairs": PAIRS}
    second = {"pasid": 9, "state": "allocated", "owner": "guest", "unit": "u", "pairs": []}
    pages = Pages([{"pasids": [first], "total": 2, "next": 9}, {"pasids": [second], "total": 2}])
    vm = answering("control.sock", {"query-pasid-set": OF_VM, "query-pasids": pages})

    _, shown, _ = run(capsys, "show", "--runtime-dir", str(tmp_path))

    assert shown.splitlines() == [
        "vm   set  state  quota  used  allocated  attached  free-pending",
        "one    3  held      10     3          2         1             0",
        "",
        "pasid  state      owner  attached to",
        "0x1    attached   guest  a in domain 7, b as it is itself",
        "0x9    allocated  guest  -",
    ]
    assert [arguments.get("from") for _, arguments in vm.asked] == [None, 0, 9]


def test_orders_go_to_the_vm_itself_or_about_a_named_one_to_the_authority(
    answering: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "host").mkdir()
    vm = answering("control.sock", {"pasid-quota": {"quota": 5, "used": 1}, "pasid-reclaim": {"taken": 1}})
    host = answering("host/admin.sock", {"pasid-quota": OF_HOST, "pasid-reclaim": {**OF_HOST, "taken": 3}})
    of_vm, of_host = ("--socket", str(tmp_path / "control.sock")), ("--authority", str(tmp_path / "host"))

    shown = [
        run(capsys, "quota", "5", "--reason", "why", *of_vm)[1],
        run(capsys, "quota", "one", "10", *of_host)[1],
        run(capsys, "reclaim", "--pasid", "0x11", "--force", *of_vm)[1],
        run(capsys, "reclaim", "one", "--all", *of_host)[1],
    ]

    assert shown == ["quota: 5\nused: 1\n", "quota: 10\nused: 3\n", "taken: 1\n", "quota: 10\nused: 3\ntaken: 3\n"]
    assert vm.asked == [
        ("pasid-quota", {"quota": 5, "reason": "why"}),
        ("pasid-reclaim", {"pasid": 17, "force": True}),
    ]
    assert host.asked == [("pasid-quota", {"vm": "one", "quota": 10}), ("pasid-reclaim", {"vm": "one", "all": True})]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("show", "--authority", "/x"), "vdev ctl pasid show: names no VM"),
        (("quota", "5", "--authority", "/x"), "vdev ctl pasid quota: names no VM"),
        (("show", "one", "--runtime-dir", "/x"), "vdev ctl pasid: a VM's socket and another place are given"),
        (("list", "--authority", "/x", "--socket", "/y"), "vdev ctl pasid: a VM's socket and another place are given"),
        (("list", "--authority", "/nowhere"), "/nowhere/admin.sock: nobody listens there"),
    ],
)
def test_words_that_say_two_places_or_none_are_refused(
    words: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, shown, errors = run(capsys, *words)

    assert (status, shown) == (2, "")
    assert errors.startswith(f"vdev: {problem}")


@pytest.mark.parametrize("words", [("reclaim",), ("reclaim", "--pasid", "1", "--all"), ("quota",), ("quota", "many")])
def test_an_order_that_does_not_say_what_is_refused_with_its_usage(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ctl", "pasid", *words])

    assert ended.value.code == 2
    assert "usage: vdev ctl pasid" in capsys.readouterr().err
