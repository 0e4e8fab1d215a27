"""The accelerator as a PCI function behind a real door: options, BARs, capabilities, resets, freezing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from tests.support.accelerator import Rig, descriptor
from tests.support.bay import bay
from vdev.endpoints.accelerator import Accelerator
from vdev.endpoints.accelerator_engine import SLICE_NBYTES
from vdev.endpoints.table import MODELS
from vdev.errors import ConfigError, TranslationFault
from vdev.functions.base import Progress, Worker
from vdev.functions.dma import DmaDoor
from vdev.iommu.in_flight import Flight, InFlight
from vdev.iommu.settings import UnitSettings
from vdev.iommu.tag import Tag
from vdev.memory import Region
from vdev.pci.base import PciFunction
from vdev.wire import pci
from vdev.wire.accelerator import (
    ID_VALUE,
    Completion,
    CompletionStatus,
    Control,
    Descriptor,
    ErrorCode,
    Flag,
    Op,
    Register,
    Status,
)

RING, COMPLETIONS, SRC, DST = 0x0, 0x1000, 0x10_0000, 0x20_0000
RAM_NBYTES = 0x30_0000
LONG = 3 * SLICE_NBYTES


class Identity:
    """An IOMMU that maps everything below 2 GiB to itself and remembers the faults it is told of."""

    def __init__(self) -> None:
        self.faults: list[tuple[int, int, int]] = []
        self.in_flight = InFlight()
        self.settings = UnitSettings("unit")

    granule = 4096

    def begin(self, endpoint: int, iova: int, nbytes: int, access: int, tag: Tag | None = None) -> Flight:
        flight = Flight(endpoint, 1, iova, iova + nbytes, access, self.translate(endpoint, iova, nbytes, access))
        self.in_flight.begin(flight)
        return flight

    def translate(
        self, endpoint: int, iova: int, nbytes: int, access: int, tag: Tag | None = None
    ) -> list[tuple[int, int]]:
        if iova + nbytes > 1 << 31:
            raise TranslationFault(2, "translation-fault", iova)
        return [(iova, nbytes)]

    def retranslate(self, flight: Flight, tag: Tag | None) -> list[tuple[int, int]]:
        return [(flight.start, flight.stop - flight.start)]

    def fault(self, endpoint: int, error: TranslationFault, access: int, tag: Tag | None = None) -> None:
        self.faults.append((endpoint, error.iova, access))


class Bench:
    """An accelerator in a slot: RAM connected, bus master on, the ring set up."""

    def __init__(
        self,
        options: Mapping[str, int | str | bool] | None = None,
        wake_at: Callable[[Worker, int], object] = lambda worker, when_ns: None,
    ) -> None:
        self.iommu = Identity()
        self.woken: list[Worker] = []
        self.vectors: list[int] = []
        self.ram = bytearray(RAM_NBYTES)
        self.function = Accelerator("accel0", bay(self._open_door, self.woken.append, wake_at), options or {})
        self.function.memory.add(Region(0, RAM_NBYTES, memoryview(self.ram)))
        self.function.raise_vector = self.vectors.append
        self.command(pci.Command.MEMORY | pci.Command.BUS_MASTER)

    def _open_door(self, function: PciFunction) -> DmaDoor:
        return DmaDoor(self.iommu, 0x100, function)

    def command(self, value: int) -> None:
        self.function.config_write(pci.COMMAND, value.to_bytes(2, "little"))

    def write(self, register: int, value: int, nbytes: int = 4) -> None:
        self.function.bar_write(0, register, value.to_bytes(nbytes, "little"))

    def read(self, register: int) -> int:
        return int.from_bytes(self.function.bar_read(0, register, 4), "little")

    def start(self) -> None:
        self.write(Register.RING_BASE, RING, 8)
        self.write(Register.RING_SIZE, 8)
        self.write(Register.COMPLETION_BASE, COMPLETIONS, 8)
        self.write(Register.CONTROL, Control.ENABLE | Control.IRQ_ENABLE)

    def submit(self, entry: Descriptor) -> None:
        self.ram[RING : RING + 64] = entry.pack()
        self.write(Register.RING_TAIL, 1)

    def run(self) -> int:
        slices = 1
        while self.function.run_slice(0) is Progress.BUSY:
            slices += 1
        return slices

    def completion(self) -> Completion:
        return Completion.parse(self.ram, COMPLETIONS)

    def half_done_copy(self) -> None:
        """One of three slices of a copy has been done."""
        self.ram[SRC : SRC + LONG] = b"\xa5" * LONG
        self.start()
        self.submit(descriptor(Op.COPY, src=SRC, dst=DST, nbytes=LONG))
        self.function.run_slice(0)


def test_the_table_knows_the_accelerator_and_its_options() -> None:
    assert set(MODELS["accelerator"].option_help) == {
        "ats",
        "devmem",
        "latency",
        "pasid_bits",
        "pasid_execute",
        "pasid_privileged",
        "pri",
    }


def test_it_announces_itself_with_its_identity_and_bars() -> None:
    function = Bench().function
    assert function.config_read(0, 4) == bytes.fromhex("34126476")
    assert function.config_read(8, 4) == bytes.fromhex("01008008")
    assert [(bar.index, bar.nbytes, bar.is_64bit) for bar in function.bars] == [
        (0, 4096, True),
        (2, 1 << 20, True),
        (4, 4096, True),
    ]
    assert function.msix_vectors == 2
    assert function.bar_read(0, Register.ID, 4) == ID_VALUE.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("options", "present"),
    [
        ({}, {pci.ExtCapId.AER, pci.ExtCapId.ATS, pci.ExtCapId.PRI, pci.ExtCapId.PASID}),
        ({"pri": False}, {pci.ExtCapId.AER, pci.ExtCapId.ATS, pci.ExtCapId.PASID}),
        ({"ats": False}, {pci.ExtCapId.AER, pci.ExtCapId.PASID}),
        ({"pasid_bits": 0}, {pci.ExtCapId.AER, pci.ExtCapId.ATS, pci.ExtCapId.PRI}),
    ],
)
def test_options_choose_the_capabilities(options: dict[str, int | str | bool], present: set[int]) -> None:
    config = Bench(options).function.config
    assert {cap for cap in pci.ExtCapId if config.find(cap, extended=True) is not None} == present


@pytest.mark.parametrize("devmem", [65536, "64K", "64k"])
def test_devmem_is_a_number_or_a_size(devmem: int | str) -> None:
    assert Bench({"devmem": devmem}).function.bars[1].nbytes == 65536


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"devmme": 1}, "devmme"),
        ({"devmem": 5000}, "devmem"),
        ({"devmem": 2048}, "devmem"),
        ({"devmem": "128M"}, "devmem"),
        ({"devmem": "1X"}, "devmem"),
        ({"devmem": ""}, "devmem"),
        ({"devmem": True}, "devmem"),
        ({"pasid_bits": 21}, "pasid_bits"),
        ({"pasid_bits": "20"}, "pasid_bits"),
        ({"ats": 1}, "ats"),
        ({"ats": False, "pri": True}, "pri"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, int | str | bool], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Bench(options)
    assert caught.value.key == f"endpoints[accel0].options.{key}"


def test_device_memory_answers_at_any_width_and_zeros_beyond_its_end() -> None:
    function = Bench({"devmem": 4096}).function
    function.bar_write(2, 4093, b"abcdef")
    assert function.bar_read(2, 4092, 8) == b"\0abc\0\0\0\0"
    assert function.bar_read(2, 4096, 4) == bytes(4)


def test_the_msix_bar_has_no_registers_behind_its_table() -> None:
    function = Bench().function
    function.bar_write(4, 0x900, b"\xff" * 4)
    assert function.bar_read(4, 0x900, 4) == bytes(4)


def test_a_doorbell_wakes_the_worker_and_the_copy_interrupts() -> None:
    bench = Bench()
    bench.start()
    assert bench.woken == []
    bench.ram[SRC : SRC + 5] = b"hello"
    bench.submit(descriptor(Op.COPY, flags=Flag.IRQ, src=SRC, dst=DST + 1, nbytes=5))
    assert bench.woken == [bench.function]
    assert bench.run() == 1
    assert bench.ram[DST : DST + 6] == b"\0hello"
    assert bench.completion().status == CompletionStatus.OK
    assert bench.vectors == [0]


def test_a_long_copy_is_run_in_slices() -> None:
    bench = Bench()
    bench.half_done_copy()
    assert bench.completion().status == CompletionStatus.PENDING
    assert bench.run() == 2
    assert bench.ram[DST : DST + LONG] == bench.ram[SRC : SRC + LONG]


def test_the_iommu_hears_of_a_fault_and_so_does_the_driver() -> None:
    bench = Bench()
    bench.start()
    bench.submit(descriptor(Op.COPY, src=SRC, dst=1 << 40, nbytes=16))
    bench.run()
    assert bench.iommu.faults == [(0x100, 1 << 40, 2)]
    assert bench.completion().status == CompletionStatus.TRANSLATION_FAULT
    assert bench.completion().fault_iova == 1 << 40


def test_dma_to_a_hole_in_ram_is_an_unsupported_request() -> None:
    bench = Bench()
    bench.start()
    bench.submit(descriptor(Op.FILL, dst=RAM_NBYTES, nbytes=16))
    bench.run()
    assert bench.completion().status == CompletionStatus.UNSUPPORTED_REQUEST
    assert bench.iommu.faults == []


def flr(bench: Bench) -> None:
    at = bench.function.config.find(pci.CapId.PCIE)
    assert at is not None
    bench.function.config_write(at + pci.DEVCTL, pci.DEVCTL_FLR.to_bytes(2, "little"))


@pytest.mark.parametrize("how", ["control", "flr", "device-reset", "disconnected"])
def test_nothing_lands_after_a_reset_returned(how: str) -> None:
    bench = Bench()
    bench.half_done_copy()
    if how == "control":
        bench.write(Register.CONTROL, Control.RESET)
    elif how == "flr":
        flr(bench)
    elif how == "device-reset":
        bench.function.reset()
    else:
        bench.function.disconnected()
    before = bytes(bench.ram)
    bench.command(pci.Command.BUS_MASTER)
    assert bench.function.run_slice(0) is Progress.IDLE
    assert bench.ram == before
    assert bench.read(Register.STATUS) == 0
    assert bench.read(Register.RING_SIZE) == 0
    assert bench.vectors == []


@pytest.mark.parametrize(("how", "kept"), [("control", b"x"), ("flr", b"\0"), ("device-reset", b"\0")])
def test_a_function_reset_clears_device_memory_and_control_reset_keeps_it(how: str, kept: bytes) -> None:
    bench = Bench()
    bench.function.bar_write(2, 100, b"x")
    if how == "control":
        bench.write(Register.CONTROL, Control.RESET)
    elif how == "flr":
        flr(bench)
    else:
        bench.function.reset()
    assert bench.function.bar_read(2, 100, 1) == kept


def test_bus_master_off_halts_a_copy_and_on_does_not_continue_it() -> None:
    bench = Bench()
    bench.half_done_copy()
    before = bytes(bench.ram)
    bench.command(pci.Command.MEMORY)
    assert bench.read(Register.STATUS) == Status.HALTED
    bench.command(pci.Command.MEMORY | pci.Command.BUS_MASTER)
    assert bench.function.run_slice(0) is Progress.IDLE
    assert bench.ram == before
    assert bench.read(Register.ERROR) == ErrorCode.BUS_MASTER_OFF
    assert bench.vectors == []


def test_an_iommu_reset_halts_a_copy_and_enable_starts_the_engine_again() -> None:
    bench = Bench()
    bench.half_done_copy()
    before = bytes(bench.ram)
    bench.function.quiesce()
    assert bench.function.run_slice(0) is Progress.IDLE
    assert bench.ram == before
    assert (bench.read(Register.STATUS), bench.read(Register.ERROR)) == (Status.HALTED, ErrorCode.STOPPED)
    bench.start()
    assert bench.read(Register.STATUS) == Status.RUNNING


def test_a_frozen_copy_waits_and_goes_on_when_thawed() -> None:
    bench = Bench()
    bench.half_done_copy()
    bench.function.freeze(True)
    before = bytes(bench.ram)
    assert bench.function.run_slice(0) is Progress.IDLE
    assert bench.ram == before
    bench.woken.clear()
    bench.function.freeze(False)
    assert bench.woken == [bench.function]
    bench.run()
    assert bench.completion().status == CompletionStatus.OK


def test_a_removed_function_stops_its_copy() -> None:
    bench = Bench()
    bench.half_done_copy()
    before = bytes(bench.ram)
    bench.function.removed = True
    assert bench.function.run_slice(0) is Progress.IDLE
    assert bench.ram == before
    assert bench.read(Register.STATUS) == 0xFFFF_FFFF


def test_state_is_described_as_plain_data() -> None:
    bench = Bench()
    bench.start()
    bench.submit(descriptor(Op.NOP))
    bench.run()
    described = bench.function.describe()
    assert (described["running"], described["completed"], described["ring_head"]) == (True, 1, 1)


def test_with_small_pages_a_slice_moves_only_what_one_look_up_covers() -> None:
    rig = Rig().start()
    rig.door.slice_nbytes = 256
    rig.map(0x1000, 0, 0x4000)
    rig.put(*[descriptor(Op.FILL, dst=0x1000, nbytes=1024, arg=7) for _ in range(4)])

    slices = rig.run()

    assert slices == 4 * 1024 // 256
    assert rig.completion(3).status == CompletionStatus.OK
