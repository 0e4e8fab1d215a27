"""Machines left to stock drivers (`driver: stock`): who drives what, IOMMU groups, what the IOMMU was asked.

Fixtures for tests are in `stock_fixtures`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from . import checks_hwrng, guest
from .host import Host
from .lab import expect

PCI = guest.SYS / "bus/pci"
VIRTIO_IOMMU = guest.SYS / "bus/virtio/drivers/virtio_iommu"
SETTLED_S = 0.05  # requests that Linux puts off come within 10 ms
SETTLE_TRIES = 100
WRITE_S = 20.0  # a write to sysfs that takes longer hangs for good
POLL_S = 0.02
SEED_BLOCK = 32  # bytes of one SHA-256


@dataclass(frozen=True)
class Group:
    """An IOMMU group as sysfs shows it; `reserved` are (first, last, kind), both ends belonging to the region."""

    number: int
    type: str
    members: tuple[str, ...]
    reserved: tuple[tuple[int, int, str], ...]


def group_of(bdf: str) -> Group | None:
    """The group of PCI function `bdf`, or None while it has none."""
    link = PCI / "devices" / bdf / "iommu_group"
    if not link.is_symlink():
        return None
    number = int(os.path.basename(os.readlink(link)))
    regions = [line.split() for line in guest.read_text(link / "reserved_regions").splitlines()]
    reserved = tuple((int(first, 16), int(last, 16), kind) for first, last, kind in regions)
    members = tuple(sorted(entry.name for entry in (link / "devices").iterdir()))
    return Group(number, guest.read_text(link / "type"), members, reserved)


def driver_of(bdf: str) -> str | None:
    """The driver PCI function `bdf` is bound to."""
    return guest.link_name(PCI / "devices" / bdf / "driver")


def give_back(bdf: str) -> None:
    """Take `bdf` from whatever holds it and let the kernel choose a driver, as at boot."""
    guest.unbind_driver(bdf)
    (PCI / "drivers_probe").write_text(bdf)


@dataclass(frozen=True)
class Domain:
    """Where an endpoint is attached, as vdev knows it."""

    id: int
    bypass: bool
    endpoints: tuple[int, ...]
    mappings: int


class Unit:
    """What vdev knows of one unit, the machine's first if none is named; every method asks anew."""

    def __init__(self, host: Host, name: str | None = None) -> None:
        self._host = host
        self._name = name

    def state(self) -> dict[str, Any]:
        """The unit's part of query-iommu's answer."""
        units: list[dict[str, Any]] = self._host.control("query-iommu")
        return next(unit for unit in units if self._name in (None, unit["unit"]))

    def settled(self) -> dict[str, Any]:
        """The state once no request has come for a while. Raises CheckFailed if they never stop."""
        before = self.state()
        for _ in range(SETTLE_TRIES):
            time.sleep(SETTLED_S)
            after = self.state()
            if after["counters"]["requests"] == before["counters"]["requests"]:
                return after
            before = after
        expect(False, f"requests do not stop coming: {before['counters']['requests']}")
        return before

    def requests(self) -> dict[str, int]:
        """How many requests of each type there were so far, once no more come."""
        counted: dict[str, int] = self.settled()["counters"]["requests"]
        return counted

    def refused(self) -> dict[str, int]:
        """How many requests were refused with each status so far, once no more come."""
        counted: dict[str, int] = self.settled()["counters"]["refused"]
        return counted

    def function(self, name: str) -> dict[str, Any]:
        """What vdev says about the endpoint called `name`."""
        function: dict[str, Any] = self.state()["functions"][name]
        return function

    def domain_of(self, bdf: str) -> Domain | None:
        """The domain endpoint `bdf` is attached to."""
        number = guest.endpoint_id(bdf)
        for domain in self.settled()["domains"]:
            if number in domain["endpoints"]:
                return Domain(domain["id"], domain["bypass"], tuple(domain["endpoints"]), domain["mappings"])
        return None

    def next_event(self) -> int:
        """The number vdev's next event will have."""
        newest = self._host.control("query-events", limit=1)
        return int(newest[0]["seq"]) + 1 if newest else 0

    def events(self, kind: str, since: int) -> list[dict[str, Any]]:
        """vdev's events of one kind from number `since` on."""
        events: list[dict[str, Any]] = self._host.control("query-events", since=since, kinds=[kind])
        return events

    def trace(self, kind: str, endpoint: str, count: int) -> list[dict[str, Any]]:
        """The newest `count` trace records of one type about the endpoint called `endpoint`, oldest first."""
        answer = self._host.control("query-trace", last=count, types=[kind], endpoints=[endpoint])
        return [record for record in answer["newest"] if record["type"] == kind]  # notes are always among them


@dataclass(frozen=True)
class Machine:
    """The machine's facts (fixture `machine`) in the words of these tests."""

    facts: dict[str, Any]

    def bdf(self, name: str) -> str:
        """The PCI address of the endpoint or unit called `name`, as sysfs writes it."""
        return f"0000:{self._entry(name)['bdf']}"

    def reserved(self, name: str) -> list[tuple[int, int, str]]:
        """The regions endpoint `name` must not use, its unit's among them, ends included, by rising address."""
        endpoint = self._entry(name)
        regions = [*endpoint["reserved"], *self._entry(endpoint["unit"])["reserved"]]
        return sorted((region["start"], region["end"], region["kind"]) for region in regions)

    def unit_of(self, endpoint: str) -> str:
        """The name of the unit in front of `endpoint`."""
        return str(self._entry(endpoint)["unit"])

    def input_range(self, endpoint: str) -> tuple[int, int]:
        """The input range of the unit in front of `endpoint`, both ends in it."""
        first, last = self._entry(self.unit_of(endpoint))["input_range"]
        return first, last

    @property
    def mode(self) -> str:
        """What the kernel's command line asks for: strict, lazy or passthrough."""
        return str(self.facts["name"]).partition("-")[0]

    @property
    def soaking(self) -> bool:
        """Whether the numbers are to be the full ones."""
        return bool(self.facts["tier"] == "soak")

    def seed(self, name: str) -> int:
        """The number the random bytes of endpoint `name` come from."""
        return int(self._entry(name)["options"]["source"].removeprefix("seed:"))

    def _entry(self, name: str) -> dict[str, Any]:
        entries = [*self.facts["units"], *self.facts["endpoints"]]
        found: dict[str, Any] = next(entry for entry in entries if entry["name"] == name)
        return found


def newest_kernel() -> bool:
    """Whether this kernel puts functions behind an IOMMU when that registers, not when a driver asks for them."""
    major, minor, _ = os.uname().release.split(".", 2)
    return (int(major), int(minor)) > (6, 12)  # seen in 7.3, not in 6.12


def seeded_stream(seed: int, nbytes: int) -> bytes:
    """What an rng with `source: seed:SEED` gives from its start on: block i is SHA-256 of "SEED:i"."""
    blocks = (sha256(f"{seed}:{number}".encode()).digest() for number in range(-(-nbytes // SEED_BLOCK)))
    return b"".join(blocks)


def rng_current() -> str:
    """The device behind /dev/hwrng, such as "virtio_rng.0"; "none" without one."""
    return guest.read_text(guest.SYS / checks_hwrng.RNG_CURRENT)


def expect_random_bytes_of(unit: Unit, machine: Machine, name: str) -> None:
    """/dev/hwrng is endpoint `name`, and what it gives are the bytes of that endpoint's seed. Raises CheckFailed."""
    expect(rng_current().startswith("virtio_rng"), f"the kernel draws from '{rng_current()}', not from virtio_rng")
    expect_of_seed(checks_hwrng.draw(), unit, machine, name)


def expect_of_seed(drawn: bytes, unit: Unit, machine: Machine, name: str) -> None:
    """`drawn` are bytes of endpoint `name`'s seed in their order. Raises CheckFailed."""
    stream = seeded_stream(machine.seed(name), unit.function(name)["bytes"])
    # The kernel's own thread draws, too, so there are gaps between the buffers a reader gets.
    size = checks_hwrng.BUFFER_NBYTES
    places = [stream.find(drawn[at : at + size]) for at in range(0, len(drawn), size)]
    expect(-1 not in places, f"{places.count(-1)} of {len(places)} buffers are not of the seed's stream")
    expect(places == sorted(set(places)), "the buffers are not in the stream's order")


def write_in_child(path: Path, text: str) -> int:
    """Write to sysfs in a process of its own, which the kernel may kill; how it ended: 0, an errno, or -signal.

    Raises CheckFailed when it does not come back.
    """
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            path.write_text(text)
        except OSError as error:
            status = error.errno or 1
        finally:
            os._exit(status)
    if not within(WRITE_S, lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None):
        os.kill(pid, signal.SIGKILL)
        expect(False, f"a write of {text!r} to {path} hangs")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait until `condition` holds; whether it did."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
