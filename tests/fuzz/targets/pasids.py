"""PASIDs of a VM with two units: requests of any bytes, answers of the host's allocator, accesses, resets, restores.

Input: a byte that chooses the VM (`Player.__init__`), then moves: a byte that names each, and its operands (`_MOVES`).
Beside "nothing raises": a reply is whole, empty or held; a refused request changes nothing; and after every move the
books agree (`_check`): the set, the allocator, the pairs of both units and their domains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tests.fuzz.reader import Reader
from tests.support.pasid_allocator import PlainAllocator
from vdev.errors import TranslationFault
from vdev.iommu.engine import Engine
from vdev.iommu.in_flight import Flight, Wait
from vdev.iommu.pasid_held import Held
from vdev.iommu.pasid_set import PasidSet, Refusal, Terms
from vdev.iommu.settings import EndpointSettings, Limits, PasidSettings, ReservedRegion, UnitSettings
from vdev.iommu.snapshot import SnapshotError
from vdev.iommu.tag import Tag
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire

PAGE = 4096
HOLE = ReservedRegion(0x8000, 0x9000)
ENDPOINTS = (
    EndpointSettings(8, "wide", (), PasidSettings(20, execute=True)),
    EndpointSettings(16, "narrow", (HOLE,), PasidSettings(3, reserved=((2, 4),))),
    EndpointSettings(24, "without"),
)
LATE = EndpointSettings(32, "late", (), PasidSettings(20))
MAX_PAIRS = 4
SMALL = Limits(max_domains=3, max_mappings_per_domain=4, max_mappings=8, max_pairs=MAX_PAIRS, max_pending_faults=3)
TYPES = (*pasid_wire.REQUEST_NAMES, wire.T_ATTACH, wire.T_DETACH, wire.T_MAP, wire.T_UNMAP, wire.T_PROBE)
LONGEST = 80  # bytes of one request
ACCEPTED = (-1, ~pasid_wire.F_PASID_ALLOC, ~pasid_wire.FEATURES, ~wire.F_BYPASS_CONFIG)


class Player:
    """One VM and what is checked of it."""

    def __init__(self, kind: int) -> None:
        terms = Terms("system" if kind & 1 else "per-vm", quota=3, first=1, stop=64)
        settings = UnitSettings(
            "u0",
            mode="strict" if kind & 2 else "compat",
            isolation="off" if kind & 4 else "preferred",
            domain_stop=4,
            pasids=True,
            limits=SMALL,
        )
        self.allocator = PlainAllocator(terms)
        emit = self._emit if kind & 8 else None
        self.set = PasidSet(self.allocator, emit)
        self.units = [Engine(replace(settings, name=name), ENDPOINTS, emit, self.set) for name in ("u0", "u1")]
        for unit in self.units:
            unit.set_features(ACCEPTED[kind >> 4 & 3])
        self.flights: list[tuple[Engine, Flight]] = []
        self.waits: list[Wait] = []
        if kind & 0x40:
            self.set.ask_for_host(self._attach_for_host)

    def _emit(self, event: object) -> None:
        str(event)

    def _attach_for_host(self, found: Held | Refusal) -> None:
        if isinstance(found, Held) and 8 in self.units[0].table.endpoints:
            self.units[0].host_attach_mirror(8, found.pasid)

    def _unit(self, given: Reader) -> Engine:
        return self.units[given.byte() & 1]

    # moves

    def send(self, given: Reader) -> None:
        """A request of any bytes."""
        unit, room = self._unit(given), _ROOMS[given.byte() % len(_ROOMS)]
        self._send(unit, given.take(given.byte() % LONGEST), room)

    def send_shaped(self, given: Reader) -> None:
        """A request of the right length from numbers that are probably of interest."""
        unit, shape, choice = self._unit(given), given.byte(), given.byte()
        number = TYPES[shape % len(TYPES)]
        self._send(unit, _shaped(number, choice, given), 516 if number == wire.T_PROBE else 12)

    def _send(self, unit: Engine, request: bytes, room: int) -> None:
        before = self._trace()
        reply = unit.handle(request, room)
        wait, unit.wait = unit.wait, None
        if wait is not None:
            self.waits.append(wait)
            if wait.late is not None:
                assert not reply
                return
        if not reply:
            assert room < wire.TAIL_NBYTES or unit.settings.mode == "strict", "no answer"
        else:
            assert len(reply) <= room
            assert reply[-wire.TAIL_NBYTES :] in wire.TAILS.values()
        if not reply or reply[-wire.TAIL_NBYTES] != wire.S_OK:
            assert wait is None
            assert self._trace() == before, "a refused request left a trace"

    def _trace(self) -> Any:
        return [unit.snapshot() for unit in self.units], self.set.list_pasids(), self.set.describe()

    def answer(self, given: Reader) -> None:
        """The allocator answers all, refuses all, or answers none from now on."""
        choice = given.byte()
        self.allocator.refuse = (None, None, *Refusal)[choice % 6]
        self.allocator.answer()
        assert all(wait.is_over for wait in self.waits if wait.late is not None)
        self.waits = [wait for wait in self.waits if wait.late is None]

    def terms(self, given: Reader) -> None:
        """Another quota."""
        self.allocator.change(quota=given.byte() % 6)

    def access(self, given: Reader) -> None:
        """With or without a PASID; some stay in flight."""
        unit, choice, page = self._unit(given), given.byte(), given.byte() % 12
        endpoint, pasid, access = 8 * (choice % 5), choice >> 3 & 7, choice % 3 + 1
        tag = Tag(pasid, execute=choice & 0x40 != 0) if pasid else None
        try:
            pieces = unit.translate(endpoint, page * PAGE, 8, access, tag)
            if choice & 0x80 and len(unit.in_flight.of(endpoint)) < 6:
                self.flights.append((unit, unit.begin(endpoint, page * PAGE, 8, access, tag)))
        except TranslationFault as error:
            unit.fault(endpoint, error, access, tag)
            for nbytes in (0, 24, 48):
                assert len(unit.told_fault(unit.pending_faults[0], nbytes)) in (24, 48)
            return
        assert sum(nbytes for _, nbytes in pieces) == 8
        if tag is not None:
            held = self.set.of_guest(pasid) or self.set.of_host(pasid)
            assert held is not None
            assert not held.freed
            assert pasid in unit.table.endpoints[endpoint].pairs
            assert not (tag.execute and unit.settings.isolation != "off"), "MAP let an execution pass"

    def land(self, given: Reader) -> None:
        """An access is over."""
        if self.flights:
            unit, flight = self.flights.pop(given.byte() % len(self.flights))
            unit.in_flight.end(flight)

    def reset(self, given: Reader) -> None:
        """One of the three resets, and a new driver."""
        unit, choice = self._unit(given), given.byte()
        (unit.device_reset, unit.system_reset, unit.host_reset)[choice % 3]()
        assert not [row for row in unit.pasids.list_pairs() if row["owner"] == "guest"]
        assert all(held.freed for held in unit.pasids.held())
        unit.set_features(ACCEPTED[choice >> 2 & 3])

    def again(self, given: Reader) -> None:
        """State goes out and comes back, also after something else happened."""
        unit = self._unit(given)
        unit.in_flight.cancel_all()
        saved = unit.snapshot()
        if given.byte() & 1:
            self.send_shaped(given)
        before = self._trace()
        try:
            unit.restore(saved)
        except SnapshotError:
            assert self._trace() == before
        else:
            assert unit.snapshot()["domains"] == saved["domains"]

    def plug(self, given: Reader) -> None:
        """An endpoint comes or goes."""
        unit = self._unit(given)
        if LATE.id in unit.table.endpoints:
            unit.remove_endpoint(LATE.id)
        else:
            unit.add_endpoint(LATE)

    def take_away(self, given: Reader) -> None:
        """By the host: one PASID, or what it says it does not hold."""
        choice = given.byte()
        pasid = choice & 0x0F
        if choice & 0x80:
            self.set.revoke([pasid])
        elif not self.allocator.waiting:
            self.set.reconcile(self.allocator.granted - {pasid})
        else:
            return
        self.allocator.granted.discard(pasid)


_MOVES: tuple[Callable[[Player, Reader], None], ...] = (
    Player.send_shaped,
    Player.send,
    Player.answer,
    Player.access,
    Player.land,
    Player.reset,
    Player.again,
    Player.plug,
    Player.take_away,
    Player.terms,
    Player.send_shaped,
    Player.answer,
)
_ROOMS = (12, 4, 516, 0, 3, 8, 11, 13, 64)


def one_input(data: bytes) -> None:
    """Play one input to a new VM."""
    given = Reader(data)
    player = Player(given.byte())
    while given.more:
        _MOVES[given.byte() % len(_MOVES)](player, given)
        player.flights = [(unit, flight) for unit, flight in player.flights if not flight.over]
        _check(player)


def _shaped(number: int, choice: int, given: Reader) -> bytes:
    endpoint, domain, pasid = 8 * (choice % 6), choice >> 3 & 3, choice >> 5
    head = bytes(3)
    if number == pasid_wire.T_ATTACH_PASID:
        flags = given.byte() % 4
        return pasid_wire.AttachPasid(number, head, 0 if flags == 2 else domain, endpoint, pasid, flags).pack()
    if number == pasid_wire.T_DETACH_PASID:
        return pasid_wire.DetachPasid(number, head, domain, endpoint, pasid).pack()
    if number in (pasid_wire.T_PASID_ALLOC, pasid_wire.T_PASID_FREE):
        return pasid_wire.PasidAlloc(number, head, pasid, choice & 0x1F).pack()
    if number == wire.T_ATTACH:
        return wire.Attach(number, head, domain, endpoint, choice >> 7).pack()
    if number == wire.T_DETACH:
        return wire.Detach(number, head, domain, endpoint).pack()
    start = given.byte() % 12 * PAGE
    if number == wire.T_MAP:
        return wire.Map(number, head, domain, start, start + PAGE - 1, start ^ 0x1_0000, 3).pack()
    if number == wire.T_UNMAP:
        return wire.Unmap(number, head, domain, start, start + PAGE - 1).pack()
    return wire.Probe(number, head, endpoint).pack()


def _check(player: Player) -> None:
    """The books agree with each other."""
    rows = {row["pasid"]: row for row in player.set.list_pasids()}
    assert set(rows) == player.allocator.granted, "the host counts others"
    used = Counter[int]()
    for unit in player.units:
        pairs = unit.pasids.list_pairs()
        assert len(pairs) == unit.table.npairs
        assert len(pairs) <= MAX_PAIRS + 1, "over the cap"  # and the host's
        used.update(row["pasid"] for row in pairs)
        _check_unit(unit)
    in_flight = {pasid for unit in player.units for pasid in unit.in_flight.pasids()}
    for pasid, row in rows.items():
        assert row["pairs"] == used[pasid]
        assert row["state"] != "free-pending" or used[pasid] or pasid in in_flight, "it has ended"
    assert set(used) <= set(rows), "a pair of a PASID that is not there"


def _check_unit(unit: Engine) -> None:
    fields = pasid_wire.PasidConfig.parse(unit.config_bytes(), pasid_wire.CONFIG_OFFSET)
    assert unit.pasids.is_accepted or fields.pack() == bytes(pasid_wire.CONFIG_NBYTES)
    for domain in unit.table.domains.values():
        assert domain.endpoints or domain.pairs, "a domain of nobody"
        assert all(domain.pairs.values())
        assert not (domain.pairs and domain.bypass and unit.settings.isolation != "off")
        if 16 in domain.pairs or 16 in domain.endpoints:
            assert not domain.mappings.overlaps(HOLE.start, HOLE.stop)


def seeds() -> Iterator[bytes]:
    """A driver that allocates, attaches, maps, uses and frees, for some kinds of VM."""
    alloc, attach, mirror = [0, 0, 2, 0x3F], [0, 0, 0, 0x29, 0], [0, 0, 0, 0x21, 2]
    mapped, used, flying = [0, 0, 6, 0x29, 1], [3, 0, 0x09, 1], [3, 0, 0x89, 1]
    detach, free, rid = [0, 0, 1, 0x29], [0, 0, 3, 0x3F], [0, 0, 4, 0x09]
    whole = [*alloc, 2, 0, *attach, *mapped, *used, *flying, *free, 4, 0, *detach]
    for kind in (0, 1, 2, 4, 8, 0x10, 0x20, 0x40, 0x54):
        yield bytes([kind, *whole])
        yield bytes([kind, *alloc, 2, 0, *mirror, *rid, *mapped, *flying, 5, 0, 0, *alloc, 2, 5])
        yield bytes([kind, *alloc, *alloc, 5, 0, 0, 2, 0, *whole, 6, 0, 0, 7, 0, 7, 0, 8, 0x81, 9, 1])
    for number in pasid_wire.REQUEST_NAMES:
        yield bytes([0, 1, 0, 0, 28, number, *bytes(3), 1, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, *bytes(12)])
