"""vfio-user layouts against the sizes and offsets QEMU's client uses."""

from __future__ import annotations

from dataclasses import fields

import pytest

from vdev.wire import vfio_user as wire
from vdev.wire.record import Record
from vdev.wire.vfio_user import Command, DmaLayout

SIZES: dict[type[Record], int] = {
    wire.Header: 16,
    wire.Version: 4,
    wire.DmaMap: 32,
    wire.DmaUnmap: 24,
    wire.DeviceInfo: 16,
    wire.RegionInfo: 32,
    wire.RegionIoFds: 16,
    wire.IrqInfo: 16,
    wire.SetIrqs: 20,
    wire.RegionAccess: 16,
    wire.WriteMulti: 8,
    wire.WriteMultiEntry: 24,
    wire.DeviceFeature: 8,
    wire.MigrationData: 8,
    wire.DmaAccess: 16,
    wire.DmaAccessShort: 12,
}


@pytest.mark.parametrize("kind", SIZES, ids=lambda kind: kind.__name__)
def test_every_record_has_its_size_its_fields_and_survives_a_round_trip(kind: type[Record]) -> None:
    raw = bytes(range(1, SIZES[kind] + 1))

    record = kind.parse(raw)

    assert kind.layout.size == SIZES[kind]
    assert len(fields(record)) == len(kind.layout.unpack(raw))  # type: ignore[arg-type]
    assert record.pack() == raw


def test_numbers_are_those_of_the_document() -> None:
    names = (
        "VERSION DMA_MAP DMA_UNMAP DEVICE_GET_INFO DEVICE_GET_REGION_INFO DEVICE_GET_REGION_IO_FDS DEVICE_GET_IRQ_INFO"
    )
    names += " DEVICE_SET_IRQS REGION_READ REGION_WRITE DMA_READ DMA_WRITE DEVICE_RESET - REGION_WRITE_MULTI"
    names += " DEVICE_FEATURE MIG_DATA_READ MIG_DATA_WRITE"
    numbered = {name: number for number, name in enumerate(names.split(), 1) if name != "-"}

    assert {command.name: command.value for command in Command} == numbered


def test_a_message_counts_its_header() -> None:
    raw = wire.message(7, Command.DEVICE_RESET, b"abc", wire.NO_REPLY)

    header = wire.Header.parse(raw)

    assert (header.id, header.command, header.size, header.flags) == (7, 13, 19, 0x10)
    assert not header.is_reply
    assert not header.wants_reply


def test_an_error_reply_is_header_only_with_the_error_flag() -> None:
    request = wire.Header(3, Command.DMA_MAP, 48, 0, 0)

    answer = wire.error_reply(request, 22)

    assert wire.Header.parse(answer) == wire.Header(3, Command.DMA_MAP, 16, 0x21, 22)
    assert len(answer) == 16


def test_a_late_reply_loses_its_payload() -> None:
    request = wire.Header(3, Command.REGION_READ, 32, 0, 0)

    late = wire.late_reply(wire.reply(request, bytes(24)))

    assert wire.Header.parse(late) == wire.Header(3, Command.REGION_READ, 16, 0x21, 110)
    assert len(late) == 16


@pytest.mark.parametrize(
    "raw", [wire.message(1, Command.DMA_READ, bytes(16)), wire.message(1, 2, b"", wire.TYPE_REPLY)]
)
def test_our_requests_and_bare_replies_may_be_late(raw: bytes) -> None:
    assert wire.late_reply(raw) == raw


def test_the_specified_dma_layout_puts_data_at_message_offset_32() -> None:
    payload = wire.dma_payload(DmaLayout.SPECIFIED, 0x1000, 3, b"abc")

    assert payload == (0x1000).to_bytes(8, "little") + (3).to_bytes(8, "little") + b"abc"
    assert wire.dma_data(DmaLayout.SPECIFIED, payload, 3) == b"abc"


def test_the_old_dma_layout_puts_data_at_message_offset_28_and_pads_the_end() -> None:
    payload = wire.dma_payload(DmaLayout.SHORT_COUNT, 0x1000, 3, b"abc")

    assert payload == (0x1000).to_bytes(8, "little") + (3).to_bytes(4, "little") + b"abc" + bytes(4)
    assert wire.dma_data(DmaLayout.SHORT_COUNT, payload, 3) == b"abc"


def test_the_zero_count_probe_is_the_same_in_both_layouts() -> None:
    assert wire.dma_payload(DmaLayout.SPECIFIED, 0, 0) == wire.dma_payload(DmaLayout.SHORT_COUNT, 0, 0)
