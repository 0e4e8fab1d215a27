from __future__ import annotations
import pytest, time
from guest_tests.payload.race import *
from guest_tests.payload.direct import Viommu, Accel
from tests.support.race_machine import RaceMachine
from vdev.config import Config, UnitConfig, EndpointConfig

def make(granule, scales, latency_us=0):
    opts = {"latency": latency_us} if latency_us else {}
    config = Config(units=(UnitConfig(name="iommu0", granule=granule),), endpoints=tuple(
        EndpointConfig(name=f"accel{n}", unit="iommu0", bdf=f"0{n+1}:00.0", options=opts) for n in range(3)))
    machine = RaceMachine(config)
    viommu = Viommu.open(machine.functions["iommu0"], machine.pool)
    accels = tuple(Accel.open(machine.functions[f"accel{n}"], machine.pool) for n in range(3))
    unit = machine.vdev.units["iommu0"]
    return Field(viommu, accels, machine, machine.pool, latency_us*1000, scales, min(256*1024, 256*granule),
        freeze=lambda on: unit.freezer.set("test", on))

@pytest.mark.parametrize("name", RACES)
def test_x(name):
    field = make(1, (Scale(1, 300),))
    tally = Tally()
    t = time.monotonic()
    for n in range(300):
        play(field, 1, name, n, tally)
    print(name, tally, (time.monotonic()-t)/300*1e6, "us")
