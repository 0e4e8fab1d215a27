"""The accelerator's accesses with a PASID: capability, descriptors, the ring's own PASID."""

from __future__ import annotations

import pytest

from tests.support.accelerator import COMPLETIONS, PAGE, READ, RING, Rig, descriptor
from tests.unit.test_accelerator import COMPLETIONS as BENCH_COMPLETIONS
from tests.unit.test_accelerator import DST, Bench
from tests.unit.test_accelerator_engine import A, B, outcome, rig_with_buffers
from vdev.errors import ConfigError
from vdev.iommu.tag import Tag
from vdev.wire import pci
from vdev.wire.accelerator import (
    PASID_STOP,
    Access,
    Completion,
    CompletionStatus,
    Control,
    ErrorCode,
    Flag,
    Op,
    Register,
    Status,
)


def test_options_give_the_pasid_capability_its_width_and_rights() -> None:
    function = Bench({"pasid_bits": 8, "pasid_execute": True, "pasid_privileged": True}).function

    assert function.pasid_bits == 8
    assert function.pasid_rights == pci.PASID_EXECUTE | pci.PASID_PRIVILEGED


@pytest.mark.parametrize("right", ["pasid_execute", "pasid_privileged"])
def test_a_right_needs_a_pasid_capability(right: str) -> None:
    with pytest.raises(ConfigError, match=f"{right}: needs a PASID capability"):
        Bench({"pasid_bits": 0, right: True})


def test_kernel_pasid_is_what_the_host_gave_and_outlives_resets() -> None:
    bench = Bench()
    bench.function.on_kernel_pasid(77)

    bench.write(Register.CONTROL, Control.RESET)
    bench.write(Register.KERNEL_PASID, 5)

    assert bench.read(Register.KERNEL_PASID) == 77


def test_taking_pasids_away_in_flight_drops_what_was_under_way_and_refuses_it_then() -> None:
    bench = Bench({"latency": 10})
    at = bench.function.config.find(pci.ExtCapId.PASID, extended=True)
    assert at is not None
    bench.function.config_write(at + pci.PASID_CONTROL, b"\1\0")
    bench.write(Register.RING_SIZE, 2)
    bench.write(Register.COMPLETION_BASE, BENCH_COMPLETIONS, 8)
    bench.write(Register.CONTROL, Control.ENABLE)
    entry = descriptor(Op.FILL, flags=Flag.PASID_VALID, pasid=7, dst=DST, nbytes=8, arg=0x55)
    bench.ram[:64] = entry.pack()
    bench.write(Register.RING_TAIL, 1)
    bench.function.run_slice(0)
    in_flight = len(bench.iommu.in_flight.of(0x100))

    bench.function.config_write(at + pci.PASID_CONTROL, b"\0\0")
    cancelled = len(bench.iommu.in_flight.of(0x100))
    bench.function.run_slice(10_000)

    done = Completion.parse(bench.ram, BENCH_COMPLETIONS)
    assert (in_flight, cancelled) == (1, 0)
    assert (done.status, done.pasid, done.fault_iova) == (CompletionStatus.TRANSLATION_FAULT, 7, DST)
    assert bench.ram[DST : DST + 8] == bytes(8)


def test_a_function_level_reset_disables_pasids() -> None:
    function = Bench().function
    at = function.config.find(pci.ExtCapId.PASID, extended=True)
    assert at is not None
    function.config_write(at + pci.PASID_CONTROL, b"\1\0")

    function.reset()

    assert function.pasid_control == 0


def test_operands_of_a_descriptor_with_a_pasid_are_those_of_its_space() -> None:
    rig = rig_with_buffers()
    space = rig.door.space(255)
    space.map(0x1000, 8 * PAGE, PAGE)
    rig.door.ram[8 * PAGE : 8 * PAGE + 4] = b"here"

    done = rig.do(descriptor(Op.COPY, flags=Flag.PASID_VALID, pasid=255, src=0x1000, dst=0x1800, nbytes=4))

    assert outcome(done) == (CompletionStatus.OK, 4, 0, 0)
    assert rig.door.ram[8 * PAGE + 0x800 : 8 * PAGE + 0x804] == b"here"


def test_a_refused_access_with_a_pasid_says_which_in_its_completion() -> None:
    rig = rig_with_buffers()

    done = rig.do(descriptor(Op.COPY, flags=Flag.PASID_VALID, pasid=9, src=A, dst=B, nbytes=8))

    assert outcome(done) == (CompletionStatus.TRANSLATION_FAULT, 0, A, Access.READ)
    assert done.pasid == 9
    assert rig.read32(Register.FAULTED) == 1


def test_execution_is_requested_with_reads_of_the_source_alone_and_privilege_with_all() -> None:
    rig = rig_with_buffers()
    rig.door.space(9).map(A, 4 * PAGE, PAGE)
    flags = Flag.PASID_VALID | Flag.EXECUTE | Flag.PRIVILEGED

    rig.do(descriptor(Op.COPY, flags=flags, pasid=9, src=A, dst=A + 64, nbytes=8))

    assert rig.door.tags == [Tag(9, False, True), Tag(9, True, True)]


def test_the_ring_is_read_and_completions_are_written_with_ring_pasid() -> None:
    rig = Rig()
    rig.door.space(3).pages.update(rig.door.pages)
    rig.door.pages.clear()
    rig.write32(Register.RING_PASID, 3)
    rig.start()

    done = rig.do(descriptor(Op.NOP, tag=7))

    assert (done.status, done.tag) == (CompletionStatus.OK, 7)
    assert rig.door.tags == [Tag(3)]


def test_a_ring_pasid_that_reaches_no_ring_stops_the_engine() -> None:
    rig = Rig()
    rig.write32(Register.RING_PASID, 3)
    rig.start()
    rig.put(descriptor(Op.NOP))
    rig.run()

    assert (rig.read32(Register.ERROR), rig.read64(Register.ERROR_IOVA)) == (ErrorCode.RING_FETCH, RING)
    assert rig.read32(Register.STATUS) == Status.HALTED


def test_a_ring_pasid_that_may_not_write_stops_the_engine_at_the_completion() -> None:
    rig = Rig()
    rig.door.space(3).map(RING, 0, PAGE, READ)
    rig.write32(Register.RING_PASID, 3)
    rig.start()
    rig.put(descriptor(Op.NOP))
    rig.run()

    assert (rig.read32(Register.ERROR), rig.read64(Register.ERROR_IOVA)) == (ErrorCode.COMPLETION_WRITE, COMPLETIONS)
    assert rig.read32(Register.COMPLETED) == 0


def test_ring_pasid_has_twenty_bits_and_stays_while_running() -> None:
    rig = Rig()
    rig.write32(Register.RING_PASID, PASID_STOP)
    refused = rig.start().read32(Register.ERROR)
    rig.write32(Register.RING_PASID, 0)
    rig.start()
    rig.write32(Register.RING_PASID, 5)

    assert refused == ErrorCode.BAD_CONFIG
    assert rig.read32(Register.STATUS) == Status.RUNNING
    assert rig.read32(Register.RING_PASID) == 0
