"""One QEMU with QEMU's own device, and one with all of ours, for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guest_tests.payload.bar import Registers
from tests.qtest.dma_probes import NEEDED, writer
from tests.qtest.machine import qemu
from tests.qtest.subjects import QEMU, SUBJECTS, Subject, ours, qemus_own


@pytest.fixture(scope="session")
def own_subjects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Subject]]:
    with ours(tmp_path_factory.mktemp("q")) as subjects:
        yield subjects


@pytest.fixture(scope="session")
def qemu_subjects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Subject]]:
    with qemus_own(tmp_path_factory.mktemp("q")) as subjects:
        yield subjects


@pytest.fixture(scope="session")
def dma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Subject, Registers]]:
    if int(qemu().version.split(".")[0]) < NEEDED:
        pytest.skip(f"QEMU {qemu().version} has no iommu-testdev")
    with writer(tmp_path_factory.mktemp("q")) as found:
        yield found


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each device in turn."""
    name: str = request.param
    found: dict[str, Subject] = request.getfixturevalue("qemu_subjects" if name == QEMU else "own_subjects")
    return found[name]
