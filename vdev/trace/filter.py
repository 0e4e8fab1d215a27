"""Which trace records somebody wants, by endpoint, type and status. Imports no core: it serves files, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vdev.errors import ConfigError

Record = Mapping[str, Any]

REQUEST_TYPES = (
    "ATTACH", "DETACH", "MAP", "UNMAP", "PROBE", "ATTACH_PASID", "DETACH_PASID", "PASID_ALLOC", "PASID_FREE",
)  # fmt: skip
OTHER_TYPES = (
    "FAULT", "DROPPED", "DMA", "REG", "RESET", "RINGS", "IRQ", "ERROR", "CONNECT", "HANGUP", "STOPPED", "RUNNING",
    "ADDED", "REMOVED", "STAGE", "BYPASS", "PASID", "INJECT", "QEMU", "CLEARED",
)  # fmt: skip
# every request, those of unknown type too; answers that were held; events this version has no words for
GROUPS = ("REQUEST", "HELD", "EVENT")
TYPES = (*REQUEST_TYPES, *OTHER_TYPES, *GROUPS)
REQUEST_STATUSES = ("OK", "IOERR", "UNSUPP", "DEVERR", "INVAL", "RANGE", "NOENT", "FAULT", "NOMEM", "UNWRITTEN")
DMA_REASONS = (
    "bus-master-off", "frozen", "unsupported-request", "unknown-endpoint", "no-domain", "outside-address-space",
    "reserved", "not-mapped", "outside-input-range", "no-write", "no-read", "translation-changed", "cancelled",
    "pasid-not-attached", "pasid-free-pending", "pasid-rid-unattached", "pasid-rid-bypasses", "no-execute",
    "pasid-required", "pasid-disabled", "pasid-too-wide", "execute-disabled", "privileged-disabled",
)  # fmt: skip
STATUSES = (*REQUEST_STATUSES, *DMA_REASONS)
ALWAYS_SHOWN = ("header", "trace", "lost", "note")  # kinds without which the rest would mislead


class Filter:
    """Endpoints, types and statuses are each a choice of several, and a record must pass all three.

    An endpoint is a BDF or a name; a unit's name stands for the unit and all behind it. `!` before a status, such as
    `!OK`, takes it out. A record without a status passes no choice of statuses.
    """

    def __init__(
        self,
        header: Record,
        endpoints: Sequence[str] = (),
        types: Sequence[str] = (),
        statuses: Sequence[str] = (),
    ) -> None:
        """`header` is a trace's first record. ConfigError with key endpoints, types or statuses for what is unknown."""
        self._functions: set[str] = set()
        self._bdfs: set[str] = set()
        self._units: set[str] = set()
        for word in endpoints:
            self._add_endpoint(header, word)
        self._types = {_known("types", word.upper(), TYPES, word) for word in types}
        words = {_known("statuses", _upper_or_reason(word.lstrip("!")), STATUSES, word): word for word in statuses}
        self._wanted = {known for known, word in words.items() if not word.startswith("!")}
        self._unwanted = set(words) - self._wanted

    @property
    def is_empty(self) -> bool:
        """Whether everything passes."""
        return not (self._functions or self._types or self._wanted or self._unwanted)

    def matches(self, record: Record) -> bool:
        """Whether `record` is wanted."""
        if record["kind"] in ALWAYS_SHOWN:
            return True
        return self._matches_endpoint(record) and self._matches_type(record) and self._matches_status(record)

    def _matches_endpoint(self, record: Record) -> bool:
        if not self._functions:
            return True
        named = {record.get("endpoint"), *record.get("endpoints", ())}
        return (
            record.get("function") in self._functions
            or record.get("unit") in self._units
            or not self._bdfs.isdisjoint(named)
        )

    def _matches_type(self, record: Record) -> bool:
        return not self._types or record["type"] in self._types or record["kind"].upper() in self._types

    def _matches_status(self, record: Record) -> bool:
        if not self._wanted and not self._unwanted:
            return True
        status = record.get("status")
        return status is not None and status not in self._unwanted and (not self._wanted or status in self._wanted)

    def _add_endpoint(self, header: Record, word: str) -> None:
        units, endpoints = header.get("units", ()), header.get("endpoints", ())
        for given in (*units, *endpoints):
            if word.lower() in (given["name"], given["bdf"]):
                self._functions.add(given["name"])
                self._bdfs.add(given["bdf"])
                if given in units:
                    self._units.add(given["name"])
                return
        known = ", ".join(f"{given['name']} ({given['bdf']})" for given in (*units, *endpoints))
        raise ConfigError("endpoints", f"there is no {word!r}", f"known: {known or 'none'}")


def _upper_or_reason(word: str) -> str:
    return word.lower() if word.lower() in DMA_REASONS else word.upper()


def _known(key: str, word: str, known: Sequence[str], given: str) -> str:
    if word not in known:
        raise ConfigError(key, f"there is no {given!r}", f"known: {', '.join(known)}")
    return word
