"""The monitor's part of `make bench` at its smallest, with a real QEMU: every row is there, both ways."""

from __future__ import annotations

import pytest

from benchmarks.bridge.loads import LOADS, SMALLEST, WAYS, Load
from benchmarks.bridge.rounds import measure
from vdev.parts.qemu import find_qemu

CROWD = {"status", "commands", "stop"}
ROWS = {"alone": {"status", "commands", "schema"}, "crowd": CROWD, "flat-out": CROWD}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def test_every_row_of_a_load_is_measured(load: Load, way: str) -> None:
    sample = measure(find_qemu(None, lambda line: None), load, way, SMALLEST.seconds[load.name], 1)

    assert sample.problem == ""
    assert {name.partition("-")[0] for name in sample.values} == ROWS[load.name]
    assert all(value > 0 for value in sample.values.values())
    assert sample.facts["commands"].keys() == ROWS[load.name]
    assert (sample.facts["malformed_per_second"] > 0) == (load.clients > 1)
    assert (sample.facts["events"] > 0) == (load.clients > 1)
