"""pytest fixtures for machines left to stock drivers: `pytest -p guest_tests.payload.stock_fixtures`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from . import checks_open
from .guest import KernelLog
from .host import Host
from .lab import Lab
from .stock import Machine, Unit


@pytest.fixture
def unit(host: Host) -> Unit:
    """The first IOMMU unit as vdev has it."""
    return Unit(host)


@pytest.fixture(scope="session")
def stock(machine: dict[str, Any]) -> Machine:
    """The machine's facts: addresses by name, reserved regions, what the command line asks for."""
    return Machine(machine)


@contextmanager
def opened_lab(log: KernelLog) -> Iterator[Lab]:
    """The first accelerator opened through VFIO, its engine running; all are given back after the block."""
    lab = Lab(log)
    checks_open.driver_bound(lab)
    checks_open.own_group(lab)
    checks_open.opens_through_vfio(lab)
    try:
        yield lab
    finally:
        checks_open.gives_everything_back(lab)


@pytest.fixture
def lab(kernel_log: KernelLog) -> Iterator[Lab]:
    """The first accelerator, opened and running for the length of the test."""
    with opened_lab(kernel_log) as opened:
        yield opened
