"""DMA of a machine whose processor never runs: what holds before the first instruction of the firmware.

As tests/booted/test_firmware_dma.py, without any program: QEMU runs no CPU under qtest, the test makes the accesses.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.qtest.machine import qtest_machine
from tests.support.firmware_dma import ERROR_INTERRUPT, INTERRUPT, PROGRAMS, Attacker, Outcome, differing
from tests.support.serve_process import ServeProcess, serving
from vdev.config import EndpointConfig, Isolation, UnitConfig
from vdev.qemu.machine import vfio_user_function

ENDPOINT = "00:11.0"


def _devices(served: ServeProcess) -> list[str]:
    config = served.config
    functions: list[UnitConfig | EndpointConfig] = [*config.units, *config.endpoints]
    return [word for item in functions for word in ("-device", vfio_user_function(item, str(served.directory)))]


def _attempt(isolation: Isolation, directory: Path) -> tuple[list[Outcome], set[int], list[tuple[str, int]]]:
    """How the engine ended, the pages that changed, the faults."""
    config = {
        "vm": {"identity": "unchecked", "isolation": isolation},
        "units": [{"name": "iommu0"}],
        "endpoints": [{"name": "accel0", "bdf": ENDPOINT}],
    }
    with (
        serving(json.dumps(config), directory / "vdev") as served,
        qtest_machine(directory, _devices(served)) as machine,
    ):
        attacker = Attacker(machine.function(ENDPOINT), machine)
        attacker.prepare(PROGRAMS, 1)
        before = machine.ram.digests()
        outcomes = [attacker.run(program) for program in PROGRAMS]
        for _ in range(2):  # QEMU has been round its main loop then, and has done with interrupts
            machine.read(INTERRUPT, 4)
        faults = [(fault["reason"], fault["iova"]) for fault in served.events("FaultRaised")]
        return outcomes, set(differing(before, machine.ram.digests())), faults


def test_under_required_not_a_byte_changes(tmp_path: Path) -> None:
    outcomes, changed, faults = _attempt("required", tmp_path)

    assert outcomes == [Outcome.no_ring(program) for program in PROGRAMS]
    assert changed == set()
    assert faults == [("no-domain", iova) for program in PROGRAMS for iova in (program.ring, ERROR_INTERRUPT)]


def test_under_preferred_it_lands(tmp_path: Path) -> None:
    outcomes, changed, faults = _attempt("preferred", tmp_path)

    assert outcomes == [Outcome.done(len(program.operations)) for program in PROGRAMS]
    assert changed == set().union(*(program.pages for program in PROGRAMS))
    assert faults == []
