"""One vfio-user conversation without its socket: a complete message in, the reply's bytes (or None) out.

`COMMANDS` is the whole protocol. A row's handler gets the parsed payload, what follows it, and the message's fds; it
returns the reply's payload or raises MessageError with the errno to answer. Fds nobody took are closed afterwards.
Everything is answered at once: a register access is never held, because QEMU waits for it under its global lock.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Container
from typing import Any, NamedTuple

from vdev.errors import MessageError
from vdev.pci.function import CONFIG_NBYTES, Function
from vdev.transports.ram import ConnectionRam
from vdev.transports.stream import Message, ReceivedFds
from vdev.transports.vfio_irqs import Vectors
from vdev.wire import vfio_user as wire
from vdev.wire.record import Record
from vdev.wire.vfio_user import Command

log = logging.getLogger(__name__)

MAX_VERSION_TEXT_NBYTES = 4096  # JSON takes many times its size in memory, and QEMU sends 200 bytes
DEFAULT_TRANSFER_NBYTES = 1 << 20  # of a client that does not say
BAR_ACCESS_NBYTES = (1, 2, 4, 8)
CAPABILITIES = {
    "max_msg_fds": wire.MAX_FDS,
    "max_data_xfer_size": wire.MAX_TRANSFER_NBYTES,
    "pgsizes": wire.PAGE_SIZES,
    "max_dma_maps": wire.MAX_DMA_MAPS,
    # Accepted all the same: QEMU 10.1 and 10.2 take `true` for an order to queue every write.
    "write_multiple": False,
}


class Session:
    """The state of one connection's conversation.

    `on_reset` is told of DEVICE_RESET before the function is, `on_refusal` in words of each refused message.
    """

    def __init__(
        self,
        function: Function,
        ram: ConnectionRam,
        vectors: Vectors,
        on_reset: Callable[[], None] = lambda: None,
        on_refusal: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._function = function
        self._ram = ram
        self._vectors = vectors
        self._on_reset = on_reset
        self._on_refusal = on_refusal
        self._bar_nbytes = {bar.index: bar.nbytes for bar in function.bars}
        self._is_open = False  # VERSION was answered
        self.client_transfer_nbytes = DEFAULT_TRANSFER_NBYTES
        self.handled = 0
        self.refused = 0

    def handle(self, message: Message[wire.Header]) -> bytes | None:
        """The reply to one request, None when it wants none; closes the fds that were not taken."""
        header = message.header
        self.handled += 1
        with message.fds:
            try:
                payload = self._dispatch(header, message.payload, message.fds)
            except MessageError as error:
                self._note_refusal(header, error)
                return wire.error_reply(header, error.errno) if header.wants_reply else None
        return wire.reply(header, payload) if header.wants_reply else None

    def _dispatch(self, header: wire.Header, payload: memoryview, fds: ReceivedFds) -> bytes:
        row = COMMANDS.get(header.command)
        if row is None:
            raise MessageError(errno.ENOSYS, "unknown command")
        if header.flags & wire.TYPE_MASK:
            raise MessageError(errno.EINVAL, f"neither request nor reply: flags {header.flags:#x}")
        if fds.truncated or len(fds) > row.max_fds:
            raise MessageError(
                errno.EINVAL, f"{len(fds)}{' or more' * fds.truncated} fds, at most {row.max_fds} belong"
            )
        if self._is_open == (header.command == Command.VERSION):
            raise MessageError(errno.EINVAL, "VERSION comes first, and once")
        record_nbytes = row.record.layout.size if row.record is not None else 0
        if len(payload) < record_nbytes:
            raise MessageError(errno.EINVAL, f"{len(payload)} bytes of payload, at least {record_nbytes} belong")
        record = row.record.parse(payload) if row.record is not None else None
        return row.handler(self, record, payload[record_nbytes:], fds)

    def _note_refusal(self, header: wire.Header, error: MessageError) -> None:
        self.refused += 1
        row = COMMANDS.get(header.command)
        if row is not None and row.probes:
            log.debug("%s: %s", self._function.name, error)
        else:
            name = wire.COMMAND_NAMES.get(header.command, str(header.command))
            self._on_refusal(f"refused {name} (errno {error.errno}): {error}")

    # Handlers, in the order of COMMANDS

    def _version(self, version: wire.Version, text: memoryview, fds: ReceivedFds) -> bytes:
        if version.major != 0:
            raise MessageError(errno.EINVAL, f"protocol version {version.major}.{version.minor}, we speak 0.0")
        proposed = _proposed_capabilities(bytes(text))
        self.client_transfer_nbytes = proposed.get("max_data_xfer_size", DEFAULT_TRANSFER_NBYTES)
        self._is_open = True
        ours, answer = wire.Version(0, 0).pack(), _version_text(proposed)
        # QEMU reads the reply into a buffer of its request's size. Without text the defaults hold, which suit us too.
        return ours + answer if len(text) >= len(answer) else ours

    def _dma_map(self, request: wire.DmaMap, rest: memoryview, fds: ReceivedFds) -> bytes:
        self._ram.map(request, fds.peek())
        self._function.memory_changed()
        return b""

    def _dma_unmap(self, request: wire.DmaUnmap, rest: memoryview, fds: ReceivedFds) -> bytes:
        _check_argsz(request.argsz, request)
        self._ram.unmap(request)
        self._function.memory_changed()
        return request.pack()

    def _device_info(self, request: wire.DeviceInfo, rest: memoryview, fds: ReceivedFds) -> bytes:
        _check_argsz(request.argsz, request)
        flags = wire.DEVICE_FLAG_RESET | wire.DEVICE_FLAG_PCI
        return wire.DeviceInfo(request.layout.size, flags, wire.NUM_REGIONS, wire.NUM_IRQS).pack()

    def _region_info(self, request: wire.RegionInfo, rest: memoryview, fds: ReceivedFds) -> bytes:
        _check_argsz(request.argsz, request)
        nbytes = self._region_nbytes(request.index)
        # Never MMAP: one mappable region would end posted writes for the whole device.
        flags = wire.REGION_FLAG_READ | wire.REGION_FLAG_WRITE if nbytes else 0
        return wire.RegionInfo(request.layout.size, flags, request.index, 0, nbytes, 0).pack()

    def _region_io_fds(self, request: wire.RegionIoFds, rest: memoryview, fds: ReceivedFds) -> bytes:
        _check_argsz(request.argsz, request)
        self._region_nbytes(request.index)
        return wire.RegionIoFds(request.layout.size, 0, request.index, 0).pack()

    def _irq_info(self, request: wire.IrqInfo, rest: memoryview, fds: ReceivedFds) -> bytes:
        _check_argsz(request.argsz, request)
        return self._vectors.info(request.index).pack()

    def _set_irqs(self, request: wire.SetIrqs, rest: memoryview, fds: ReceivedFds) -> bytes:
        self._vectors.set(request, rest, fds)
        return b""

    def _region_read(self, access: wire.RegionAccess, rest: memoryview, fds: ReceivedFds) -> bytes:
        self._check_access(access)
        if access.region == wire.REGION_CONFIG:
            data = self._function.config_read(access.offset, access.count)
        else:
            data = self._function.bar_read(access.region, access.offset, access.count)
        assert len(data) == access.count, f"{self._function.name} read {len(data)} bytes for {access}"
        return access.pack() + data

    def _region_write(self, access: wire.RegionAccess, rest: memoryview, fds: ReceivedFds) -> bytes:
        if len(rest) != access.count:
            raise MessageError(errno.EINVAL, f"{len(rest)} bytes of data for a write of {access.count}")
        self._check_access(access)
        if access.region == wire.REGION_CONFIG:
            self._function.config_write(access.offset, bytes(rest))
        else:
            self._function.bar_write(access.region, access.offset, bytes(rest))
        return access.pack()

    def _region_write_multi(self, request: wire.WriteMulti, rest: memoryview, fds: ReceivedFds) -> bytes:
        entry_nbytes = wire.WriteMultiEntry.layout.size
        if request.count > wire.MAX_MULTI_WRITES or len(rest) < request.count * entry_nbytes:
            raise MessageError(errno.EINVAL, f"{request.count} writes in {len(rest)} bytes")
        # The writes are independent posted writes that QEMU put into one envelope: a bad one does not spoil the rest.
        problem: MessageError | None = None
        for position in range(request.count):
            entry = wire.WriteMultiEntry.parse(rest, position * entry_nbytes)
            access = wire.RegionAccess(entry.offset, entry.region, entry.count)
            try:
                self._region_write(access, memoryview(entry.data)[: entry.count], fds)
            except MessageError as error:
                problem = problem or error
        if problem is not None:
            raise problem
        return request.pack()

    def _device_reset(self, request: None, rest: memoryview, fds: ReceivedFds) -> bytes:
        self._on_reset()
        self._function.reset()
        self._vectors.reset()
        return b""

    def _device_feature(self, request: wire.DeviceFeature, rest: memoryview, fds: ReceivedFds) -> bytes:
        raise MessageError(errno.ENOTTY, f"device feature {request.flags & 0xFFFF} is not there")

    def _migration_data(self, request: wire.MigrationData, rest: memoryview, fds: ReceivedFds) -> bytes:
        raise MessageError(errno.ENOTSUP, "migration is not there")

    # Regions

    def _region_nbytes(self, index: int) -> int:
        """Size of region `index`, 0 when it is absent; MessageError when there is no such index."""
        if index >= wire.NUM_REGIONS:
            raise MessageError(errno.EINVAL, f"there is no region {index}")
        return CONFIG_NBYTES if index == wire.REGION_CONFIG else self._bar_nbytes.get(index, 0)

    def _check_access(self, access: wire.RegionAccess) -> None:
        """MessageError unless the access lies in its region and has a size QEMU can mean."""
        nbytes = self._region_nbytes(access.region)
        if not access.count or access.offset + access.count > nbytes:
            raise MessageError(errno.EINVAL, f"{access} leaves the region's {nbytes:#x} bytes")
        if access.region != wire.REGION_CONFIG and access.count not in BAR_ACCESS_NBYTES:
            raise MessageError(errno.EINVAL, f"{access} is not 1, 2, 4 or 8 bytes")


class Row(NamedTuple):
    """What one command's payload starts with, what answers it, and how many fds may come with it.

    `probes`: clients send it to find out what is there, so that a refusal is an ordinary answer.
    """

    record: type[Record] | None
    handler: Callable[[Session, Any, memoryview, ReceivedFds], bytes]
    max_fds: int = 0
    probes: bool = False


# Handlers are private to Session, and this table, in the same module, is their one user.
COMMANDS: dict[int, Row] = {
    Command.VERSION: Row(wire.Version, Session._version),
    Command.DMA_MAP: Row(wire.DmaMap, Session._dma_map, max_fds=1),
    Command.DMA_UNMAP: Row(wire.DmaUnmap, Session._dma_unmap),
    Command.DEVICE_GET_INFO: Row(wire.DeviceInfo, Session._device_info),
    Command.DEVICE_GET_REGION_INFO: Row(wire.RegionInfo, Session._region_info),
    Command.DEVICE_GET_REGION_IO_FDS: Row(wire.RegionIoFds, Session._region_io_fds),
    Command.DEVICE_GET_IRQ_INFO: Row(wire.IrqInfo, Session._irq_info, probes=True),
    Command.DEVICE_SET_IRQS: Row(wire.SetIrqs, Session._set_irqs, max_fds=wire.MAX_FDS),
    Command.REGION_READ: Row(wire.RegionAccess, Session._region_read),
    Command.REGION_WRITE: Row(wire.RegionAccess, Session._region_write),
    Command.DEVICE_RESET: Row(None, Session._device_reset),
    Command.REGION_WRITE_MULTI: Row(wire.WriteMulti, Session._region_write_multi),
    Command.DEVICE_FEATURE: Row(wire.DeviceFeature, Session._device_feature, probes=True),
    Command.MIG_DATA_READ: Row(wire.MigrationData, Session._migration_data),
    Command.MIG_DATA_WRITE: Row(wire.MigrationData, Session._migration_data),
}


def _check_argsz(argsz: int, record: Record) -> None:
    if argsz < record.layout.size:
        raise MessageError(errno.EINVAL, f"argsz {argsz} is too small for the {record.layout.size}-byte answer")


def _proposed_capabilities(text: bytes) -> dict[str, Any]:
    """The capabilities of the client's VERSION text; MessageError when the text is not what the protocol says."""
    if not text:
        return {}
    if len(text) > MAX_VERSION_TEXT_NBYTES:
        raise MessageError(errno.EINVAL, f"VERSION text of {len(text)} bytes, at most {MAX_VERSION_TEXT_NBYTES} belong")
    try:
        if text[-1]:
            raise ValueError("no NUL at the end")
        capabilities: dict[str, Any] = json.loads(text[:-1]).get("capabilities", {})
        nbytes = capabilities.get("max_data_xfer_size", DEFAULT_TRANSFER_NBYTES)
        if not isinstance(nbytes, int) or nbytes <= 0:
            raise ValueError(f"max_data_xfer_size is {nbytes!r}")
    except (ValueError, AttributeError, RecursionError) as error:
        raise MessageError(errno.EINVAL, f"VERSION text: {error}") from error
    return capabilities


def _version_text(proposed: Container[str]) -> bytes:
    """Our VERSION text: those of our capabilities that the client proposed, since it need not know any other."""
    agreed = {name: value for name, value in CAPABILITIES.items() if name in proposed}
    if not agreed:
        return b""
    return json.dumps({"capabilities": agreed}, separators=(",", ":")).encode() + b"\0"
