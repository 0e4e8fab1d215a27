"""The fixtures for tests inside a guest, run by an inner pytest on a machine of our own in place of the guest's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = """
import pytest
from guest_tests.payload.fixtures import *
from msgspec.structs import replace
from tests.support.direct import ONE_OF_EACH, SimMachine
from vdev.config import PasidsConfig

MACHINE = SimMachine(replace(ONE_OF_EACH, vm=replace(ONE_OF_EACH.vm, pasids=PasidsConfig())))

@pytest.fixture(scope="session")
def dma_pool():
    return MACHINE.pool

@pytest.fixture(scope="session")
def unit_functions():
    return [MACHINE.functions["iommu0"]]

@pytest.fixture(scope="session")
def accel_functions():
    return [MACHINE.functions["accel0"]]
"""
TESTS = """
import pytest
from conftest import MACHINE
from guest_tests.payload.direct import READ, WRITE, Attach, NoAnswer, Status

def test_three_lines_are_a_test(viommu, mapped_accel, dma):
    src, dst = dma.random(4096), dma.alloc(4096)
    viommu.map_buffer(mapped_accel.domain, 0x10000, src, READ)
    viommu.map_buffer(mapped_accel.domain, 0x20000, dst, WRITE)
    mapped_accel.copy(0x10000, 0x20000, 4096)
    assert dst.read() == src.read()

def test_leaves_a_running_engine_and_a_broken_unit(accel, viommu):
    accel.start_in(viommu)
    chain = viommu.chain(Attach(domain=1, endpoint=1))
    chain.head = 999
    with pytest.raises(NoAnswer):
        viommu.send_chain(chain, timeout_s=0.01)

def test_leaves_a_unit_without_dma_that_does_not_bypass(viommu):
    viommu.bypass = False
    viommu.function.bus_master(False)
    viommu.reset()

def test_finds_nothing_of_that(viommu, accel):
    assert viommu.bypass
    assert not viommu.is_broken
    assert accel.registers.read32(0x0C) == 0
    assert viommu.send(Attach(domain=1, endpoint=0x7777)).status == Status.NOENT

def test_opens_with_options(open_viommu):
    assert open_viommu(queue_size=8, msix=True).requests.ring.size == 8

def test_wants_a_second_unit(open_viommu):
    open_viommu(unit=1)

def test_wants_a_second_accelerator(open_accel):
    open_accel(1)

def test_nothing_is_left_of_all_that():
    assert MACHINE.pool.nbytes_free == MACHINE.pool.npages << 21
"""


def test_fixtures_give_each_test_fresh_devices_and_skip_what_the_machine_has_not(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)

    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:asyncio", "-rs")

    result.assert_outcomes(passed=6, skipped=2)
    result.stdout.fnmatch_lines(
        ["*this machine has 1 IOMMU unit(s), the test wants number 1", "*this machine has 1 accelerator(s), *number 1"]
    )


def test_every_example_of_the_documentation_passes(pytester: pytest.Pytester) -> None:
    page = Path(__file__).parents[2] / "docs/direct-driver.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(**{f"test_block_{number}": block for number, block in enumerate(blocks)})

    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:asyncio")

    ntests = sum(block.count("\ndef test_") + block.startswith("def test_") for block in blocks)
    assert ntests > 20
    result.assert_outcomes(passed=ntests)
