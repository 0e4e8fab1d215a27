"""One vhost-user conversation without its socket: a complete message in, the reply's bytes (or None) out.

`COMMANDS` is the whole protocol. A row's handler gets the parsed body, what follows it, and the message's fds; it
returns the reply's body (None: it has none of its own) or raises MessageError. Fds nobody took are closed afterwards.

A refusal is an errno in the acknowledgement where the front end asked for one (REPLY_ACK), a reply without body where
the message has a reply of its own (QEMU would wait for it for ever), and otherwise one line in the log.

Protocol features, by what QEMU (10.2 to 11.1) does with them:

    MQ                   GET_QUEUE_NUM once; without it the protocol knows one ring, and we have two
    REPLY_ACK            QEMU waits for SET_VRING_ENABLE and memory changes: no guest runs before they took effect
    BACKEND_REQ, CONFIG  the device configuration, and the channel that says it changed
    CONFIGURE_MEM_SLOTS  memory hot-plug beyond 8 regions, and only what changed is sent, so that rings stay in reach
    RESET_DEVICE         not sent for this device yet; it would prove a virtio reset, which nothing else does
    STATUS               not offered: for this device QEMU sends FEATURES_OK and nothing else, three round trips at each
                         start, and where it does send 0 (other devices) it does so at QMP `stop`, too
    INFLIGHT_SHMFD       not offered: QEMU does not use it with this device
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, NamedTuple

from vdev.errors import MessageError
from vdev.functions.vhost import VhostCarrier
from vdev.transports.stream import Message, ReceivedFds
from vdev.transports.vhost_fds import BackendChannel, RingFds
from vdev.transports.vhost_memory import VhostMemory
from vdev.wire import vhost_user as wire
from vdev.wire.record import Record
from vdev.wire.vhost_user import Command, ProtocolFeature

PROTOCOL_FEATURES = int(
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)


class VhostSession:
    """The state of one connection's conversation; `on_refusal` is told in words of each refused message."""

    def __init__(
        self,
        carrier: VhostCarrier,
        memory: VhostMemory,
        rings: RingFds,
        channel: BackendChannel,
        *,
        on_refusal: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._on_refusal = on_refusal
        self._carrier = carrier
        self._memory = memory
        self._rings = rings
        self._channel = channel
        self._protocol_features = 0  # negotiated
        self.handled = 0
        self.refused = 0

    def handle(self, message: Message[wire.Header]) -> bytes | None:
        """The reply to one message, None when it gets none; closes the fds that were not taken."""
        header = message.header
        row = COMMANDS.get(header.command)
        self.handled += 1
        with message.fds:
            try:
                body = self._dispatch(row, header, message.payload, message.fds)
            except MessageError as error:
                self._note_refusal(header, error)
                if row is not None and row.answers:
                    return wire.reply(header, b"")
                return self._acknowledge(header, error.errno)
        return self._acknowledge(header, 0) if body is None else wire.reply(header, body)

    def _acknowledge(self, header: wire.Header, code: int) -> bytes | None:
        wanted = header.needs_reply and self._protocol_features & ProtocolFeature.REPLY_ACK
        return wire.acknowledgement(header, code) if wanted else None

    def _dispatch(self, row: Row | None, header: wire.Header, body: memoryview, fds: ReceivedFds) -> bytes | None:
        if header.flags & wire.VERSION_MASK != wire.VERSION or header.flags & wire.REPLY:
            raise MessageError(errno.EPROTO, f"flags {header.flags:#x} are not those of a request of version 1")
        if row is None:
            raise MessageError(errno.ENOSYS, "not known, or not for this device")
        if fds.truncated or len(fds) > row.max_fds:
            raise MessageError(
                errno.EINVAL, f"{len(fds)}{' or more' * fds.truncated} fds, at most {row.max_fds} belong"
            )
        record_nbytes = row.record.layout.size if row.record is not None else 0
        if len(body) < record_nbytes or (len(body) > record_nbytes and not row.has_tail):
            raise MessageError(errno.EINVAL, f"{len(body)} bytes, {record_nbytes} belong")
        record = row.record.parse(body) if row.record is not None else None
        return row.handler(self, record, body[record_nbytes:], fds)

    def _note_refusal(self, header: wire.Header, error: MessageError) -> None:
        self.refused += 1
        name = wire.COMMAND_NAMES.get(header.command, str(header.command))
        self._on_refusal(f"refused {name} (errno {error.errno}): {error}")

    # Handlers, in the order of COMMANDS

    def _get_features(self, request: None, rest: memoryview, fds: ReceivedFds) -> bytes:
        return wire.U64(self._carrier.offered_features).pack()

    def _set_features(self, features: wire.U64, rest: memoryview, fds: ReceivedFds) -> None:
        self._carrier.set_features(features.value)

    def _get_protocol_features(self, request: None, rest: memoryview, fds: ReceivedFds) -> bytes:
        return wire.U64(PROTOCOL_FEATURES).pack()

    def _set_protocol_features(self, features: wire.U64, rest: memoryview, fds: ReceivedFds) -> None:
        unknown = features.value & ~PROTOCOL_FEATURES
        if unknown:
            raise MessageError(errno.EINVAL, f"protocol features {unknown:#x} were not offered")
        self._protocol_features = features.value
        self._channel.config_negotiated = bool(features.value & ProtocolFeature.CONFIG)

    def _get_queue_num(self, request: None, rest: memoryview, fds: ReceivedFds) -> bytes:
        return wire.U64(len(self._carrier.rings)).pack()

    def _get_max_mem_slots(self, request: None, rest: memoryview, fds: ReceivedFds) -> bytes:
        return wire.U64(wire.MAX_MEM_SLOTS).pack()

    def _set_owner(self, request: None, rest: memoryview, fds: ReceivedFds) -> None:
        """A connection is its own owner."""

    def _set_backend_req_fd(self, request: None, rest: memoryview, fds: ReceivedFds) -> None:
        if len(fds) != 1:
            raise MessageError(errno.EINVAL, "the back-end channel comes as one fd")
        self._channel.set(fds.take()[0])

    def _set_mem_table(self, table: wire.MemoryTable, rest: memoryview, fds: ReceivedFds) -> None:
        nbytes = wire.MemoryRegion.layout.size
        if table.count > wire.MAX_TABLE_REGIONS or len(rest) != table.count * nbytes or len(fds) != table.count:
            raise MessageError(
                errno.EINVAL, f"a table of {table.count} regions in {len(rest)} bytes with {len(fds)} fds"
            )
        regions = [wire.MemoryRegion.parse(rest, position * nbytes) for position in range(table.count)]
        try:
            self._memory.replace(regions, fds.peek_all())
        finally:
            self._carrier.memory_changed()

    def _add_mem_reg(self, request: wire.SingleRegion, rest: memoryview, fds: ReceivedFds) -> None:
        fd = fds.peek()
        if fd is None:
            raise MessageError(errno.EINVAL, "a memory region comes with an fd")
        self._memory.add(request.region, fd)
        self._carrier.memory_changed()

    def _rem_mem_reg(self, request: wire.SingleRegion, rest: memoryview, fds: ReceivedFds) -> None:
        self._memory.remove(request.region)
        self._carrier.memory_changed()

    def _set_vring_num(self, state: wire.RingState, rest: memoryview, fds: ReceivedFds) -> None:
        self._carrier.set_size(state.index, state.num)

    def _set_vring_base(self, state: wire.RingState, rest: memoryview, fds: ReceivedFds) -> None:
        self._carrier.set_base(state.index, state.num)

    def _set_vring_addr(self, ring: wire.RingAddress, rest: memoryview, fds: ReceivedFds) -> None:
        try:
            desc, avail, used = (self._memory.gpa_of(hva) for hva in (ring.desc, ring.avail, ring.used))
        except MessageError:
            self._carrier.forget_addresses(ring.index)
            raise
        self._carrier.set_addresses(ring.index, desc, avail, used)

    def _set_vring_kick(self, request: wire.U64, rest: memoryview, fds: ReceivedFds) -> None:
        index, fd = self._ring_fd(request, fds)
        if fd is None:
            raise MessageError(errno.ENOTSUP, "a ring without a doorbell would have to be polled for ever")
        self._rings.set_kick(index, fd)
        self._carrier.set_kick(index)

    def _set_vring_call(self, request: wire.U64, rest: memoryview, fds: ReceivedFds) -> None:
        self._rings.set_call(*self._ring_fd(request, fds))

    def _set_vring_err(self, request: wire.U64, rest: memoryview, fds: ReceivedFds) -> None:
        self._rings.set_error(*self._ring_fd(request, fds))

    def _set_vring_enable(self, state: wire.RingState, rest: memoryview, fds: ReceivedFds) -> None:
        if state.num > 1:
            raise MessageError(errno.EINVAL, f"{state.num} neither enables nor disables")
        self._carrier.enable(state.index, bool(state.num))

    def _get_vring_base(self, state: wire.RingState, rest: memoryview, fds: ReceivedFds) -> bytes:
        base = self._carrier.stop(state.index)
        self._rings.set_kick(state.index, None)
        return wire.RingState(state.index, base).pack()

    def _get_config(self, access: wire.ConfigAccess, rest: memoryview, fds: ReceivedFds) -> bytes:
        self._check_config(access, rest)
        return access.pack() + self._carrier.config_read(access.offset, access.nbytes)

    def _set_config(self, access: wire.ConfigAccess, rest: memoryview, fds: ReceivedFds) -> None:
        self._check_config(access, rest)
        if access.flags != wire.CONFIG_BY_DRIVER:
            raise MessageError(errno.ENOTSUP, "migration is not there")
        self._carrier.config_write(access.offset, bytes(rest))

    def _reset_device(self, request: None, rest: memoryview, fds: ReceivedFds) -> None:
        self._carrier.reset()

    def _ring_fd(self, request: wire.U64, fds: ReceivedFds) -> tuple[int, int | None]:
        """Ring index and eventfd, the caller's now, or None for none."""
        index = request.value & wire.RING_INDEX_MASK
        if request.value & ~(wire.RING_INDEX_MASK | wire.RING_NO_FD) or index >= len(self._carrier.rings):
            raise MessageError(errno.EINVAL, f"{request.value:#x} names no ring")
        if len(fds) != (0 if request.value & wire.RING_NO_FD else 1):
            raise MessageError(errno.EINVAL, f"{len(fds)} fds for {request.value:#x}")
        if not fds.all_eventfds():
            raise MessageError(errno.EINVAL, "the fd is not an eventfd")
        taken = fds.take()
        return index, taken[0] if taken else None

    def _check_config(self, access: wire.ConfigAccess, rest: memoryview) -> None:
        if len(rest) != access.nbytes or access.offset + access.nbytes > wire.MAX_CONFIG_NBYTES:
            raise MessageError(
                errno.EINVAL, f"{access.nbytes} bytes of configuration at {access.offset} in {len(rest)} bytes"
            )


class Row(NamedTuple):
    """What one command's body starts with, what handles it, and how many fds may come with it.

    `answers`: it has a reply of its own, in place of an acknowledgement. `has_tail`: more follows the record.
    """

    record: type[Record] | None
    handler: Callable[[VhostSession, Any, memoryview, ReceivedFds], bytes | None]
    max_fds: int = 0
    answers: bool = False
    has_tail: bool = False


# Handlers are private to VhostSession, and this table, in the same module, is their one user.
COMMANDS: dict[int, Row] = {
    Command.GET_FEATURES: Row(None, VhostSession._get_features, answers=True),
    Command.SET_FEATURES: Row(wire.U64, VhostSession._set_features),
    Command.GET_PROTOCOL_FEATURES: Row(None, VhostSession._get_protocol_features, answers=True),
    Command.SET_PROTOCOL_FEATURES: Row(wire.U64, VhostSession._set_protocol_features),
    Command.GET_QUEUE_NUM: Row(None, VhostSession._get_queue_num, answers=True),
    Command.GET_MAX_MEM_SLOTS: Row(None, VhostSession._get_max_mem_slots, answers=True),
    Command.SET_OWNER: Row(None, VhostSession._set_owner),
    Command.SET_BACKEND_REQ_FD: Row(None, VhostSession._set_backend_req_fd, max_fds=1),
    Command.SET_MEM_TABLE: Row(
        wire.MemoryTable, VhostSession._set_mem_table, max_fds=wire.MAX_TABLE_REGIONS, has_tail=True
    ),
    Command.ADD_MEM_REG: Row(wire.SingleRegion, VhostSession._add_mem_reg, max_fds=1),
    Command.REM_MEM_REG: Row(wire.SingleRegion, VhostSession._rem_mem_reg, max_fds=1),  # an fd is allowed, and unused
    Command.SET_VRING_NUM: Row(wire.RingState, VhostSession._set_vring_num),
    Command.SET_VRING_BASE: Row(wire.RingState, VhostSession._set_vring_base),
    Command.SET_VRING_ADDR: Row(wire.RingAddress, VhostSession._set_vring_addr),
    Command.SET_VRING_KICK: Row(wire.U64, VhostSession._set_vring_kick, max_fds=1),
    Command.SET_VRING_CALL: Row(wire.U64, VhostSession._set_vring_call, max_fds=1),
    Command.SET_VRING_ERR: Row(wire.U64, VhostSession._set_vring_err, max_fds=1),
    Command.SET_VRING_ENABLE: Row(wire.RingState, VhostSession._set_vring_enable),
    Command.GET_VRING_BASE: Row(wire.RingState, VhostSession._get_vring_base, answers=True),
    Command.GET_CONFIG: Row(wire.ConfigAccess, VhostSession._get_config, answers=True, has_tail=True),
    Command.SET_CONFIG: Row(wire.ConfigAccess, VhostSession._set_config, has_tail=True),
    Command.RESET_DEVICE: Row(None, VhostSession._reset_device),
}
