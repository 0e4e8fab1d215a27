"""Fields for races in process, one after the other: granules, latencies and ways to reset a unit in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from guest_tests.payload.direct import Accel, Viommu
from guest_tests.payload.race import Field, Scale, Tally, play
from tests.support.race_machine import RaceMachine
from vdev.config import Config, EndpointConfig, UnitConfig

NROUNDS = 250  # on one field; a failure is repeated from the first of them on
UNIT = "iommu0"
SLICE_NBYTES, SLICE_GRANULES = 256 << 10, 256  # what an engine moves at once, whichever is less


@dataclass(frozen=True, slots=True)
class Variant:
    """What the unit and its accelerators are like."""

    granule: int
    latency_us: int
    scales: tuple[Scale, ...]


VARIANTS = (
    Variant(1, 100, (Scale(1, 300),)),
    Variant(1, 1, (Scale(1, 300), Scale(1, 3))),
    Variant(64, 1_000_000, (Scale(64, 100),)),
    Variant(4096, 1000, (*[Scale(4096, 3)] * 24, Scale(4096, 50))),
)


def make_field(variant: Variant, *, revalidates: bool = False) -> Field:
    """A new machine of that kind, its engines running."""
    config = Config(
        units=(UnitConfig(name=UNIT, granule=variant.granule),),
        endpoints=tuple(
            EndpointConfig(
                name=f"accel{number}", unit=UNIT, bdf=f"0{number + 1}:00.0", options={"latency": variant.latency_us}
            )
            for number in range(3)
        ),
    )
    machine = RaceMachine(config, revalidates=revalidates)
    viommu = Viommu.open(machine.functions[UNIT], machine.pool)
    first, second, third = (Accel.open(machine.functions[f"accel{number}"], machine.pool) for number in range(3))
    freezer = machine.vdev.units[UNIT].freezer
    return Field(
        viommu,
        (first, second, third),
        machine,
        machine.pool,
        variant.latency_us * 1000,
        variant.latency_us * 1000 + 1,
        variant.scales,
        min(SLICE_NBYTES, SLICE_GRANULES * variant.granule),
        revalidates,
        freeze=lambda frozen: freezer.set("the machine is stopped", frozen),
        resets=_resets(machine, viommu),
    )


def _resets(machine: RaceMachine, viommu: Viommu) -> dict[str, Callable[[], None]]:
    """How else than by status 0 the unit is reset."""
    unit, function = machine.vdev.units[UNIT], machine.functions[UNIT].device

    def system() -> None:
        function.reset()
        viommu.function.awake()

    return {"flr": lambda: viommu.function.flr(recovery_s=0), "system": system, "command": unit.device.host_reset}


def play_all(name: str, seed: int, first: int, stop: int, *, revalidates: bool = False) -> Tally:
    """Races [first, stop) of `name`. RaceError says how to repeat the one that is lost."""
    tally = Tally()
    for number in range(first, stop):
        if number == first or not number % NROUNDS:
            variant = VARIANTS[number // NROUNDS % len(VARIANTS)]
            field = make_field(variant, revalidates=revalidates)
        play(field, seed, name, number, tally)
    return tally
