"""What is done to a device as a whole: it vanishes, is reset, has an error, says that something changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from moving import COPY, PAGE, TARGET, WRITING, Mover
from repeat import OCCURRENCES, assert_repeats, run_by_chance

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import AcceleratorTimeout, Operation
from guest_tests.payload.direct import DeviceBroken, NoAnswer, Probe, Viommu
from guest_tests.payload.direct.accel import RING_IOVA
from guest_tests.payload.direct.wait import until
from guest_tests.payload.direct.wire import TAIL_NBYTES
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.fixtures import OpenViommu
from guest_tests.payload.host import Host

EP = 0x100
GONE = 0xFFFF_FFFF
SOON_S = 5.0
MIB = 1 << 20
EXPRESS, AER = 0x10, 0x01  # capabilities
DEVICE_STATUS, UNCORRECTABLE, CORRECTABLE = 0x0A, 0x04, 0x10
PROBES: dict[str, Any] = {"match": {"type": "PROBE"}, "times": 1000}


def probe(viommu: Viommu) -> None:
    """A request, of any kind."""
    viommu.ask(Probe(endpoint=EP), viommu.config.probe_size + TAIL_NBYTES)


def each_probe(viommu: Viommu, host: Host, look: Callable[[], Any]) -> list[Any]:
    """What there is to see after each of OCCURRENCES requests."""
    found = []
    for _ in range(OCCURRENCES):
        probe(viommu)
        # What is done between two slices has been done.
        assert until(lambda: not host.control("query-fault-plan")["waiting"], SOON_S)
        found.append(look())
    return found


def restarted(mover: Mover) -> Mover:
    """As a driver does that found its function reset: on again, the engine started anew."""
    mover.accel.function.awake()
    mover.accel.start(RING_IOVA)
    return mover


# --- surprise removal


def test_a_removed_function_is_all_ones_and_comes_back_as_after_power_on(mover: Mover, faults: Faults) -> None:
    function, registers = mover.accel.function, mover.accel.registers
    bar = function.read_config(0x10, 4)
    mover.accel.devmem.write64(0, 0x1122)

    rule = faults.add("timer", "remove", function="accel0")
    assert until(lambda: registers.read32(engine.ID) == GONE, SOON_S)
    gone = function.read_config(0, 4), function.command, mover.accel.devmem.read64(0)
    undone = faults.clear()["undone"]

    assert gone == (GONE, 0xFFFF, GONE << 32 | GONE)
    assert undone == ["accel0 is back as after power-on"]
    assert (function.read_config(0, 4), function.command & 6) == (0x7664_1234, 0)
    assert function.read_config(0x10, 4) == bar
    assert restarted(mover).works()
    assert mover.accel.devmem.read64(0) == 0
    assert rule.log()[0]["do"] == "remove"


def test_nothing_lands_after_a_removal_in_mid_work_and_the_library_gives_up(mover: Mover, faults: Faults) -> None:
    faults.add("dma", "delay", match=WRITING, seconds=0.2)
    index = mover.submit()
    mover.settled(index)

    faults.add("timer", "remove", function="accel0")
    assert until(lambda: mover.accel.registers.read32(engine.ID) == GONE, SOON_S)
    mover.viommu.unmap(domain=mover.accel.domain, iova=TARGET, nbytes=PAGE)  # it waits for nobody
    with pytest.raises(AcceleratorTimeout):
        mover.accel.do(COPY, timeout_s=0.4)

    assert not any(mover.target.read())
    faults.clear()
    mover.viommu.map_buffer(mover.accel.domain, TARGET, mover.target)
    assert restarted(mover).works()


@pytest.mark.machines("vfio-user")  # behind vhost-user the unit's function is QEMU's
def test_a_removed_unit_answers_nothing_while_its_tables_go_on_translating(mover: Mover, faults: Faults) -> None:
    viommu = mover.viommu

    faults.add("timer", "remove", function="iommu0")
    assert until(lambda: viommu.function.read_config(0, 4) == GONE, SOON_S)
    with pytest.raises((NoAnswer, DeviceBroken)):
        probe(viommu)
    done = mover.copy()
    copied = mover.target.read()
    faults.clear()

    assert (done.status, copied) == (engine.OK, mover.source.read())
    viommu.function.awake()
    viommu.start()
    mover.accel.start_in(viommu)
    mover.map()
    assert mover.works()


@pytest.mark.machines("vhost-user")
def test_a_unit_that_is_qemu_s_function_cannot_be_removed(faults: Faults) -> None:
    with pytest.raises(Exception, match="vhost-user, where that is QEMU's"):
        faults.add("timer", "remove", function="iommu0")


# --- function-level reset


def test_a_function_level_reset_in_mid_dma_lets_nothing_land(mover: Mover, dma: Any, faults: Faults) -> None:
    long = dma.alloc(2 * MIB)
    for number in range(16):  # the same memory again and again: an operation takes long
        mover.viommu.map_buffer(mover.accel.domain, (64 + 2 * number) * MIB, long)
    third_slice = {"endpoint": "accel0", "iova": f"{64 * MIB + 2 * (256 << 10):#x}"}
    rule = faults.add("dma", "flr", match=third_slice, function="accel0")
    work = [Operation(engine.FILL, dst=64 * MIB, nbytes=32 * MIB, arg=number) for number in range(1, 20)]

    last = mover.accel.engine.submit(*work)
    assert until(lambda: rule.fired == 1 and not mover.accel.is_running, SOON_S)
    long.fill(0)
    mover.host.control("query-status")

    assert not any(long.read())
    assert mover.accel.engine.status_of(last) == engine.PENDING
    assert mover.accel.registers.read32(engine.RING_SIZE) == 0
    assert [line.split(":")[0] for line in faults.clear()["terminal"]] == ["flr"]
    assert restarted(mover).works()


# --- errors


def errors_of(mover: Mover) -> tuple[int, int, int]:
    """Uncorrectable and correctable status, Device Status."""
    function = mover.accel.function
    aer, express = function.capability(AER, extended=True).offset, function.capability(EXPRESS).offset
    return (
        function.read_config(aer + UNCORRECTABLE, 4),
        function.read_config(aer + CORRECTABLE, 4),
        function.read_config(express + DEVICE_STATUS, 2),
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("unsupported-request", (1 << 20, 0, 0b1010)),
        ("completer-abort", (1 << 15, 0, 0b0010)),
        ("receiver", (0, 1, 0b0001)),
    ],
)
def test_an_error_is_in_the_function_s_capability_until_it_is_cleared(
    mover: Mover, faults: Faults, error: str, expected: tuple[int, int, int]
) -> None:
    faults.add("timer", "aer", function="accel0", error=error, root=False)

    assert until(lambda: errors_of(mover) == expected, SOON_S), errors_of(mover)
    undone = faults.clear()["undone"]

    assert undone == [f"accel0 has these errors no longer: {error}"]
    assert errors_of(mover) == (0, 0, 0)


def test_a_driver_clears_an_error_by_writing_its_bit(mover: Mover, faults: Faults) -> None:
    at = mover.accel.function.capability(AER, extended=True).offset + UNCORRECTABLE
    faults.add("timer", "aer", function="accel0", error="poisoned-tlp", root=False)
    assert until(lambda: errors_of(mover)[0] == 1 << 12, SOON_S)

    mover.accel.function.write_config(at, 4, 1 << 12)

    assert errors_of(mover)[0] == 0


# --- units


@pytest.fixture
def interrupting(open_viommu: OpenViommu) -> Viommu:
    """The unit with interrupts, quiet. Behind vhost-user it has one vector for all, so answers are not to use it."""
    viommu = open_viommu(msix=True)
    viommu.requests.ring.want_interrupts(False)
    for vector in viommu.vectors:
        vector.settle()
    return viommu


def test_a_configuration_change_that_is_none_is_told_and_nothing_has_changed(
    interrupting: Viommu, faults: Faults
) -> None:
    before = interrupting.config

    faults.add("timer", "config-change")

    assert interrupting.vectors[0].wait(SOON_S)
    assert interrupting.read_config() == before
    probe(interrupting)


# --- the same seed


def test_the_same_seed_resets_the_function_at_the_same_requests(mover: Mover, faults: Faults, host: Host) -> None:
    def look() -> bool:
        was_reset = not mover.accel.is_running
        if was_reset:
            restarted(mover)
        return was_reset

    def traffic() -> list[Any]:
        return each_probe(mover.viommu, host, look)

    assert_repeats(faults, traffic, "request", "flr", **PROBES, with_={"function": "accel0"})
    assert mover.works()


def test_the_same_seed_has_the_same_errors_at_the_same_requests(mover: Mover, faults: Faults, host: Host) -> None:
    at = mover.accel.function.capability(AER, extended=True).offset + UNCORRECTABLE

    def look() -> int:
        found = errors_of(mover)[0]
        mover.accel.function.write_config(at, 4, found)
        return found

    def traffic() -> list[Any]:
        return each_probe(mover.viommu, host, look)

    assert_repeats(faults, traffic, "request", "aer", **PROBES, with_={"function": "accel0", "root": False})


def test_the_same_seed_removes_the_function_at_the_same_request(mover: Mover, faults: Faults, host: Host) -> None:
    def traffic() -> list[Any]:
        return each_probe(mover.viommu, host, lambda: mover.accel.registers.read32(engine.ID) == GONE)

    def run(seed: int) -> Any:
        rule = {"at": "request", "do": "remove", "id": "vanish", **PROBES, "with_": {"function": "accel0"}}
        found = run_by_chance(faults, seed, traffic, rule)
        faults.clear()
        return found

    first, again, other = run(1), run(1), run(19)  # the third, the third, the seventh

    assert first == again
    assert first.effects != other.effects
    assert restarted(mover).works()


def test_the_same_seed_tells_of_changes_at_the_same_requests(interrupting: Viommu, faults: Faults, host: Host) -> None:
    vector = interrupting.vectors[0]

    def traffic() -> list[Any]:
        return each_probe(interrupting, host, lambda: vector.wait(0.05))

    assert_repeats(faults, traffic, "request", "config-change", **PROBES)


@pytest.mark.machines("vfio-user")  # behind vhost-user the bit is QEMU's
def test_the_same_seed_needs_a_reset_after_the_same_requests(viommu: Viommu, faults: Faults, host: Host) -> None:
    def look() -> bool:
        is_broken = viommu.is_broken
        if is_broken:
            viommu.start()
        return is_broken

    assert_repeats(faults, lambda: each_probe(viommu, host, look), "request", "needs-reset", **PROBES)
