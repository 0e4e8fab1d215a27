"""Fixtures of this suite. pytest imports this file on the host as well, where spaces.py is not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from guest_tests.payload import guest, vfio
from guest_tests.payload.checks_open import bind_to_vfio
from guest_tests.payload.host import Host
from guest_tests.payload.stock import Machine, group_of

if TYPE_CHECKING:
    from spaces import MakeContainer, Yard

NO_GROUP = ("coarse0",)  # see test_granules


@pytest.fixture(scope="module")
def yard(stock: Machine, host: Host) -> Iterator[Yard]:
    """All accelerators that Linux can put behind their unit, held by vfio-pci."""
    from spaces import Yard

    names = [entry["name"] for entry in stock.facts["endpoints"] if entry["model"] == "accelerator"]
    groups = {}
    for name in names:
        if name not in NO_GROUP:
            bind_to_vfio(stock.bdf(name))
            group = group_of(stock.bdf(name))
            assert group is not None
            groups[name] = group.number
    yield Yard(stock, host, groups)
    for name in groups:
        guest.unbind_driver(stock.bdf(name))


@pytest.fixture
def container(yard: Yard) -> Iterator[MakeContainer]:
    """`container(endpoint, ...)`: a container with their groups, put in in this order; closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(*endpoints: str) -> vfio.Container:
            return stack.enter_context(contextlib.closing(yard.container(*endpoints)))

        yield make
