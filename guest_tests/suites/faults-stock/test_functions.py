"""Done to whole functions: registers that lie, resets nobody asked for, removal; a backend that stands still."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from looks import KILLED_S, rng_gives, rng_is_silent

from guest_tests.payload import accel, checks_open, guest, vfio
from guest_tests.payload.accel import Operation
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.guest import KernelLog
from guest_tests.payload.lab import PAGE, TARGET_IOVA, Lab, copy
from guest_tests.payload.stock import PCI, Machine, Unit, driver_of, give_back, newest_kernel, rng_current, within

# The other thread is the watch over the test's time; children only read, or write to sysfs.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

DEVICE_STATUS = 0x14  # of a virtio function's common configuration, which is at the start of BAR 0
HANGS_S = 1.0
DONE_S = 20.0
ALL_ONES = b"\xff" * 4
NEEDS_ALL_THINGS = vfio.COMMAND_MEMORY | vfio.COMMAND_BUS_MASTER


def header(bdf: str) -> bytes:
    """Vendor and device, as the bus has them now."""
    with open(PCI / "devices" / bdf / "config", "rb") as config:
        return config.read(4)


def command(bdf: str) -> int:
    """The command register, as the bus has it now."""
    with open(PCI / "devices" / bdf / "config", "rb") as config:
        return int.from_bytes(config.read(6)[4:], "little")


class Child:
    """Something done in a process of its own, for it may not come back."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                work()
                status = 0
            finally:
                os._exit(status)

    def is_over(self) -> bool:
        return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def hangs_in(self, function: str) -> bool:
        """Whether it is in this function of the kernel, and is after a while."""
        return not within(HANGS_S, self.is_over) and function in guest.read_text(
            guest.SYS.parent / f"proc/{self._pid}/stack"
        )

    def ended_well(self) -> bool:
        """Whether it is over in good time, and came to its end."""
        if not within(DONE_S, self.is_over):
            os.kill(self._pid, signal.SIGKILL)
            within(KILLED_S, self.is_over)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]) == 0


@pytest.fixture
def rng(stock: Machine, faults: Faults) -> Iterator[str]:
    """The rng's address; its driver has started it anew afterwards."""
    bdf = stock.bdf("rng0")
    yield bdf
    faults.clear()
    give_back(bdf)
    assert rng_gives()


@contextmanager
def stuck(faults: Faults, value: int) -> Iterator[None]:
    with faults.injected("register", "stuck", match={"function": "rng0", "register": DEVICE_STATUS}, value=value):
        yield


def test_what_vfio_maps_of_a_bar_reads_as_it_is_stuck(lab: Lab, faults: Faults) -> None:
    registers = lab.engine.registers
    with faults.injected("register", "stuck", match={"function": "accel0", "register": accel.ID}, value=0xDEADBEEF):
        read = registers.read32(accel.ID)

    assert (read, registers.read32(accel.ID)) == (0xDEADBEEF, accel.ID_VALUE)


def test_a_status_that_is_never_0_hangs_whoever_resets_the_device(rng: str, faults: Faults) -> None:
    with stuck(faults, 1):
        unbinding = Child(lambda: guest.unbind_driver(rng))
        hung = unbinding.hangs_in("vp_reset")

    assert hung
    assert unbinding.ended_well()
    assert driver_of(rng) is None


def test_a_status_that_is_always_0_is_a_device_that_refuses_features(
    rng: str, faults: Faults, kernel_log: KernelLog
) -> None:
    mark = kernel_log.mark()
    with stuck(faults, 0):
        assert Child(lambda: give_back(rng)).ended_well()
        current = rng_current()

    assert current == "none"
    assert kernel_log.find("virtio_rng", "device refuses features: 0", since=mark)


def test_after_a_reset_in_mid_dma_vfio_shows_a_function_that_is_off(lab: Lab, faults: Faults) -> None:
    page, registers = vfio.Buffer(PAGE), lab.engine.registers
    fill = Operation(accel.FILL, dst=TARGET_IOVA, nbytes=64, arg=0x1111111111111111)
    match = {"endpoint": "accel0", "access": "write", "iova": hex(TARGET_IOVA)}
    with lab.container.mapped(TARGET_IOVA, page):
        faults.add("dma", "flr", match=match, times=1)
        index = lab.engine.submit(fill)
        assert within(DONE_S, lambda: not registers.read32(accel.STATUS) & accel.RUNNING)
        left = lab.engine.status_of(index), command(lab.bdf) & NEEDS_ALL_THINGS
        lab.device.set_command(on=NEEDS_ALL_THINGS)
        lab.engine.start()
        lab.run_ok(fill)

    assert left == (accel.PENDING, 0)


def test_after_a_reset_the_rng_gives_nothing_until_its_driver_is_bound_again(
    rng: str, faults: Faults, unit: Unit
) -> None:
    faults.add("timer", "flr", function="rng0")
    assert within(DONE_S, lambda: not unit.function("rng0")["driver-ok"])

    silent = rng_is_silent()
    give_back(rng)

    assert silent
    assert rng_gives()


def test_a_removed_rng_gives_nothing_and_whoever_unbinds_it_hangs_until_it_is_back(rng: str, faults: Faults) -> None:
    faults.add("timer", "remove", function="rng0")
    assert within(DONE_S, lambda: header(rng) == ALL_ONES)
    silent = rng_is_silent()
    unbinding = Child(lambda: guest.unbind_driver(rng))
    hung = unbinding.hangs_in("vp_reset")
    faults.clear()

    assert (silent, hung) == (True, True)
    assert unbinding.ended_well()
    assert header(rng) != ALL_ONES


def test_of_a_removed_function_vfio_shows_all_ones_and_maps_as_ever(lab: Lab, faults: Faults) -> None:
    page, registers = vfio.Buffer(PAGE), lab.engine.registers
    faults.add("timer", "remove", function="accel0")
    assert within(DONE_S, lambda: header(lab.bdf) == ALL_ONES)
    with lab.container.mapped(TARGET_IOVA, page):
        read = registers.read32(accel.ID)
    faults.clear()
    lab.device.set_command(on=NEEDS_ALL_THINGS)
    lab.engine.start()

    assert read == 0xFFFF_FFFF
    with lab.both_mapped():
        lab.run_ok(copy())


def test_older_kernels_wait_with_closing_a_removed_function_until_it_is_back(
    stock: Machine, faults: Faults, kernel_log: KernelLog
) -> None:
    lab, mark = Lab(kernel_log), kernel_log.mark()
    checks_open.driver_bound(lab)
    checks_open.own_group(lab)
    checks_open.opens_through_vfio(lab)
    faults.add("timer", "remove", function="accel0")
    assert within(DONE_S, lambda: header(lab.bdf) == ALL_ONES)

    closing = threading.Thread(target=lab.close)
    closing.start()
    words = "unable to FLR" if newest_kernel() else "timed out waiting for pending transaction"
    told = kernel_log.wait_for(lab.bdf, words, since=mark, timeout_s=DONE_S)
    closing.join(HANGS_S)
    hung = closing.is_alive()
    faults.clear()
    closing.join(DONE_S)

    assert told is not None
    assert (hung, closing.is_alive()) == (not newest_kernel(), False)


def test_the_driver_says_that_the_configuration_changed_and_goes_on(
    lab: Lab, faults: Faults, kernel_log: KernelLog, stock: Machine
) -> None:
    mark = kernel_log.mark()
    faults.add("timer", "config-change")

    assert kernel_log.wait_for("virtio_iommu", "config changed", since=mark) is not None
    with lab.both_mapped():
        lab.run_ok(copy())


def test_while_the_backend_stands_still_the_guest_waits_and_then_all_is_well(lab: Lab, faults: Faults) -> None:
    content = lab.randomise_source()
    rule = faults.add("request", "stall", match={"type": "MAP", "endpoint": "accel0"}, times=1, seconds=1)
    with lab.both_mapped():
        lab.run_ok(copy())

    assert rule.fired == 1
    assert lab.target.memory == content
