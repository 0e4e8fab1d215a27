"""vdev's own commands while a stock guest uses the IOMMU: what they say is what the guest did, on both attachments.

One boot for each attachment. The tests run in order: the last ones take the unit from under the guest.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest_tests.boot import ControlError
from guest_tests.payload.lab import NOWHERE_IOVA, PAGE, SOURCE_IOVA, TARGET_IOVA
from guest_tests.runner.guest import Living
from guest_tests.runner.handle import GuestHandle
from guest_tests.runner.nodes import POOL, tier
from guest_tests.runner.suite import Machine
from tests.booted.conftest import CONFIG
from vdev.config import load_config
from vdev.config.schema import ATTACHMENTS, Attach
from vdev.qapi.check import check_data, check_return
from vdev.qapi.schema import schema

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

INSIDE = Path(__file__).parent / "inside"
ACCEL = "accel0"
ACCEL_ID = 0x100
EVENT_S = 5.0


class Follower:
    """A client of events-follow."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(EVENT_S)
        self._socket.connect(path)
        self._lines = self._socket.makefile("rb")
        self._socket.sendall(b'{"execute": "events-follow"}\n')
        assert json.loads(self._lines.readline()) == {"return": {}}

    def next(self, name: str, **wanted: object) -> dict[str, Any]:
        """The data of the next event `name` that has these; every event on the way is what the schema says."""
        while True:
            event = json.loads(self._lines.readline())
            check_data(schema().events[event["event"]].members, event["data"])
            assert abs(event["timestamp"]["seconds"] - time.time()) < 60
            data: dict[str, Any] = event["data"]
            if event["event"] == name and wanted.items() <= data.items():
                return data

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


class Lab:
    """A guest whose accelerator is open and has a source, a target and its ring mapped."""

    def __init__(self, guest: GuestHandle, attach: Attach) -> None:
        self.guest = guest
        self.attach = attach
        self.mapped: dict[str, int] = guest.call("stock_lab:start")

    def ask(self, command: str, **arguments: Any) -> Any:
        """A command's reply, which is what the schema says."""
        given = {name.rstrip("_").replace("_", "-"): value for name, value in arguments.items()}
        reply = self.guest.control(command, **given)
        check_return(schema().commands[command].returns, reply)
        return reply

    def follow(self) -> Follower:
        async def path(living: Living) -> str:
            return living.vm.control_path

        return Follower(self.guest._do(path))

    def domain(self) -> int:
        """The domain of the accelerator."""
        (found,) = [found for found in self.ask("query-domains")["domains"] if ACCEL in found["endpoints"]]
        return int(found["id"])


@pytest.fixture(scope="module", params=ATTACHMENTS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    attach: Attach = request.param
    pool = request.config.stash[POOL]
    machine = Machine(
        id=f"commands-{attach}", suite=INSIDE, config=load_config(CONFIG), driver="stock", attach=attach, kernel=None,
        append="", modules=(), tier=tier(),
    )  # fmt: skip
    yield Lab(GuestHandle(pool, pool.guest(machine)), attach)
    pool.end(machine)


@pytest.fixture
def follower(lab: Lab) -> Iterator[Follower]:
    following = lab.follow()
    yield following
    following.close()


def test_pages_of_mappings_are_what_the_guest_mapped(lab: Lab) -> None:
    domain, mappings, start = lab.domain(), list[dict[str, Any]](), 0
    while True:
        page = lab.ask("query-mappings", domain=domain, from_=start, limit=2)
        mappings += page["mappings"]
        if "next" not in page:
            break
        start = page["next"]

    starts = [mapping["virt-start"] for mapping in mappings]
    assert len(mappings) == page["total"] > 2
    assert starts == sorted(starts)
    assert {lab.mapped[name] for name in ("ring", "source", "target")} <= set(starts)
    nbytes = sum(mapping["virt-end"] - mapping["virt-start"] + 1 for mapping in mappings)
    assert nbytes == lab.mapped["nbytes"]
    assert [m["flags"] for m in mappings if m["virt-start"] in (SOURCE_IOVA, TARGET_IOVA)] == [["read"], ["write"]]


def test_the_unit_shows_the_drivers_features_and_its_requests(lab: Lab) -> None:
    (unit,) = lab.ask("query-units")

    assert (unit["attach"], unit["unit"]) == (lab.attach, "iommu0")
    assert unit["features-accepted"] == unit["features-offered"]
    assert {count["name"] for count in unit["counters"]["requests"] if count["count"]} >= {"ATTACH", "MAP", "PROBE"}
    assert unit["mappings"] >= lab.ask("query-mappings", domain=lab.domain())["total"]


@pytest.mark.parametrize("offset", [0, 0x1234, (1 << 20) - 8])
def test_translate_leads_where_the_guests_own_page_table_says(lab: Lab, offset: int) -> None:
    told = lab.ask("translate", endpoint=ACCEL, iova=SOURCE_IOVA + offset, nbytes=8)

    assert told["allowed"]
    assert told["pieces"] == [
        {
            "iova": SOURCE_IOVA + offset,
            "gpa": lab.guest.call("stock_lab:gpa_of_source", offset=offset),
            "nbytes": 8,
            "memory": "ram",
        }
    ]


def test_a_refused_access_is_foretold_and_told(lab: Lab, follower: Follower) -> None:
    foretold = lab.ask("translate", endpoint=ACCEL, iova=NOWHERE_IOVA, nbytes=PAGE)
    before = lab.ask("query-units")[0]["counters"]["faults"]
    seen = lab.guest.call("stock_lab:refused")

    fault = follower.next("FAULT")
    assert fault == {
        "unit": "iommu0", "id": ACCEL_ID, "endpoint": ACCEL, "reason": foretold["reason"], "access": seen["access"],
        "iova": NOWHERE_IOVA, "suppressed": 0,
    }  # fmt: skip
    assert (foretold["fault"], foretold["steps"][-1]["step"]) == ("mapping", "mapping")
    after = {count["name"]: count["count"] for count in lab.ask("query-units")[0]["counters"]["faults"]}
    assert after["not-mapped"] == {count["name"]: count["count"] for count in before}.get("not-mapped", 0) + 1


def test_a_guest_that_takes_its_faults_and_answers_leaves_none_waiting(lab: Lab) -> None:
    assert lab.ask("query-faults") == []
    deadline = time.monotonic() + EVENT_S  # an UNMAP of the rng's driver may lie in the ring for 10 ms before its kick
    while (requests := lab.ask("query-requests")) != [{"unit": "iommu0", "waiting": 0, "held": 0}]:
        assert time.monotonic() < deadline, requests


def test_a_stopped_vms_dma_is_held_and_translate_says_so(lab: Lab) -> None:
    lab.guest.qmp("stop")
    held = lab.ask("translate", endpoint=ACCEL, iova=SOURCE_IOVA)
    lab.guest.qmp("cont")
    deadline = time.monotonic() + EVENT_S
    while not lab.ask("translate", endpoint=ACCEL, iova=SOURCE_IOVA)["allowed"]:
        assert time.monotonic() < deadline

    assert (held["reason"], held["steps"][-1]["step"]) == ("frozen", "frozen")
    assert lab.guest.call("stock_lab:copy_works")


def test_set_bypass_interrupts_the_driver(lab: Lab, follower: Follower) -> None:
    before = lab.guest.call("stock_lab:config_interrupts")
    for bypass in (False, True):
        lab.ask("set-bypass", bypass=bypass)
        assert follower.next("BYPASS_CHANGED") == {"unit": "iommu0", "bypass": bypass}
        assert lab.ask("query-units")[0]["bypass"] == bypass
        lab.guest.call("stock_lab:copy_works")  # the interrupt has time to arrive

    assert lab.guest.call("stock_lab:config_interrupts") == before + 2


def test_set_bypass_of_a_stopped_vm_interrupts_when_it_goes_on(lab: Lab) -> None:
    before = lab.guest.call("stock_lab:config_interrupts")
    lab.guest.qmp("stop")
    lab.ask("set-bypass", bypass=False)
    lab.ask("set-bypass", bypass=True)
    lab.guest.qmp("cont")

    assert lab.guest.call("stock_lab:copy_works")
    assert lab.guest.call("stock_lab:config_interrupts") > before


def test_reset_unit_stops_dma_and_the_guest_survives_it(lab: Lab, follower: Follower) -> None:
    lab.guest.call("stock_lab:write_endlessly")
    landed = lab.guest.call("stock_lab:bytes_land")
    was_running = lab.ask("query-iommu")[0]["functions"][ACCEL]["running"]
    lab.ask("reset-unit")
    lands = lab.guest.call("stock_lab:bytes_land")

    follower.next("UNIT_RESET", kind="host")
    assert (landed, was_running, lands) == (True, True, False)
    assert not lab.guest.call("stock_lab:is_running")
    assert lab.ask("query-domains") == {"domains": []}
    lab.guest.call("stock_lab:map_again")
    refused = follower.next("REQUEST_REFUSED", type="MAP")
    assert refused["status"] == "NOENT"
    assert lab.guest.call("stock_lab:trouble") == []


def test_after_a_reset_of_the_unit_the_guest_can_start_anew(lab: Lab, follower: Follower) -> None:
    assert lab.guest.call("stock_lab:start_anew")

    assert not follower.next("ENDPOINT_ATTACHED", endpoint=ACCEL, domain=lab.domain())["bypass"]
    assert lab.guest.call("stock_lab:trouble") == []


def test_needs_reset_is_told_where_there_is_a_way_to(lab: Lab, follower: Follower) -> None:
    if lab.attach == "vhost-user":
        domains = lab.ask("query-domains")
        with pytest.raises(ControlError, match="iommu0 is attached by vhost-user, which cannot tell"):
            lab.ask("reset-unit", needs_reset=True)
        assert lab.ask("query-domains") == domains
        return
    before = lab.guest.call("stock_lab:config_interrupts")

    lab.ask("reset-unit", needs_reset=True)

    assert lab.guest.call("stock_lab:config_interrupts") == before + 1
    lab.guest.call("stock_lab:map_again")
    assert follower.next("REQUEST_REFUSED", type="MAP")["status"] == "NOENT"  # requests are answered all the same
    assert lab.guest.call("stock_lab:trouble") == []
