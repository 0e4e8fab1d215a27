"""Accesses that are translated wrongly, fail, come late or move wrong bytes: what VFIO's user and virtio_rng get."""

from __future__ import annotations

import contextlib

import pytest
from looks import rng_gives, rng_is_silent

from guest_tests.payload import accel, checks_hwrng, vfio
from guest_tests.payload.accel import Operation
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.guest import KernelLog, endpoint_id
from guest_tests.payload.lab import PAGE, TARGET_IOVA, Lab
from guest_tests.payload.stock import Machine, Unit, give_back, rng_current

# The other thread is the watch over the test's time; the child only reads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.usefixtures("talkative"),
]

FILL = Operation(accel.FILL, dst=TARGET_IOVA, nbytes=PAGE, arg=0x1111111111111111)
AT_TARGET = {"endpoint": "accel0", "iova": hex(TARGET_IOVA)}
NOBODY = 4_000_000_000  # a domain


@pytest.mark.parametrize(
    ("do", "parameters", "words", "offset"),
    [
        ("unmapped", {}, "page fault", 0),
        ("no-permission", {}, "page fault", 0),
        ("wrong-domain", {"domain": NOBODY}, "domain fault", 0),
        ("aperture", {"end": TARGET_IOVA + 63}, "page fault", 64),
    ],
)
def test_a_refused_translation_is_told_as_any_and_vfio_goes_on(
    lab: Lab,
    faults: Faults,
    kernel_log: KernelLog,
    do: str,
    parameters: dict[str, int],
    words: str,
    offset: int,
) -> None:
    page, mark = vfio.Buffer(PAGE), kernel_log.mark()
    with lab.container.mapped(TARGET_IOVA, page):
        with faults.injected("translation", do, match=AT_TARGET, **parameters):
            refused = lab.engine.run(FILL)
        lab.run_ok(FILL)

    line = f"{words} from EP {endpoint_id(lab.bdf)} at {TARGET_IOVA + offset:#x} [W]"
    assert (refused.status, refused.fault_iova) == (accel.TRANSLATION_FAULT, TARGET_IOVA + offset)
    assert kernel_log.wait_for("virtio_iommu", line, since=mark) is not None


def test_an_access_in_the_wrong_domain_lands_in_anothers_page_and_nobody_is_told(
    stock: Machine, lab: Lab, faults: Faults, unit: Unit, kernel_log: KernelLog
) -> None:
    mine, others, mark = vfio.Buffer(PAGE), vfio.Buffer(PAGE), kernel_log.mark()
    bdf = stock.bdf("accel1")
    with (
        lab.container.mapped(TARGET_IOVA, mine),
        contextlib.closing(vfio.Container(lab.accelerators[bdf])) as container,
        container.mapped(TARGET_IOVA, others),
    ):
        other = unit.domain_of(bdf)
        assert other is not None
        with faults.injected("translation", "wrong-domain", match=AT_TARGET, domain=other.id):
            lab.run_ok(FILL)

    assert (set(mine.memory), set(others.memory)) == ({0}, {0x11})
    assert kernel_log.find("", since=mark) == []


@pytest.mark.parametrize(
    ("do", "status"),
    [("unsupported-request", accel.UNSUPPORTED_REQUEST), ("completer-abort", accel.COMPLETER_ABORT)],
)
def test_an_access_that_ends_with_an_error_is_the_devices_to_tell(
    lab: Lab, faults: Faults, kernel_log: KernelLog, do: str, status: int
) -> None:
    page, mark = vfio.Buffer(PAGE), kernel_log.mark()
    with lab.container.mapped(TARGET_IOVA, page):
        with faults.injected("dma", do, match=AT_TARGET):
            failed = lab.engine.run(FILL)
        lab.run_ok(FILL)

    assert failed.status == status
    assert kernel_log.find("", since=mark) == []


def test_a_partial_access_leaves_its_beginning_and_a_fault_where_it_broke_off(
    lab: Lab, faults: Faults, kernel_log: KernelLog
) -> None:
    page, mark = vfio.Buffer(PAGE), kernel_log.mark()
    with lab.container.mapped(TARGET_IOVA, page):
        with faults.injected("dma", "partial", match=AT_TARGET, nbytes=100):
            failed = lab.engine.run(FILL)
        bytes_moved = bytes(page.memory)

    assert (failed.status, failed.fault_iova) == (accel.TRANSLATION_FAULT, TARGET_IOVA + 100)
    assert bytes_moved == bytes([0x11] * 100).ljust(PAGE, b"\0")
    assert kernel_log.wait_for("page fault", f"at {TARGET_IOVA + 100:#x} [W]", since=mark) is not None


def test_wrong_bytes_go_unnoticed(lab: Lab, faults: Faults, kernel_log: KernelLog) -> None:
    page, mark = vfio.Buffer(PAGE), kernel_log.mark()
    with (
        lab.container.mapped(TARGET_IOVA, page),
        faults.injected("dma", "corrupt", match=AT_TARGET, offset=8, nbytes=2),
    ):
        lab.run_ok(FILL)

    assert bytes(page.memory[:12]) == bytes([0x11] * 8 + [0xA5] * 2 + [0x11] * 2)
    assert kernel_log.find("", since=mark) == []


def test_bytes_that_are_not_random_are_drawn_as_random_ones(faults: Faults, kernel_log: KernelLog) -> None:
    mark = kernel_log.mark()
    with faults.injected("dma", "corrupt", match={"endpoint": "rng0"}):
        checks_hwrng.draw()  # what was asked for before
        drawn = checks_hwrng.draw()

    assert set(drawn) == {0xA5}
    assert kernel_log.find("", since=mark) == []


def test_a_buffer_that_comes_late_keeps_the_reader_waiting(faults: Faults) -> None:
    with faults.injected("dma", "delay", match={"endpoint": "rng0"}, times=1, seconds=0.3) as rule:
        assert rng_gives()
        assert rule.fired == 1


@pytest.mark.parametrize(
    ("at", "do", "parameters"),
    [
        ("dma", "unsupported-request", {}),
        ("dma", "partial", {"nbytes": 16}),
        ("translation", "unmapped", {}),
    ],
)
def test_the_rng_whose_access_failed_gives_nothing_until_its_driver_is_bound_again(
    stock: Machine, faults: Faults, unit: Unit, at: str, do: str, parameters: dict[str, int]
) -> None:
    with faults.injected(at, do, match={"endpoint": "rng0"}, times=1, **parameters):
        silent = rng_is_silent()
    needs_reset, current = unit.function("rng0")["needs-reset"], rng_current()
    give_back(stock.bdf("rng0"))

    # virtio_rng has no handler for a configuration change, and virtio does nothing about DEVICE_NEEDS_RESET by itself.
    assert (silent, needs_reset, current) == (True, True, "virtio_rng.0")
    assert rng_gives()
