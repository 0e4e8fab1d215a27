"""Runs in the guest for lost-interrupt.yaml: requests whose answers interrupt."""

from __future__ import annotations

from guest_tests.payload.direct import Attach, DmaPool, Feature, Viommu, find_units

DOMAIN, ENDPOINT = 1, 0x100
INTERRUPT_S = 1.0
_units: list[Viommu] = []


def start() -> None:
    """The unit, which is to interrupt. With an event index a driver that is quick has taken the answer before the unit
    asks whether it wants an interrupt for it, and none is due."""
    _units.append(Viommu.open(find_units()[0], DmaPool(), msix=True, without=Feature.EVENT_IDX))


def ask() -> dict[str, bool]:
    """An ATTACH: whether its answer is there, and whether an interrupt said so."""
    unit = _units[0]
    _, requests, _ = unit.vectors
    requests.settle()
    answer = unit.send(Attach(domain=DOMAIN, endpoint=ENDPOINT))
    return {"answered": answer.ok, "interrupted": requests.wait(INTERRUPT_S)}
