"""What fault injection does, as trace records: see `records`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from vdev.faults.events import FaultInjected, FaultQemuDone, FaultsCleared, FaultWantsQemu

Record = dict[str, Any]


class Names(Protocol):
    """The machine's names: `records.Decoder`."""

    def address(self, unit: str | None, value: int) -> str:
        """An address of a unit's in hex."""

    def endpoint(self, bdf: int) -> Record:
        """The keys that name an endpoint."""

    def function(self, name: str) -> Record:
        """The keys that name a function."""


def _injected(names: Names, event: FaultInjected) -> Record:
    """What a rule met is named as in the record of the thing itself."""
    met = dict(event.fields)
    unit, function, endpoint = met.pop("unit", None), met.pop("function", None), met.pop("endpoint", None)
    keys = {"unit": unit} if unit is not None else {}
    if function is not None:
        keys |= names.function(str(function))
    if isinstance(endpoint, int):
        keys |= names.endpoint(endpoint)
    for name in ("iova", "iova_end"):
        if name in met:
            met[name] = names.address(str(unit), int(met[name]))
    for name in ("pasid", "register"):
        if name in met:
            met[name] = f"{met[name]:#x}"
    note = {"note": event.note} if event.note else {}
    given = {name: str(value).lower() if isinstance(value, bool) else value for name, value in event.parameters.items()}
    how = {"with": ", ".join(f"{name}={value}" for name, value in given.items())} if given else {}
    shown = {"rule": event.rule, "n": event.n, "at": event.at, "do": event.do, **how, **met, **note}
    return {"kind": "injected", "type": "INJECT", **keys, "fields": shown}


def _qemu(names: Names, event: FaultWantsQemu | FaultQemuDone) -> Record:
    came = {"command_line": event.command_line} if isinstance(event, FaultWantsQemu) else {"problem": event.error}
    shown = {"rule": event.rule, "n": event.n, **{name: text for name, text in came.items() if text}}
    return {"kind": "injected", "type": "QEMU", "fields": shown}


def _cleared(names: Names, event: FaultsCleared) -> Record:
    shown = {"rules": event.rules, "undone": list(event.undone), "terminal": list(event.terminal)}
    return {"kind": "injected", "type": "CLEARED", "fields": shown}


FAULT_DECODERS: dict[type, Callable[[Any, Any], Record]] = {
    FaultInjected: _injected,
    FaultWantsQemu: _qemu,
    FaultQemuDone: _qemu,
    FaultsCleared: _cleared,
}
