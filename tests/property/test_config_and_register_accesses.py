"""Configuration space and registers under accesses of any offset and width, against models that know bytes only."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.bay import bay
from tests.support.pci import BARS, EXTENDED, IDENTITY
from tests.support.virtio_pci import NotingRig
from vdev.endpoints.accelerator import Accelerator
from vdev.functions.dma import DmaDoor
from vdev.iommu.engine import Engine
from vdev.iommu.settings import EndpointSettings, UnitSettings
from vdev.pci.base import PciFunction
from vdev.pci.config_space import Capability, ConfigSpace, Field
from vdev.pci.function import CONFIG_NBYTES
from vdev.pci.msix import MsixLayout
from vdev.wire import pci
from vdev.wire import virtio_pci as virtio
from vdev.wire.accelerator import ID_VALUE, Register

EXAMPLES = 5000 if os.environ.get("VDEV_TIER") == "soak" else 100
WORD = (1 << 64) - 1
MASKED = Capability(
    0x09, 32, (Field(4, 4, 0x1234, writable=0x0FF0), Field(8, 8, 0xFF00_FF00, w1c=0xF0F0_0000), Field(16, 2, 7, 0xFFFF))
)
offsets = st.one_of(
    st.integers(0, 0x100), st.integers(0, CONFIG_NBYTES + 16), st.integers(CONFIG_NBYTES - 8, 1 << 64), st.just(WORD)
)
widths = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 64])
writes = st.tuples(offsets, st.binary(max_size=20))


def space() -> tuple[ConfigSpace, list[tuple[int, int, int, int]]]:
    """A configuration space, and (offset, power-on byte, writable bits, write-1-to-clear bits) as its rules say."""
    config = ConfigSpace(IDENTITY, BARS)
    base = config.add_capability(MASKED)
    rules = [(at, value, 0, 0) for at, value in enumerate(config.read(0, CONFIG_NBYTES))]

    def rule(offset: int, nbytes: int, writable: int = 0, w1c: int = 0) -> None:
        for at in range(nbytes):
            kept = rules[offset + at][1]
            rules[offset + at] = (offset + at, kept, writable >> 8 * at & 0xFF, w1c >> 8 * at & 0xFF)

    command = pci.Command.MEMORY | pci.Command.BUS_MASTER | pci.Command.PARITY | pci.Command.SERR
    rule(pci.COMMAND, 2, writable=int(command | pci.Command.INTX_DISABLE))
    rule(pci.STATUS, 2, w1c=pci.STATUS_ERRORS)
    rule(pci.CACHE_LINE_SIZE, 1, writable=0xFF)
    rule(pci.INTERRUPT_LINE, 1, writable=0xFF)
    for bar in BARS:
        rule(pci.BAR0 + 4 * bar.index, 8 if bar.is_64bit else 4, writable=WORD & ~(bar.nbytes - 1))
    for field in MASKED.fields:
        rule(base + field.offset, field.nbytes, field.writable, field.w1c)
    return config, rules


@settings(max_examples=EXAMPLES, deadline=None)
@given(accesses=st.lists(writes, max_size=12), offset=offsets, nbytes=widths)
def test_every_byte_of_configuration_space_keeps_to_its_masks(
    accesses: list[tuple[int, bytes]], offset: int, nbytes: int
) -> None:
    config, rules = space()
    model = [value for _, value, _, _ in rules]

    for start, data in accesses:
        config.write(start, data)
        for at in range(start, min(start + len(data), CONFIG_NBYTES)):
            given_byte, (_, _, writable, w1c) = data[at - start], rules[at]
            model[at] = (model[at] & ~writable | given_byte & writable) & ~(given_byte & w1c)

    assert config.read(0, CONFIG_NBYTES) == bytes(model)
    assert config.read(offset, nbytes) == bytes(model)[offset : offset + nbytes].ljust(nbytes, b"\0")


@settings(max_examples=EXAMPLES, deadline=None)
@given(accesses=st.lists(writes, max_size=12))
def test_a_reset_brings_every_byte_back_and_the_capability_lists_stay(accesses: list[tuple[int, bytes]]) -> None:
    function = PciFunction("fn", IDENTITY, BARS, MsixLayout(2, 4), standard=(MASKED,), extended=EXTENDED)
    before = function.config_read(0, CONFIG_NBYTES)

    for offset, data in accesses:
        function.config_write(offset, data)
        now = function.config_read(0, CONFIG_NBYTES)
        assert now[:4] + now[8:12] + now[0x2C:0x30] + now[0x34:0x35] == (
            before[:4] + before[8:12] + before[0x2C:0x30] + before[0x34:0x35]
        )
    function.reset()

    assert function.config_read(0, CONFIG_NBYTES) == before


def accelerator() -> Accelerator:
    engine = Engine(UnitSettings("unit"), [EndpointSettings(0x100, "accel")])
    return Accelerator("accel", bay(lambda function: DmaDoor(engine, 0x100, function)), {"devmem": 4096})


bars = st.sampled_from([0, 0, 2, 4, 1, 5, 6, 255])
places = st.one_of(st.integers(0, 0x60), st.integers(0x7F0, 0x1010), st.integers(0, 1 << 64), st.just(WORD))


@settings(max_examples=EXAMPLES, deadline=None)
@given(accesses=st.lists(st.tuples(bars, places, st.binary(max_size=20)), max_size=12), bar=bars, at=places, n=widths)
def test_an_accelerator_reads_as_wide_as_it_is_asked_and_keeps_its_read_only_registers(
    accesses: list[tuple[int, int, bytes]], bar: int, at: int, n: int
) -> None:
    function = accelerator()

    for number, offset, data in accesses:
        function.bar_write(number, offset, data)

    assert len(function.bar_read(bar, at, n)) == n
    assert function.bar_read(0, Register.ID, 4) == ID_VALUE.to_bytes(4, "little")
    assert function.bar_read(0, Register.DEVMEM_NBYTES, 8) == (4096).to_bytes(8, "little")
    assert function.bar_read(bar, function.bars[-1].nbytes + at, n) == bytes(n)


@settings(max_examples=EXAMPLES, deadline=None)
@given(accesses=st.lists(st.tuples(places, st.binary(max_size=20)), max_size=12))
def test_device_memory_holds_what_was_written_to_it_and_nothing_behind_its_end(
    accesses: list[tuple[int, bytes]],
) -> None:
    function, model = accelerator(), bytearray(4096)

    for offset, data in accesses:
        function.bar_write(2, offset, data)
        if offset < len(model):
            inside = data[: len(model) - offset]
            model[offset : offset + len(inside)] = inside

    assert function.bar_read(2, 0, 4096) == model


@settings(max_examples=EXAMPLES, deadline=None)
@given(accesses=st.lists(st.tuples(st.integers(0, 0x48), st.binary(max_size=12)), max_size=16))
def test_the_common_configuration_takes_only_what_its_fields_may_be(accesses: list[tuple[int, bytes]]) -> None:
    rig = NotingRig()

    for offset, data in accesses:
        rig.function.bar_write(0, offset, data)

    common = rig.driver.common()
    status = virtio.Status(common.device_status)
    assert common.num_queues == 2
    assert common.config_msix_vector in {0, 1, 2, virtio.NO_VECTOR}
    assert common.queue_msix_vector in {0, 1, 2, virtio.NO_VECTOR}
    assert common.queue_size & (common.queue_size - 1) == 0
    assert common.queue_size <= (256, 64)[common.queue_select] if common.queue_select < 2 else not common.queue_size
    assert virtio.Status.FEATURES_OK in status or virtio.Status.DRIVER_OK not in status
    assert (common.queue_notif_config_data, common.queue_reset, common.admin_queue_num) == (0, 0, 0)
