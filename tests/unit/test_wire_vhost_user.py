"""vhost-user messages byte by byte, as QEMU's documents and client have them."""

from __future__ import annotations

import pytest

from vdev.transports.vhost_session import COMMANDS
from vdev.wire import vhost_user as wire
from vdev.wire.record import Record
from vdev.wire.vhost_user import Command, ProtocolFeature

MESSAGES = """
GET_FEATURES SET_FEATURES SET_OWNER RESET_OWNER SET_MEM_TABLE SET_LOG_BASE SET_LOG_FD SET_VRING_NUM
SET_VRING_ADDR SET_VRING_BASE GET_VRING_BASE SET_VRING_KICK SET_VRING_CALL SET_VRING_ERR GET_PROTOCOL_FEATURES
SET_PROTOCOL_FEATURES GET_QUEUE_NUM SET_VRING_ENABLE SEND_RARP NET_SET_MTU SET_BACKEND_REQ_FD IOTLB_MSG
SET_VRING_ENDIAN GET_CONFIG SET_CONFIG CREATE_CRYPTO_SESSION CLOSE_CRYPTO_SESSION POSTCOPY_ADVISE
POSTCOPY_LISTEN POSTCOPY_END GET_INFLIGHT_FD SET_INFLIGHT_FD GPU_SET_SOCKET RESET_DEVICE VRING_KICK
GET_MAX_MEM_SLOTS ADD_MEM_REG REM_MEM_REG SET_STATUS GET_STATUS GET_SHARED_OBJECT SET_DEVICE_STATE_FD
CHECK_DEVICE_STATE GET_SHMEM_CONFIG
"""  # from 1 on
PROTOCOL_FEATURES = """
MQ LOG_SHMFD RARP REPLY_ACK MTU BACKEND_REQ CROSS_ENDIAN CRYPTO_SESSION PAGEFAULT CONFIG BACKEND_SEND_FD
HOST_NOTIFIER INFLIGHT_SHMFD RESET_DEVICE INBAND_NOTIFICATIONS CONFIGURE_MEM_SLOTS STATUS
"""  # from bit 0 on


@pytest.mark.parametrize(
    ("record", "nbytes"),
    [
        (wire.Header, 12),
        (wire.U64, 8),
        (wire.RingState, 8),
        (wire.RingAddress, 40),
        (wire.MemoryRegion, 32),
        (wire.MemoryTable, 8),
        (wire.SingleRegion, 40),
        (wire.ConfigAccess, 12),
    ],
)
def test_records_have_their_sizes(record: type[Record], nbytes: int) -> None:
    assert record.layout.size == nbytes


def test_a_ring_address_names_the_used_ring_before_the_available_one() -> None:
    data = b"".join(
        [(1).to_bytes(4, "little"), bytes(4), *(n.to_bytes(8, "little") for n in (0x1000, 0x2000, 0x3000, 0x4000))]
    )

    ring = wire.RingAddress.parse(data)

    assert (ring.index, ring.desc, ring.used, ring.avail, ring.log) == (1, 0x1000, 0x2000, 0x3000, 0x4000)


def test_a_single_region_has_a_padding_in_front() -> None:
    data = b"".join(n.to_bytes(8, "little") for n in (0xDEAD, 0x1000, 0x2000, 0x7F0000000000, 0x3000))

    assert wire.SingleRegion.parse(data).region == wire.MemoryRegion(0x1000, 0x2000, 0x7F0000000000, 0x3000)


def test_a_reply_has_the_requests_number_and_the_flags_qemu_demands() -> None:
    request = wire.Header(Command.GET_FEATURES, wire.VERSION | wire.NEED_REPLY, 0)

    assert wire.reply(request, b"12345678") == b"\x01\0\0\0\x05\0\0\0\x08\0\0\0" + b"12345678"


def test_an_acknowledgement_is_a_reply_with_an_errno() -> None:
    request = wire.Header(Command.SET_VRING_ENABLE, wire.VERSION | wire.NEED_REPLY, 8)

    assert wire.acknowledgement(request, 22) == b"\x12\0\0\0\x05\0\0\0\x08\0\0\0" + bytes([22]) + bytes(7)


def test_the_configuration_change_is_message_2_without_a_body() -> None:
    assert wire.message(wire.BACKEND_CONFIG_CHANGE_MSG) == b"\x02\0\0\0\x01\0\0\0\0\0\0\0"


def test_numbers_are_those_of_the_document() -> None:
    numbered = {name: number for number, name in enumerate(MESSAGES.split(), 1)}

    assert {command.name: command.value for command in Command} == numbered


def test_bits_are_those_of_the_document() -> None:
    numbered = {name: 1 << bit for bit, name in enumerate(PROTOCOL_FEATURES.split())}

    assert {feature.name: feature.value for feature in ProtocolFeature} == numbered
    assert wire.F_PROTOCOL_FEATURES == 1 << 30


def test_every_command_with_a_reply_of_its_own_is_a_get() -> None:
    assert all(row.answers == wire.COMMAND_NAMES[number].startswith("GET_") for number, row in COMMANDS.items())
