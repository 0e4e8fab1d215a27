"""Requests that are refused, answered late, wrongly or in another order: what virtio_iommu makes of it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import replace

import pytest
from looks import map_and_unmap, rng_gives, rng_is_silent, waits_with_interrupts_off

from guest_tests.payload import accel, guest, vfio
from guest_tests.payload.accel import Operation
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.guest import KernelLog
from guest_tests.payload.host import Host
from guest_tests.payload.lab import MIB, PAGE, TARGET_IOVA, Lab, copy
from guest_tests.payload.stock import PCI, Machine, Unit, driver_of, give_back, group_of, newest_kernel
from guest_tests.payload.stock_fixtures import opened_lab
from guest_tests.payload.worker import Worker

# The other thread is the watch over the test's time; the child only reads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

ERRNOS = {
    "IOERR": errno.EIO,
    "UNSUPP": errno.ENOSYS,
    "DEVERR": errno.EIO,
    "INVAL": errno.EINVAL,
    "RANGE": errno.ERANGE,
    "NOENT": errno.ENOENT,
    "FAULT": errno.EFAULT,
    "NOMEM": errno.ENOMEM,
}
BOTH = vfio.READ | vfio.WRITE
OWN = (0x50000000, 0x500FFFFF, "reserved")  # accel0's, from machine.yaml
MSI = (0xFEE00000, 0xFEEFFFFF, "msi")
LINUX_MSI = (0x08000000, 0x080FFFFF, "msi")  # what Linux takes where it knows of no MSI region
FILL = Operation(accel.FILL, dst=TARGET_IOVA, nbytes=64, arg=0x1111111111111111)
OF_ACCEL = {"endpoint": "accel0"}


def of(kind: str) -> dict[str, str]:
    """What a rule about accel0's requests of one type matches."""
    return {"type": kind, **OF_ACCEL}


def reserved(machine: Machine) -> list[tuple[int, int, str]] | None:
    """What Linux will not map for accel0; None without a group."""
    group = group_of(machine.bdf("accel0"))
    return None if group is None else list(group.reserved)


def probe_anew(machine: Machine) -> None:
    """Take accel0 from the bus and have it found again by vfio-pci."""
    bdf = machine.bdf("accel0")
    guest.unbind_driver(bdf)
    (PCI / "devices" / bdf / "remove").write_text("1")
    (PCI / "rescan").write_text("1")
    guest.bind_driver(bdf, "vfio-pci")


@pytest.fixture
def probed_after(stock: Machine, faults: Faults) -> Iterator[None]:
    """Whatever Linux believes of accel0 in the test, it is probed as it is afterwards."""
    yield
    faults.clear()
    probe_anew(stock)
    assert reserved(stock) == [OWN, MSI]


def copies(log: KernelLog) -> bool:
    """Whether the accelerator can be opened, and a copy of everything arrives."""
    with opened_lab(log) as lab, lab.both_mapped():
        content = lab.randomise_source()
        lab.run_ok(copy())
        return lab.target.memory == content


def test_a_refused_map_is_success_to_vfio_and_the_access_faults(lab: Lab, faults: Faults) -> None:
    page = vfio.Buffer(PAGE)
    for status in ERRNOS:
        with faults.injected("request", "status", match=of("MAP"), status=status) as rule:
            lab.container.map(TARGET_IOVA, page, BOTH)
            assert rule.fired == 1
        assert lab.engine.run(FILL).status == accel.TRANSLATION_FAULT
        lab.container.unmap(TARGET_IOVA, PAGE)


def test_a_map_that_is_carried_out_although_refused_works(lab: Lab, faults: Faults) -> None:
    page = vfio.Buffer(PAGE)
    with faults.injected("request", "status", match=of("MAP"), status="IOERR", perform=True):
        lab.container.map(TARGET_IOVA, page, BOTH)

    lab.run_ok(FILL)
    lab.container.unmap(TARGET_IOVA, PAGE)


def test_after_a_refused_unmap_the_device_reaches_what_vfio_has_given_back(
    lab: Lab, faults: Faults, unit: Unit
) -> None:
    old, new = vfio.Buffer(PAGE), vfio.Buffer(PAGE)
    before = unit.refused().get("INVAL", 0)
    lab.container.map(TARGET_IOVA, old, BOTH)
    with faults.injected("request", "status", match=of("UNMAP"), status="NOMEM") as rule:
        lab.container.unmap(TARGET_IOVA, PAGE)
        assert rule.fired == 1

    lab.run_ok(FILL)  # nothing is mapped, as far as Linux knows
    lab.container.map(TARGET_IOVA, new, BOTH)  # the device refuses that: there is the old mapping
    lab.run_ok(replace(FILL, arg=0x2222222222222222))

    assert (set(old.memory[:64]), set(new.memory[:64])) == ({0x22}, {0})
    assert unit.refused()["INVAL"] == before + 1
    lab.container.unmap(TARGET_IOVA, PAGE)
    assert lab.engine.run(FILL).status == accel.TRANSLATION_FAULT


def test_a_refused_attach_is_an_errno_of_vfio_and_the_next_one_works(faults: Faults, kernel_log: KernelLog) -> None:
    seen = {}
    for status in ERRNOS:
        with faults.injected("request", "status", match=of("ATTACH"), times=1, status=status):
            try:
                copies(kernel_log)
            except OSError as error:
                seen[status] = error.errno

    assert seen == ERRNOS
    assert copies(kernel_log)


def test_older_kernels_warn_when_the_way_back_to_the_default_domain_is_refused_too(
    faults: Faults, kernel_log: KernelLog, unit: Unit, stock: Machine
) -> None:
    mark = kernel_log.mark()
    with (
        faults.injected("request", "status", match=of("ATTACH"), status="NOMEM"),
        contextlib.suppress(OSError),
    ):
        copies(kernel_log)

    warned = kernel_log.find("WARNING:", "__iommu_group_set_domain_internal", since=mark)
    assert bool(warned) is not newest_kernel()
    assert copies(kernel_log)


def test_a_refused_probe_leaves_the_endpoint_without_a_group_and_vfio_without_the_endpoint(
    stock: Machine, faults: Faults, kernel_log: KernelLog, probed_after: None
) -> None:
    for status in ("INVAL", "NOMEM"):
        mark = kernel_log.mark()
        with faults.injected("request", "status", match=of("PROBE"), status=status) as rule:
            probe_anew(stock)
            assert rule.fired == 1

        assert (reserved(stock), driver_of(stock.bdf("accel0"))) == (None, None)
        assert kernel_log.find("probe with driver vfio-pci failed with error -22", since=mark)


def test_a_refused_detach_is_a_warning_and_the_endpoint_is_gone_as_far_as_linux_knows(
    stock: Machine, faults: Faults, kernel_log: KernelLog, unit: Unit, probed_after: None
) -> None:
    probe_anew(stock)
    bdf, mark = stock.bdf("accel0"), kernel_log.mark()

    with faults.injected("request", "status", match=of("DETACH"), status="NOENT"):
        (PCI / "devices" / bdf / "remove").write_text("1")
        left = unit.domain_of(bdf)
    (PCI / "rescan").write_text("1")

    assert kernel_log.find("WARNING:", "viommu_release_device", since=mark)
    assert left is not None


def test_while_an_answer_is_held_a_processor_spins_with_interrupts_off(lab: Lab, host: Host, faults: Faults) -> None:
    worker = Worker(map_and_unmap(lab))
    with worker.working():
        spun = waits_with_interrupts_off(host, at="request", do="hold", match=of("MAP"), times=1)
        goes_on = worker.goes_on()

    assert (spun, goes_on) == (True, True)


def test_a_dropped_answer_hangs_linux_until_it_is_given_after_all(lab: Lab, host: Host, faults: Faults) -> None:
    worker = Worker(map_and_unmap(lab))
    with worker.working():
        spun = waits_with_interrupts_off(host, at="request", do="drop", match=of("UNMAP"), times=1)
        goes_on = worker.goes_on()

    assert (spun, goes_on) == (True, True)


@pytest.mark.parametrize("nbytes", [0, 3, 5, 4096])
def test_a_wrong_used_length_is_success(lab: Lab, faults: Faults, kernel_log: KernelLog, nbytes: int) -> None:
    mark = kernel_log.mark()
    page = vfio.Buffer(PAGE)
    with faults.injected("request", "used-length", match=OF_ACCEL, nbytes=nbytes) as rule:
        with lab.container.mapped(TARGET_IOVA, page):
            lab.run_ok(FILL)
        assert rule.fired == 2  # MAP and UNMAP
    with lab.both_mapped():
        lab.run_ok(copy())

    assert kernel_log.find("", since=mark) == []


def test_an_attach_of_used_length_0_is_success_though_the_driver_means_to_fail_it(
    faults: Faults, kernel_log: KernelLog
) -> None:
    with faults.injected("request", "used-length", match=of("ATTACH"), nbytes=0) as rule:
        assert copies(kernel_log)
        assert rule.fired > 0


@pytest.mark.parametrize("nbytes", [0, 4, 4096])
def test_a_probe_of_wrong_used_length_has_no_properties(
    stock: Machine, faults: Faults, probed_after: None, nbytes: int
) -> None:
    with faults.injected("request", "used-length", match=of("PROBE"), nbytes=nbytes):
        probe_anew(stock)

    assert reserved(stock) == [LINUX_MSI]


def test_answers_in_another_order_are_taken_as_they_come(lab: Lab, faults: Faults) -> None:
    big = vfio.Buffer(8 * MIB)
    with faults.injected("request", "reorder", match=of("UNMAP"), times=1, behind=2) as rule:
        lab.container.map(TARGET_IOVA, big, BOTH)
        lab.container.unmap(TARGET_IOVA, big.nbytes)  # a request for each piece, and one wait for all

        assert rule.fired == 1
    assert lab.engine.run(FILL).status == accel.TRANSLATION_FAULT
    with lab.both_mapped():
        lab.run_ok(copy())


def test_after_a_refused_map_the_rng_gives_nothing_until_its_driver_is_bound_again(
    stock: Machine, faults: Faults, unit: Unit
) -> None:
    with faults.injected("request", "status", match={"type": "MAP", "endpoint": "rng0"}, times=1, status="NOMEM"):
        silent = rng_is_silent()
    needs_reset = unit.function("rng0")["needs-reset"]
    give_back(stock.bdf("rng0"))

    assert (silent, needs_reset) == (True, True)
    assert rng_gives()


@pytest.mark.parametrize(
    ("parameters", "seen"),
    [
        ({"nbytes": 0}, [LINUX_MSI]),  # as if there were none
        ({"nbytes": 10}, [(0, 0, "msi")]),  # zeros where the first one's addresses were
        ({"nbytes": 30}, [(0, 0, "reserved"), MSI]),
    ],
)
def test_properties_that_end_early_are_believed(
    stock: Machine,
    faults: Faults,
    kernel_log: KernelLog,
    probed_after: None,
    parameters: dict[str, int],
    seen: list[tuple[int, int, str]],
) -> None:
    mark = kernel_log.mark()
    with faults.injected("request", "probe-truncate", match=of("PROBE"), **parameters):
        probe_anew(stock)

    assert reserved(stock) == seen
    assert kernel_log.find("prop", since=mark) == []


@pytest.mark.parametrize(
    ("parameters", "words", "seen"),
    [
        ({"offset": 0, "value": 0x7F}, "unknown viommu prop 0x7f", [LINUX_MSI, OWN]),
        ({"offset": 2, "value": 0}, "failed to parse viommu prop 0x1", None),
        ({"offset": 4, "value": 9}, "unknown resv mem subtype 0x9", [LINUX_MSI, OWN, (*MSI[:2], "reserved")]),
        ({"offset": 8, "nbytes": 8}, "", [OWN, (0xFFFF_FFFF_FFFF_FFFF, MSI[1], "msi")]),
    ],
    ids=["type", "length", "subtype", "start"],
)
def test_properties_with_wrong_bytes(
    stock: Machine,
    faults: Faults,
    kernel_log: KernelLog,
    probed_after: None,
    parameters: dict[str, int],
    words: str,
    seen: list[tuple[int, int, str]] | None,
) -> None:
    mark = kernel_log.mark()
    with faults.injected("request", "probe-corrupt", match=of("PROBE"), **parameters):
        probe_anew(stock)

    assert reserved(stock) == seen
    assert kernel_log.find(stock.bdf("accel0"), words, since=mark)
