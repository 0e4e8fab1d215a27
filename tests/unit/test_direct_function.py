"""A PCI function taken through sysfs: a directory of files stands for the kernel's. Accesses are of exact widths."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from guest_tests.payload import guest
from guest_tests.payload.bar import Bar
from guest_tests.payload.direct.errors import DirectError, NotNegotiated
from guest_tests.payload.direct.function import (
    CAP_MSIX,
    CAP_PCIE,
    CAP_VENDOR,
    EXT_PASID,
    Capability,
    PciFunction,
)
from guest_tests.payload.direct.msix import MsixTable
from guest_tests.payload.direct.virtio import VirtioPci
from tests.support.direct import SimMachine

BDF = "0000:01:00.0"
COMMAND = 0x04


class Sysfs:
    """The files of one function; what the driver writes stays in them."""

    def __init__(self, root: Path) -> None:
        self.function = root / "bus/pci/devices" / BDF
        self.driver = root / "bus/pci/drivers/vfio-pci"
        self.driver.mkdir(parents=True)
        self.function.mkdir(parents=True)
        (self.driver / "unbind").write_text("")
        (root / "bus/pci/drivers_probe").write_text("")
        for name in ("enable", "driver_override"):
            (self.function / name).write_text("")
        (self.function / "resource0").write_bytes(bytes(8192))
        self.probe = root / "bus/pci/drivers_probe"
        self.write_config(bytes(4096))

    def bind(self) -> None:
        (self.function / "driver").symlink_to(self.driver)

    def write_config(self, config: bytes) -> None:
        (self.function / "config").write_bytes(config)

    def command(self) -> int:
        return int.from_bytes((self.function / "config").read_bytes()[COMMAND : COMMAND + 2], "little")


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sysfs:
    monkeypatch.setattr(guest, "SYS", tmp_path)
    return Sysfs(tmp_path)


def config_space(*capabilities: tuple[int, int, int], extended: tuple[tuple[int, int, int], ...] = ()) -> bytes:
    """A configuration space with lists of (offset, id, next)."""
    config = bytearray(4096)
    config[0x06] = 0x10
    config[0x34] = capabilities[0][0] if capabilities else 0
    for at, id, following in capabilities:
        config[at : at + 2] = bytes([id, following])
    for at, id, following in extended:
        config[at : at + 4] = (id | 1 << 16 | following << 20).to_bytes(4, "little")
    return bytes(config)


def test_a_function_is_unbound_enabled_and_made_bus_master(sysfs: Sysfs) -> None:
    sysfs.bind()

    PciFunction(BDF)

    assert (sysfs.driver / "unbind").read_text() == BDF
    assert (sysfs.function / "enable").read_text() == "1"
    assert sysfs.command() == 0x406  # memory, bus master, and no line interrupts


def test_a_function_goes_back_as_it_was_to_the_driver_that_had_it(sysfs: Sysfs) -> None:
    sysfs.bind()
    with PciFunction(BDF) as function:
        (sysfs.function / "driver").unlink()  # what the kernel does at unbind
        function.bar(0)

    assert sysfs.command() == 0
    assert (sysfs.function / "enable").read_text() == "0"
    assert sysfs.probe.read_text() == BDF
    assert (sysfs.function / "driver_override").read_text() == "\n"


def test_a_function_nobody_had_goes_to_nobody(sysfs: Sysfs) -> None:
    PciFunction(BDF).release()

    assert sysfs.probe.read_text() == ""


def test_a_failed_take_leaves_no_file_open(sysfs: Sysfs) -> None:
    (sysfs.function / "enable").unlink()
    (sysfs.function / "enable").mkdir()
    before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(OSError, match="enable"):
        PciFunction(BDF)

    assert len(os.listdir("/proc/self/fd")) == before


def test_a_bar_is_mapped_once_at_its_size(sysfs: Sysfs) -> None:
    with PciFunction(BDF) as function:
        bar = function.bar(0)
        bar.write32(0x1000, 0x12345678)

        assert function.bar(0) is bar
        assert bar.nbytes == 8192
    assert (sysfs.function / "resource0").read_bytes()[0x1000:0x1004] == bytes.fromhex("78563412")


def test_both_capability_lists_are_walked(sysfs: Sysfs) -> None:
    sysfs.write_config(
        config_space((0x40, CAP_PCIE, 0x60), (0x60, CAP_MSIX, 0), extended=((0x100, 1, 0x140), (0x140, EXT_PASID, 0)))
    )
    function = PciFunction(BDF)

    assert function.capabilities() == [
        Capability(CAP_PCIE, 0x40),
        Capability(CAP_MSIX, 0x60),
        Capability(1, 0x100, is_extended=True),
        Capability(EXT_PASID, 0x140, is_extended=True),
    ]
    assert function.capability(EXT_PASID, extended=True).offset == 0x140


def test_lists_that_loop_come_to_an_end(sysfs: Sysfs) -> None:
    loops = config_space((0x40, CAP_VENDOR, 0x50), (0x50, CAP_VENDOR, 0x40), extended=((0x100, 1, 0x100),))
    sysfs.write_config(loops)

    assert [found.offset for found in PciFunction(BDF).capabilities()] == [0x40, 0x50, 0x100]


def test_a_capability_that_is_not_there_is_named(sysfs: Sysfs) -> None:
    with pytest.raises(NotNegotiated, match=f"{BDF} has no capability 0x11"):
        PciFunction(BDF).capability(CAP_MSIX)


def test_a_conventional_function_has_no_extended_list(sysfs: Sysfs) -> None:
    sysfs.write_config(config_space((0x40, CAP_MSIX, 0))[:256])

    assert PciFunction(BDF).capabilities() == [Capability(CAP_MSIX, 0x40)]


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 8), (0, 3), (1, 2), (2, 4), (-4, 4)])
def test_what_cannot_be_one_access_is_refused(sysfs: Sysfs, offset: int, nbytes: int) -> None:
    function = PciFunction(BDF)

    with pytest.raises(ValueError, match="of configuration space are not one aligned access"):
        function.read_config(offset, nbytes)
    with pytest.raises(ValueError, match="of configuration space are not one aligned access"):
        function.write_config(offset, nbytes, 0)


def test_a_function_level_reset_keeps_the_header() -> None:
    function = SimMachine().functions["iommu0"]
    function.write_config(0x10, 4, 0xFEB0_0000)
    before = function.read_config(0x10, 4), function.command

    function.flr()

    assert (function.read_config(0x10, 4), function.command) == before
    assert before[0] & ~0xF == 0xFEB0_0000


def test_a_function_without_flr_says_so(sysfs: Sysfs) -> None:
    function = PciFunction(BDF)

    with pytest.raises(NotNegotiated, match="no function-level reset"):
        function.flr()


def test_a_function_that_is_not_virtio_says_so() -> None:
    with pytest.raises(NotNegotiated, match="no common configuration structure: not a modern virtio device"):
        VirtioPci(SimMachine().functions["accel0"])


class Item:
    """Stands for a cast view: notes each item access."""

    def __init__(self, name: str, log: list[tuple[object, ...]]) -> None:
        self.name, self.log = name, log

    def __getitem__(self, index: int) -> int:
        self.log.append((self.name, index))
        return 0

    def __setitem__(self, index: int, value: int) -> None:
        self.log.append((self.name, index, value))


@pytest.mark.parametrize("nbytes", [1, 2, 4, 8])
def test_every_bar_access_is_one_item_of_its_width(nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bar, log = Bar(mmap.mmap(-1, 4096)), list[tuple[object, ...]]()
    for width in (8, 16, 32, 64):
        monkeypatch.setattr(bar, f"_u{width}", Item(f"u{width}", log))

    getattr(bar, f"read{8 * nbytes}")(24)
    getattr(bar, f"write{8 * nbytes}")(24, 7)

    assert log == [(f"u{8 * nbytes}", 24 // nbytes), (f"u{8 * nbytes}", 24 // nbytes, 7)]


@pytest.mark.parametrize("nbytes", [1, 2, 4, 8])
def test_a_bar_reads_what_it_wrote_little_endian(nbytes: int) -> None:
    region = mmap.mmap(-1, 4096)
    bar = Bar(region)
    value = int.from_bytes(bytes(range(1, nbytes + 1)), "little")

    getattr(bar, f"write{8 * nbytes}")(16, value)

    assert region[16 : 16 + nbytes] == bytes(range(1, nbytes + 1))
    assert getattr(bar, f"read{8 * nbytes}")(16) == value


@pytest.mark.parametrize(("nbytes", "offset"), [(2, 1), (4, 2), (8, 4), (4, -4)])
def test_an_unaligned_register_is_refused(nbytes: int, offset: int) -> None:
    bar = Bar(mmap.mmap(-1, 4096))

    with pytest.raises(ValueError, match=f"a {8 * nbytes}-bit access at offset .* is not naturally aligned"):
        getattr(bar, f"read{8 * nbytes}")(offset)


def test_a_vector_that_receives_something_foreign_is_an_error() -> None:
    machine = SimMachine()
    table = MsixTable(machine.functions["iommu0"], machine.pool)
    table.buffer.write(b"\xff\xff\xff\xff", 64)

    with pytest.raises(DirectError, match="vector 1 wrote 0xffffffff, its data is 0x5601"):
        table.vectors[1].wait(0)
