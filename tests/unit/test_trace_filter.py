"""Choosing records by endpoint, type and status, and how wrong words are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.trace import DECODER, FAULT, HEADER, MAPPED, REFUSED
from vdev import functions, iommu
from vdev.errors import ConfigError
from vdev.events import DmaDone, FunctionReset, InterruptRaised, RegisterWritten
from vdev.iommu.events import RequestHandled
from vdev.trace.filter import DMA_REASONS, REQUEST_STATUSES, REQUEST_TYPES, Filter
from vdev.trace.records import Entry, Lost, Note, Recording
from vdev.wire import viommu_pasid
from vdev.wire.viommu import REQUEST_NAMES, STATUS_NAMES

EVENTS: dict[str, object] = {
    "map": MAPPED,
    "refused": REFUSED,
    "unwritten": RequestHandled("iommu0", "0x2a", None, None, "unknown type", (8, 4)),
    "fault": FAULT,
    "dma": DmaDone(0x100, 0x1000, 64, False, 1),
    "refused dma": DmaDone(0x200, 0x1000, 64, True, 0, "no-write"),
    "register": RegisterWritten("iommu0", "command", 6, "MEMORY"),
    "reset": FunctionReset("accel0", "virtio"),
    "irq": InterruptRaised("accel0", 1),
}
RECORDS = {
    name: DECODER.record(Entry(0, 0, event, None, (0x100,) if name == "map" else ())) for name, event in EVENTS.items()
}


def chosen(**words: list[str]) -> list[str]:
    wanted = Filter(HEADER, **words)
    return [name for name, record in RECORDS.items() if wanted.matches(record)]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ({}, list(RECORDS)),
        ({"endpoints": ["accel0"]}, ["map", "fault", "dma", "reset", "irq"]),
        ({"endpoints": ["01:00.0"]}, ["map", "fault", "dma", "reset", "irq"]),
        ({"endpoints": ["iommu0"]}, ["map", "refused", "unwritten", "fault", "dma", "register", "reset", "irq"]),
        ({"types": ["MAP"]}, ["map", "refused"]),
        ({"types": ["request"]}, ["map", "refused", "unwritten"]),
        ({"types": ["FAULT", "irq"]}, ["fault", "irq"]),
        ({"statuses": ["OK"]}, ["map", "dma"]),
        ({"statuses": ["!OK"]}, ["refused", "unwritten", "fault", "refused dma"]),
        ({"statuses": ["!ok", "!not-mapped", "!inval"]}, ["unwritten", "refused dma"]),
        ({"statuses": ["NO-WRITE", "INVAL"]}, ["refused", "refused dma"]),
        ({"endpoints": ["accel0"], "types": ["DMA"], "statuses": ["!OK"]}, []),
    ],
)
def test_a_record_must_pass_every_choice(words: dict[str, list[str]], names: list[str]) -> None:
    assert chosen(**words) == names


@pytest.mark.parametrize("event", [Lost(3), Note("x"), Recording(True)])
def test_what_would_mislead_by_its_absence_always_passes(event: object) -> None:
    record = DECODER.record(Entry(0, 0, event))

    assert Filter(HEADER, ["accel0"], ["DMA"], ["!OK"]).matches(record)


@pytest.mark.parametrize(
    ("words", "key", "known"),
    [
        ({"endpoints": ["accel1"]}, "endpoints", "accel0 (01:00.0)"),
        ({"types": ["MAPP"]}, "types", "UNMAP"),
        ({"statuses": ["!FINE"]}, "statuses", "NOMEM"),
    ],
)
def test_an_unknown_word_is_refused_with_those_that_are_known(
    words: dict[str, list[str]], key: str, known: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Filter(HEADER, **words)

    assert caught.value.key == key
    assert known in caught.value.cure


def test_the_words_are_those_of_the_code() -> None:
    def reasons(path: Path, call: str) -> set[str]:
        return set(re.findall(rf'{call}[^"\n]*"([a-z-]+)"', path.read_text()))

    translation = Path(iommu.__path__[0]) / "domains.py"
    found = reasons(translation, "TranslationFault\\(") | reasons(translation, '" if inside else ')
    found |= reasons(translation.with_name("pairs.py"), "TranslationFault\\(")
    door = Path(functions.__path__[0]) / "dma.py"
    found |= reasons(door, "DmaError\\(") | reasons(door, "TranslationFault\\(") | {"not-mapped"}
    plain: dict[str, Any] = dict.fromkeys(found)
    assert set(plain) == set(DMA_REASONS)
    assert set(STATUS_NAMES.values()) | {"UNWRITTEN"} == set(REQUEST_STATUSES)
    assert set(REQUEST_NAMES.values()) | set(viommu_pasid.REQUEST_NAMES.values()) == set(REQUEST_TYPES)
