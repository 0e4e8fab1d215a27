"""Request bytes of any kind to a unit's engine, one after the other, with accesses and resets in between.

Input: one byte chooses the unit (its bits are in `_settings`), then moves, each a byte that names it and its operands
(`_MOVES`). Beside "nothing raises": a reply is empty or whole, a refused request changes nothing, and after every
request the table is one a specification's reader would accept (`_check_table`), found by plain loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.fuzz.reader import Reader
from vdev.errors import TranslationFault
from vdev.iommu.engine import Engine
from vdev.iommu.settings import ADDRESS_SPACE, EndpointSettings, Limits, ReservedRegion, UnitSettings
from vdev.wire import viommu as wire

MSI = ReservedRegion(0xFEE0_0000, 0xFEF0_0000, is_msi=True)
HOLE = ReservedRegion(0x8000, 0xA000)
ENDPOINTS = (
    EndpointSettings(0x08, "plain"),
    EndpointSettings(0x10, "doorbell", (MSI,)),
    EndpointSettings(0x18, "holed", (HOLE, MSI)),
)
MAX_MAPPINGS = 12
SMALL = Limits(max_domains=2, max_mappings_per_domain=8, max_mappings=MAX_MAPPINGS, max_pending_faults=3)
LONGEST = 96  # bytes of one request: PROBE has 72
TAILS = frozenset(wire.TAILS.values())


class Player:
    """One unit and what is checked of it."""

    def __init__(self, kind: int) -> None:
        self.settings = _settings(kind)
        self.engine = Engine(self.settings, ENDPOINTS, self._emit if kind & 0x80 else None)
        self.engine.set_features(-1)

    def _emit(self, event: object) -> None:
        str(event)

    def send(self, given: Reader) -> None:
        """A request of any bytes: the writable part's size, its own size, itself."""
        writable_nbytes = _WRITABLE[given.byte() % len(_WRITABLE)]
        self._send(given.take(given.byte() % LONGEST), writable_nbytes)

    def send_shaped(self, given: Reader) -> None:
        """A request of the right length from numbers that are probably of interest."""
        shape = given.byte()
        if shape % 4 == 0:
            endpoint, domain, flags = 8 * (given.byte() % 5), given.byte() % 4, shape >> 2 & 3
            self._send(wire.Attach(wire.T_ATTACH, bytes(3), domain, endpoint, flags).pack(), 4)
            return
        choice = given.byte()
        domain, granule = choice % 4, self.settings.granule
        near = (0, HOLE.start, MSI.start, self.settings.input_stop)[choice >> 2 & 3]
        start = (near + (given.byte() % 64 - 16) * granule) % ADDRESS_SPACE
        end = (start + given.byte() % 32 * granule - 1) % ADDRESS_SPACE
        if shape % 4 == 1:
            self._send(wire.Unmap(wire.T_UNMAP, bytes(3), domain, start, end).pack(), 4)
            return
        self._send(wire.Map(wire.T_MAP, bytes(3), domain, start, end, start ^ 0x1_0000, shape >> 2).pack(), 4)

    def _send(self, request: bytes, writable_nbytes: int) -> None:
        before = self.engine.snapshot()
        reply = self.engine.handle(request, writable_nbytes)
        _check_reply(self.settings, request, reply, writable_nbytes)
        if not reply or reply[-wire.TAIL_NBYTES] != wire.S_OK:
            assert self.engine.snapshot() == before, "a refused request left a trace"
        _check_table(self.settings, self.engine)

    def access(self, given: Reader) -> None:
        """An endpoint's access: the fate a walk over the snapshot gives it; a refusal is reported as the door does."""
        endpoint, access = 8 * (given.byte() % 5), given.byte() % 3 + 1
        iova, nbytes = given.number(5) * self.settings.granule % ADDRESS_SPACE, given.number(2)
        try:
            pieces = self.engine.translate(endpoint, iova, nbytes, access)
        except TranslationFault as error:
            self.engine.fault(endpoint, error, access)
            self._check_fault(iova, error.iova, nbytes)
            return
        assert sum(length for _, length in pieces) == nbytes
        _check_pieces(self.engine, endpoint, iova, pieces, access)

    def _check_fault(self, iova: int, refused: int, nbytes: int) -> None:
        assert iova <= refused < iova + nbytes
        assert len(self.engine.pending_faults) <= self.settings.limits.max_pending_faults

    def features(self, given: Reader) -> None:
        """Other features are accepted."""
        self.engine.set_features(given.byte())

    def bypass(self, given: Reader) -> None:
        """The bypass byte is written."""
        self.engine.write_bypass(given.byte())
        assert self.engine.config_bytes()[wire.BYPASS_OFFSET] in (0, 1)

    def reset(self, given: Reader) -> None:
        """One of the three resets."""
        (self.engine.device_reset, self.engine.system_reset, self.engine.host_reset)[given.byte() % 3]()
        assert not self.engine.table.domains
        assert not self.engine.table.nmappings

    def again(self, given: Reader) -> None:
        """State goes out and comes back; what was removed is swept up."""
        saved = self.engine.snapshot()
        self.engine.restore(saved)
        assert self.engine.snapshot() == saved
        while self.engine.sweep():
            pass
        _check_table(self.settings, self.engine)


_MOVES: tuple[Callable[[Player, Reader], None], ...] = (
    Player.send,
    Player.send_shaped,
    Player.access,
    Player.features,
    Player.bypass,
    Player.reset,
    Player.again,
)
_WRITABLE = (4, 516, 0, 3, 5, 24, 27, 28, 515, 517, 65536)


def one_input(data: bytes) -> None:
    """Play one input to a new unit."""
    given = Reader(data)
    player = Player(given.byte())
    while given.more:
        _MOVES[given.byte() % len(_MOVES)](player, given)


def _settings(kind: int) -> UnitSettings:
    """The unit that the bits of `kind` name."""
    return UnitSettings(
        "unit",
        mode="strict" if kind & 1 else "compat",
        page_size_mask=ADDRESS_SPACE - (1 if kind & 2 else 4096),
        input_start=0x2000 if kind & 4 else 0,
        input_stop=1 << 24 if kind & 4 else ADDRESS_SPACE,
        domain_start=1 if kind & 4 else 0,
        domain_stop=3 if kind & 4 else 1 << 32,
        bypass_offered=not kind & 8,
        boot_bypass=bool(kind & 0x10),
        mmio=not kind & 0x20,
        probe_size=0 if kind & 0x40 else 512,
        limits=SMALL,
    )


def _check_reply(settings: UnitSettings, request: bytes, reply: bytes, writable_nbytes: int) -> None:
    """Whole and in its place, or empty."""
    if not reply:
        assert writable_nbytes < wire.TAIL_NBYTES or settings.mode == "strict", "no answer"
        return
    assert len(reply) <= writable_nbytes, "longer than its place"
    assert reply[-wire.TAIL_NBYTES :] in TAILS, "no tail"
    if request[:1] != bytes([wire.T_PROBE]):
        assert len(reply) == wire.TAIL_NBYTES


def _check_table(settings: UnitSettings, engine: Engine) -> None:
    """Domains and mappings as they may be: caps kept, nothing empty, nothing overlapping, nothing over a hole."""
    domains = engine.snapshot()["domains"]
    nmappings = sum(len(domain["mappings"]) for domain in domains)
    assert nmappings == engine.table.nmappings <= settings.limits.max_mappings
    assert len(domains) <= settings.limits.max_domains
    members = [endpoint for domain in domains for endpoint in domain["endpoints"]]
    assert len(members) == len(set(members)), "an endpoint in two domains"
    for domain in domains:
        assert domain["endpoints"], "a domain of nobody"
        assert settings.domain_start <= domain["id"] < settings.domain_stop
        assert not (domain["bypass"] and domain["mappings"])
        assert len(domain["mappings"]) <= settings.limits.max_mappings_per_domain
        _check_mappings(settings, domain)


def _check_mappings(settings: UnitSettings, domain: dict[str, Any]) -> None:
    holes = [hole for given in ENDPOINTS if given.id in domain["endpoints"] for hole in given.reserved]
    cursor = settings.input_start
    for start, stop, gpa, flags in domain["mappings"]:
        assert cursor <= start < stop <= settings.input_stop, "overlaps another, or outside"
        assert not (start | stop | gpa) % settings.granule
        assert gpa + stop - start <= ADDRESS_SPACE
        assert not flags & ~(wire.MAP_F_READ | wire.MAP_F_WRITE | (wire.MAP_F_MMIO if settings.mmio else 0))
        assert all(stop <= hole.start or hole.stop <= start for hole in holes), "over a reserved region"
        cursor = stop


def _check_pieces(engine: Engine, endpoint: int, iova: int, pieces: list[tuple[int, int]], access: int) -> None:
    """Every piece is what its first and its last byte are by themselves."""
    saved = engine.snapshot()
    cursor = iova
    for gpa, nbytes in pieces:
        assert nbytes > 0
        for at in {cursor, cursor + nbytes - 1}:
            assert _fate(saved, endpoint, at, access) == gpa + at - cursor, "another address than the mapping's"
        cursor += nbytes


def _fate(saved: dict[str, Any], endpoint: int, address: int, access: int) -> int | None:
    """Where one byte goes, found by looking at everything; None where it goes nowhere."""
    reserved = next((known.reserved for known in ENDPOINTS if known.id == endpoint), None)
    domain = next((domain for domain in saved["domains"] if endpoint in domain["endpoints"]), None)
    if reserved is None or (domain is None and not saved["bypass"]):
        return None
    for region in reserved:
        if region.start <= address < region.stop:
            return address if region.is_msi and access == wire.MAP_F_WRITE else None
    if domain is None or domain["bypass"]:
        return address
    for start, stop, gpa, flags in domain["mappings"]:
        if start <= address < stop and not access & ~flags:
            return int(gpa + address - start)
    return None


def seeds() -> Iterator[bytes]:
    """The requests of a driver that probes, attaches, maps, unmaps and detaches, for some kinds of unit."""
    requests = (
        wire.Probe(wire.T_PROBE, bytes(3), 0x10).pack(),
        wire.Attach(wire.T_ATTACH, bytes(3), 1, 0x10).pack(),
        wire.Map(wire.T_MAP, bytes(3), 1, 0x10000, 0x1FFFF, 0x40000, 3).pack(),
        wire.Attach(wire.T_ATTACH, bytes(3), 1, 0x18).pack(),
        wire.Unmap(wire.T_UNMAP, bytes(3), 1, 0x10000, 0x1FFFF).pack(),
        wire.Detach(wire.T_DETACH, bytes(3), 1, 0x10).pack(),
        wire.Attach(wire.T_ATTACH, bytes(3), 2, 0x08, wire.ATTACH_F_BYPASS).pack(),
    )
    sends = [bytes([0, 1, len(request)]) + request for request in requests]
    for kind in (0, 1, 2, 7, 0x10, 0x28, 0xC1):
        yield bytes([kind]) + b"".join(sends)
        yield bytes([kind]) + sends[1] + sends[2] + bytes([2, 2, 0, 0x10, 0, 0, 0, 0, 0, 1, 6, 0, 5, 0])
        yield bytes([kind, 1, 0, 1, 1, 1, 14, 1, 0x20, 4, 1, 14, 1, 0x28, 4, 1, 1, 1, 0x20, 12, 3, 0xFF, 4, 1])
        yield bytes([kind, 1, 0, 1, 1, 1, 14, 5, 18, 4, 1, 14, 9, 0, 4, 1, 0, 3, 1, 2, 3, 1, 0, 2, 0, 0, 0, 0, 64, 0])
