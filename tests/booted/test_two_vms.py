"""Two booted VMs on one PASID authority: none has what the other has, whoever is killed when.

VDEV_TIER=soak does 10,000 steps with 20 VMs and 50 authorities killed, in each space; VDEV_SEED=n does others. The
ledger is judged by its own journal (tests/support/authority.py), and compared with what the guests say they have.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from guest_tests.runner.handle import GuestHandle, GuestOn
from tests.support.authority import check_ledger, kill_authority, rows
from vdev.config import Config, EndpointConfig, PasidsConfig, UnitConfig, VmConfig
from vdev.config.schema import Attach

pytestmark = pytest.mark.guest
INSIDE = Path(__file__).parent / "inside"
SOAK = os.environ.get("VDEV_TIER") == "soak"
SEED = int(os.environ.get("VDEV_SEED", "8"))
NSTEPS, NVM_KILLS, NAUTHORITY_KILLS = (10_000, 20, 50) if SOAK else (400, 1, 2)
SLICE = 50  # steps of one call
QUOTA = 40
SAME = 0x4242
NOENT, REASON_PASID = 6, 0x40
BACK_S = 60.0
SPACES = ("system", "per-vm")
PAIRED_WITH = {"system": "vfio-user", "per-vm": "vhost-user"}


@dataclass
class Lab:
    """An authority of the test's own, and VMs on it."""

    directory: Path
    space: str
    attach: Attach
    guest_on: GuestOn
    nguests: int = field(default=0)

    @property
    def rules(self) -> Path:
        return self.directory / "host.yaml"

    def guest(self, name: str, *, managed: bool = True, start: bool = True) -> GuestHandle:
        """Another booted VM with this name."""
        pasids = PasidsConfig(authority=str(self.directory / "a"), authority_config=str(self.rules), quota=QUOTA)
        config = Config(
            vm=VmConfig(name=name, memory="256M", pasids=pasids),
            units=(UnitConfig(name="iommu0"),),
            endpoints=tuple(EndpointConfig(name=f"accel{number}", bdf=f"0{number + 1}:00.0") for number in range(3)),
        )
        self.nguests += 1
        guest = self.guest_on(config, files=INSIDE, attach=self.attach, at_once=2)
        if start:
            guest.call("pasid_steps:start", managed=managed)
        return guest

    def pair(self, *, managed: bool = True) -> tuple[GuestHandle, GuestHandle]:
        return self.guest("a", managed=managed), self.guest("b", managed=managed)

    def live(self, name: str) -> set[int]:
        """What the ledger says a VM has now, its sets of before included; as the guest numbers them."""
        found = rows(self.directory / "a", "SELECT name, guest FROM pasids JOIN sets ON sets.id = set_id")
        return {guest for of, guest in found if of == name}


@pytest.fixture
def lab(request: pytest.FixtureRequest, tmp_path: Path, guest_on: GuestOn) -> Iterator[Lab]:
    space, attach = request.param
    (tmp_path / "host.yaml").write_text(f"space: {space}\n")
    lab = Lab(tmp_path, space, attach, guest_on)
    yield lab
    kill_authority(tmp_path / "a")


def on(space: str, *attachments: Attach) -> pytest.MarkDecorator:
    """The lab's space, and on which attachments."""
    places = [pytest.param((space, attach), id=f"{space}-{attach}") for attach in attachments]
    return pytest.mark.parametrize("lab", places, indirect=True)


def becomes(holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold: the ledger follows what guests do."""
    until = time.monotonic() + BACK_S
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.timeout(300)
@pytest.mark.conformance(attach=["vfio-user"])
@on("system", "vfio-user")
def test_p3_p11_in_a_system_space_no_guest_numbers_pasids_and_a_foreign_one_is_none(lab: Lab) -> None:
    one, other = lab.guest("a", start=False), lab.guest("b")
    refused = one.call("pasid_steps:unmanaged_is_refused")
    one.call("pasid_steps:start", managed=True)
    theirs = one.call("pasid_steps:alloc")
    mine = other.call("pasid_steps:alloc")
    one.call("pasid_steps:attach", pasid=theirs)
    other.call("pasid_steps:attach", pasid=mine)
    one.call("pasid_steps:fill", pasid=theirs, pattern=0x11)

    foreign = other.call("pasid_steps:attach", pasid=theirs)
    never = other.call("pasid_steps:attach", pasid=0x7_7777)
    by_dma = [other.call("pasid_steps:fill", pasid=pasid, pattern=0x22) for pasid in (theirs, 0x7_7777)]

    assert refused
    assert mine != theirs
    assert (foreign, never) == (NOENT, NOENT)
    assert [fault["reason"] for fault in by_dma] == [REASON_PASID] * 2
    assert one.call("pasid_steps:target") == 0x11
    assert [guest.call("pasid_steps:canaries_are_intact") for guest in (one, other)] == [True, True]


@pytest.mark.timeout(300)
@on("per-vm", "vhost-user")
def test_equal_numbers_in_two_guests_reach_each_their_own_memory(lab: Lab) -> None:
    guests = lab.pair(managed=False)
    statuses = [guest.call("pasid_steps:attach", pasid=SAME) for guest in guests]

    for _ in range(3):
        for guest, pattern in zip(guests, (0x11, 0x22), strict=True):
            assert guest.call("pasid_steps:fill", pasid=SAME, pattern=pattern)["status"] == 1

    hosts = [host for (host,) in rows(lab.directory / "a", f"SELECT host FROM pasids WHERE guest = {SAME}")]
    assert statuses == [0, 0]
    assert len(set(hosts)) == 2
    assert [guest.call("pasid_steps:target") for guest in guests] == [0x11, 0x22]
    assert [guest.call("pasid_steps:canaries_are_intact") for guest in guests] == [True, True]


@pytest.mark.soak(count=NSTEPS, seed=SEED)
@pytest.mark.timeout(3600 if SOAK else 400)
@pytest.mark.parametrize(
    "lab",
    [pytest.param((space, PAIRED_WITH[space]), id=space) for space in (SPACES if SOAK else SPACES[:1])],
    indirect=True,
)
def test_two_guests_allocate_and_free_while_vms_and_authorities_are_killed(
    lab: Lab, record_property: Callable[[str, object], None], pytestconfig: pytest.Config
) -> None:
    pytestconfig.get_terminal_writer().line(f"{lab.space}: {NSTEPS} steps, VDEV_SEED={SEED}")
    rng = random.Random(SEED)
    guests = dict(zip("ab", lab.pair(), strict=True))
    nslices = NSTEPS // (2 * SLICE)
    vm_kills = set(rng.sample(range(1, nslices), NVM_KILLS))
    authority_kills = sorted(rng.choice(range(nslices)) for _ in range(NAUTHORITY_KILLS))
    done: dict[str, int] = {}

    with ThreadPoolExecutor(2) as threads:
        for number in range(nslices):
            if number in vm_kills:
                name = rng.choice("ab")
                guests[name].kill()
                guests[name] = lab.guest(name)
            seeds = {name: rng.getrandbits(32) for name in guests}
            work = {
                name: threads.submit(guest.call, "pasid_steps:steps", seed=seeds[name], count=SLICE, limit=120.0)
                for name, guest in guests.items()
            }
            for _ in range(authority_kills.count(number)):
                time.sleep(rng.random() * 0.2)
                done["authority kills"] = done.get("authority kills", 0) + kill_authority(lab.directory / "a")
            held = {name: _told(future.result(), done) for name, future in work.items()}
            _compare(lab, held)

    ngrants = check_ledger(lab.directory / "a", lab.space)
    for name, value in {**done, "vm kills": len(vm_kills), "grants": ngrants}.items():
        record_property(name.replace(" ", "_"), value)
    assert ngrants >= done["granted"]
    assert [guest.call("pasid_steps:canaries_are_intact") for guest in guests.values()] == [True, True]
    nheld = sum(guest.call("pasid_steps:free_all") for guest in guests.values())
    assert nheld == sum(len(one) for one in held.values())
    assert becomes(lambda: not lab.live("a") and not lab.live("b"))


def _told(outcome: dict[str, Any], done: dict[str, int]) -> set[int]:
    """What a guest has; its counts go to `done`."""
    for name in ("granted", "freed", "no-space", "away"):
        done[name] = done.get(name, 0) + outcome[name]
    return set(outcome["held"])


def _compare(lab: Lab, held: dict[str, set[int]]) -> None:
    """The ledger comes to what the guests have; in a system space no number is two guests'."""
    assert lab.space == "per-vm" or not held["a"] & held["b"]
    for name, pasids in held.items():
        assert becomes(lambda name=name, pasids=pasids: lab.live(name) == pasids), (  # type: ignore[misc]
            f"guest {name} has {sorted(pasids)}, the ledger {sorted(lab.live(name))}"
        )
