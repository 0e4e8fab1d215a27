"""The guest's check of /dev/hwrng, on the host, against a made-up /sys: an honest one passes, each flaw is found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guest_tests.payload import checks_hwrng, guest
from guest_tests.payload.lab import CheckFailed
from tests.support.fake_vfio import fake_lab

BDF = "0000:02:00.0"


class Guest:
    """A /sys in which virtio_rng draws from a function in group 3, and what /dev/hwrng gives."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sys = root / "sys"
        self.function = self.sys / "bus/pci/devices" / BDF
        self.group = self.sys / "kernel/iommu_groups/3"
        for directory in (self.function, self.group, self.sys / "bus/pci/drivers/virtio-pci"):
            directory.mkdir(parents=True)
        self.write(self.function / "vendor", "0x1af4")
        self.write(self.function / "device", "0x1044")
        (self.function / "driver").symlink_to(self.sys / "bus/pci/drivers/virtio-pci")
        (self.function / "iommu_group").symlink_to(self.group)
        self.write(self.group / "type", "DMA-FQ")
        self.write(self.sys / checks_hwrng.RNG_CURRENT, "virtio_rng.0")
        monkeypatch.setattr(guest, "SYS", self.sys)
        monkeypatch.setattr(checks_hwrng, "DEVICE", Path("/dev/null"))
        self.device(monkeypatch, iter(lambda: os.urandom(1000), b""))

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    def device(self, monkeypatch: pytest.MonkeyPatch, chunks: Iterator[bytes]) -> None:
        """What reads of /dev/hwrng give, one after another; then its end."""
        monkeypatch.setattr(os, "read", lambda descriptor, nbytes: next(chunks, b"")[:nbytes])


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guest:
    return Guest(tmp_path, monkeypatch)


def test_an_honest_guest_passes_and_says_what_it_drew_through(made: Guest) -> None:
    finding = checks_hwrng.kernel_draws_random_bytes(fake_lab())

    facts = finding.data
    assert (facts["bdf"], facts["group"], facts["type"]) == (BDF, "3", "DMA-FQ")
    assert facts["counted_endpoint"] == 0x200
    assert len(bytes.fromhex(facts["drawn"])) == 2 * checks_hwrng.NBYTES


FLAWS: dict[str, tuple[Callable[[Guest], object], str]] = {
    "no device": (lambda made: made.write(made.function / "device", "0x1041"), "no PCI function"),
    "other driver": (lambda made: made.write(made.sys / checks_hwrng.RNG_CURRENT, "tpm-rng-0"), "not from virtio_rng"),
    "unbound": (lambda made: (made.function / "driver").unlink(), "held by driver None"),
    "no group": (lambda made: (made.function / "iommu_group").unlink(), "in no IOMMU group"),
    "identity": (lambda made: made.write(made.group / "type", "identity"), "of type identity"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_of_the_guest_is_found(flaw: str, made: Guest) -> None:
    spoil, problem = FLAWS[flaw]
    spoil(made)

    with pytest.raises(CheckFailed, match=problem):
        checks_hwrng.kernel_draws_random_bytes(fake_lab())


def test_a_missing_device_node_is_found(made: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks_hwrng, "DEVICE", made.sys / "nothing")

    with pytest.raises(CheckFailed, match="is not there"):
        checks_hwrng.kernel_draws_random_bytes(fake_lab())


@pytest.mark.parametrize(
    ("chunks", "problem"),
    [
        ([bytes(8192)] * 9, "not random"),
        ([bytes(range(256)) * 16] * 2, "two reads gave the same"),
        ([b"x" * 100], "ended after 100 bytes"),
    ],
)
def test_bytes_that_cannot_be_random_are_found(
    chunks: list[bytes], problem: str, made: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.device(monkeypatch, iter(chunks))

    with pytest.raises(CheckFailed, match=problem):
        checks_hwrng.kernel_draws_random_bytes(fake_lab())
