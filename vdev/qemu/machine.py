"""The machine of a configuration, as QEMU is told of it: its arguments, and the ACPI table that names the IOMMUs.

Pure. Every PCI address of ours is fixed here, because vfio-user never tells a device its own: an endpoint's id, which
the guest reads from VIOT, must be the address it will really have. `qmp_bridge.check_topology` compares afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct

from vdev.config import (
    ROOT_PORT_SLOTS,
    SERIAL_SLOT,
    Config,
    EndpointConfig,
    SlotConfig,
    UnitConfig,
    parse_bdf,
    parse_size,
)
from vdev.errors import ConfigError
from vdev.qemu.options import quote_value as _quoted
from vdev.qemu.rules import MESSAGE_TIMEOUT_MS

CHANNEL_PORT = "org.vdev.agent"  # name of the virtio-serial port a guest payload speaks on
# What the generic vhost-user device must be told of ours: its virtio id, queues and size of configuration. Two of the
# names have underscores in QEMU.
VHOST_USER_DEVICE = {"virtio-id": 23, "num_vqs": 2, "vq_size": 256, "config_size": 64}
SLOT_ROOM = 128 << 20  # an accelerator's largest device memory, wherever in it firmware lets the window begin
VIOT_NAME = "viot.bin"  # in the runtime directory; the backend writes it
DEFAULT_APPEND = (
    "console=ttyS0 panic=-1 loglevel=5 "  # panic ends QEMU (-no-reboot); warnings and worse reach the console
    "cryptomgr.notests random.trust_cpu=on "  # half a second of start-up
    "no_timer_check "  # on a busy host the check of the timer fails under TCG, and the kernel panics
    "vfio_iommu_type1.allow_unsafe_interrupts=1"  # no interrupt remapping here, so VFIO must be told to go on
)

# ACPI's common table header: signature, length, revision, checksum, OEM id and table id, OEM revision, creator
_ACPI_HEADER = Struct("<4sIBB6s8sI4sI")
_VIOT_HEADER = Struct("<HH8x")  # node count, offset of the first node
_VIOT_PCI_RANGE = Struct("<BxHIHHHHH6x")  # type 1, length, endpoint start, segments, BDFs (inclusive), output node
_VIOT_VIRTIO_PCI = Struct("<BxHHH8x")  # type 3, length, segment, BDF
_ACPI_CHECKSUM_OFFSET = 9
_MAX_SOCKET_PATH = 107  # of sockaddr_un, without its final NUL


@dataclass(frozen=True, slots=True)
class Disk:
    """An image; `format` is "raw" or "qcow2". What the guest writes to one not `writable` is thrown away."""

    path: str
    format: str
    writable: bool


@dataclass(frozen=True, slots=True)
class MachinePaths:
    """Where the files and sockets of one running VM are. `in_directory` is the usual arrangement."""

    socket_dir: str  # holds NAME.sock for each PCI function
    qmp: str
    monitor: str  # a second QMP socket of QEMU; `monitor.sock`, with the launcher's guard in front, leads to it
    console: str
    console_log: str
    channel: str
    viot: str
    kernel: str | None  # None: the firmware boots the disk
    initrd: str | None
    disk: Disk | None = None
    firmware: str | None = None  # None: QEMU's own SeaBIOS

    @classmethod
    def in_directory(cls, directory: str, kernel: str | None, initrd: str | None) -> MachinePaths:
        """Everything under `directory`, logs in `directory`/logs."""
        return cls(
            socket_dir=directory,
            qmp=socket_path(directory, "qmp"),
            monitor=socket_path(directory, "qemu-monitor"),
            console=socket_path(directory, "console"),
            console_log=f"{directory}/logs/console.log",
            channel=socket_path(directory, "channel"),
            viot=f"{directory}/{VIOT_NAME}",
            kernel=kernel,
            initrd=initrd,
        )


def socket_path(directory: str, name: str) -> str:
    """The path of socket `name`; ConfigError when the address family cannot hold it."""
    path = f"{directory}/{name}.sock"
    if len(path.encode()) > _MAX_SOCKET_PATH:
        raise ConfigError("runtime directory", f"{path} is longer than a socket's 107 bytes", "use a shorter one")
    return path


def viot_table(config: Config) -> bytes:
    """The ACPI table "VIOT": a virtio-iommu-pci node per unit, a PCI range of a single function per endpoint and slot.

    A range wider than our own endpoints would drag the chipset behind the IOMMU. Endpoint id = PCI address. Linux keeps
    the ranges from boot and looks a function that is plugged in later up in them.
    """
    first = _ACPI_HEADER.size + _VIOT_HEADER.size
    offsets = {unit.name: first + index * _VIOT_VIRTIO_PCI.size for index, unit in enumerate(config.units)}
    nodes = [_VIOT_VIRTIO_PCI.pack(3, _VIOT_VIRTIO_PCI.size, 0, parse_bdf(unit.bdf)) for unit in config.units]
    for place in places_of(config):
        bdf = parse_bdf(place.bdf)
        nodes.append(_VIOT_PCI_RANGE.pack(1, _VIOT_PCI_RANGE.size, bdf, 0, 0, bdf, bdf, offsets[place.unit]))
    body = _VIOT_HEADER.pack(len(nodes), first) + b"".join(nodes)
    length = _ACPI_HEADER.size + len(body)
    header = _ACPI_HEADER.pack(b"VIOT", length, 0, 0, b"VDEV  ", b"VDEVVIOT", 1, b"VDEV", 1)
    table = bytearray(header + body)
    table[_ACPI_CHECKSUM_OFFSET] = -sum(table) & 0xFF
    return bytes(table)


def expected_functions(config: Config) -> dict[str, int]:
    """Name -> PCI address that every function of ours must have once the firmware has numbered the buses."""
    return {item.name: parse_bdf(item.bdf) for item in functions_of(config)}


def kernel_append(config: Config) -> str:
    """The guest kernel's command line: ours first, so that the user's words win."""
    return f"{DEFAULT_APPEND} {config.vm.append}".strip()


def qemu_arguments(config: Config, paths: MachinePaths, accel: str) -> list[str]:
    """QEMU's arguments after its own name; `accel` is "kvm" or "tcg". Raises ConfigError for a path too long."""
    devices = device_arguments(config, paths.socket_dir, paths.viot)
    return [*base_arguments(config, paths, accel), *devices, *boot_arguments(config, paths), *config.vm.extra_args]


def base_arguments(config: Config, paths: MachinePaths, accel: str) -> list[str]:
    """The machine without our functions: processors, RAM, monitors, console, the payload's channel."""
    vm = config.vm
    arguments = ["-name", vm.name, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    arguments += ["-accel", accel, "-cpu", "max", "-smp", str(vm.cpus)]
    # Without graphics SeaBIOS speaks on the serial port, and so does a boot loader that knows only the BIOS.
    arguments += machine_arguments(config, graphics=paths.kernel is not None)
    arguments += _monitor(paths.qmp) + _monitor(paths.monitor)
    arguments += _chardev("console", paths.console, f",logfile={_quoted(paths.console_log)}")
    arguments += ["-serial", "chardev:vdev.console"]
    return [*arguments, *_channel(paths.channel, shares_slot=paths.disk is not None)]


def boot_arguments(config: Config, paths: MachinePaths) -> Iterator[str]:
    """What is booted: firmware, disk, kernel with command line, initrd."""
    if paths.firmware is not None:
        yield from ("-bios", paths.firmware)
    if paths.disk is not None:
        yield from _disk(paths.disk)
    if paths.kernel is not None:
        yield from ("-kernel", paths.kernel, "-append", kernel_append(config))
    if paths.initrd is not None:
        yield from ("-initrd", paths.initrd)


def machine_arguments(config: Config, *, graphics: bool = True) -> list[str]:
    """The machine and its RAM, a shared memfd: with private RAM the backend would silently see other bytes."""
    nbytes = parse_size(config.vm.memory)
    ram = _json(qom_type="memory-backend-memfd", id="vdev.ram", size=nbytes, share=True)
    machine = "q35,memory-backend=vdev.ram" + ("" if graphics else ",graphics=off")
    return ["-machine", machine, "-m", f"size={nbytes >> 20}M", "-object", ram]


def device_arguments(config: Config, socket_dir: str, viot: str) -> list[str]:
    """Root ports, our functions, and the table that puts them behind the IOMMU. ConfigError for a path too long.

    Without a unit there is no table: it would stand in the way of the one QEMU makes for an IOMMU of its own.
    """
    table = ["-acpitable", f"file={_quoted(viot)}"] if config.units else []
    return [*_devices(config, socket_dir), *table]


def functions_of(config: Config) -> Iterator[UnitConfig | EndpointConfig]:
    """All of ours: units, then endpoints."""
    yield from config.units
    yield from config.endpoints


def _devices(config: Config, socket_dir: str) -> Iterable[str]:
    """Root ports by rising address, since firmware numbers the buses behind them in that order; then our functions.

    Units over vhost-user come last: QEMU resets the last first, and the backend must see such a unit stop before the
    endpoints are reset, or it cannot tell a machine reset from a stopped VM.
    """
    count = own_buses(config)
    for bus in range(1, count + 1):
        yield from (
            "-device",
            root_port(bus, count, hot_plug=bool(config.slots), room=SLOT_ROOM if config.slots else 0),
        )
    last = [unit for unit in config.units if unit.attach == "vhost-user"]
    for item in functions_of(config):
        if item not in last:
            yield from ("-device", vfio_user_function(item, socket_dir))
    for unit in last:
        path = _quoted(socket_path(socket_dir, unit.name))
        yield from ("-chardev", f"socket,id=vdev.{unit.name},path={path}")
        yield from ("-device", json.dumps(vhost_user_unit(unit)))


def own_buses(config: Config) -> int:
    """How many endpoints and slots have a bus, and so a root port, of their own."""
    return sum(parse_bdf(place.bdf) >> 8 != 0 for place in places_of(config))


def places_of(config: Config) -> Iterator[EndpointConfig | SlotConfig]:
    """What is behind a unit, or may be one day."""
    yield from config.endpoints
    yield from config.slots


def port_of(bdf: str) -> str | None:
    """The id of the root port in front of an address; None on the root bus."""
    bus = parse_bdf(bdf) >> 8
    return f"vdev.port{bus}" if bus else None


def vfio_user_function(item: UnitConfig | EndpointConfig, socket_dir: str) -> str:
    """The -device of a function over vfio-user, in JSON. ConfigError for a path too long."""
    return json.dumps(vfio_user_device(item.name, item.bdf, socket_path(socket_dir, item.name)))


def vfio_user_device(name: str, bdf: str, path: str) -> dict[str, object]:
    """The properties of a function over vfio-user: of -device in JSON, and of device_add."""
    return {
        "driver": "vfio-user-pci",
        "id": name,
        "bus": port_of(bdf) or "pcie.0",
        "addr": _slot_and_function(bdf),
        "socket": {"type": "unix", "path": path},
        "x-msg-timeout": MESSAGE_TIMEOUT_MS,
    }


def vhost_user_unit(unit: UnitConfig) -> dict[str, object]:
    """The properties of a unit over vhost-user."""
    return {
        "driver": "vhost-user-test-device-pci",
        "id": unit.name,
        "bus": "pcie.0",
        "addr": _slot_and_function(unit.bdf),
        "chardev": f"vdev.{unit.name}",
        **VHOST_USER_DEVICE,
    }


def _slot_and_function(address: str) -> str:
    bdf = parse_bdf(address)
    return f"{bdf >> 3 & 0x1F:02x}.{bdf & 7}"


def root_port(bus: int, count: int, *, hot_plug: bool = True, room: int = 0) -> str:
    """The -device of the port to `bus`, one of `count`.

    Up to 14 ports have a slot each; more of them share slots, as functions of multifunction devices. Without `hot_plug`
    QEMU refuses to unplug what is behind it: it would die of that (docs/hot-plug.md). `room` is how many bytes of
    prefetchable memory firmware leaves for what will be plugged in; 0 is its own choice, 2 MiB.
    """
    per_slot = -(-count // len(ROOT_PORT_SLOTS))
    slot, function = divmod(bus - 1, per_slot)
    return _plain(
        "pcie-root-port",
        id=f"vdev.port{bus}",
        bus="pcie.0",
        addr=f"{ROOT_PORT_SLOTS[slot]:02x}.{function}",
        multifunction=per_slot > 1,
        hotplug=hot_plug,
        io_reserve=0,  # the 64 KiB of port space last for 15 windows, and none of our functions has a port
        chassis=bus,
        slot=bus,
        **({"pref64_reserve": room} if room else {}),
    )


def _disk(disk: Disk) -> list[str]:
    """A virtio-blk of QEMU's own, in no range of VIOT: a disk behind the IOMMU would have to wait for its driver."""
    drive = f"file={_quoted(disk.path)},if=none,id=vdev.image,format={disk.format}"
    device = _plain(
        "virtio-blk-pci",
        id="vdev.disk",
        bus="pcie.0",
        addr=f"{SERIAL_SLOT:02x}.1",
        disable_legacy="on",
        drive="vdev.image",
        bootindex=1,
    )
    return ["-drive", drive + ("" if disk.writable else ",snapshot=on"), "-device", device]


def _channel(path: str, *, shares_slot: bool) -> list[str]:
    serial = _plain(
        "virtio-serial-pci",
        id="vdev.serial",
        bus="pcie.0",
        addr=f"{SERIAL_SLOT:02x}.0",
        disable_legacy="on",
        multifunction=shares_slot,
    )
    port = _plain("virtserialport", bus="vdev.serial.0", chardev="vdev.channel", name=CHANNEL_PORT)
    return [*_chardev("channel", path), "-device", serial, "-device", port]


def _monitor(path: str) -> list[str]:
    return ["-qmp", f"unix:{_quoted(path)},server=on,wait=off"]  # -mon warns since QEMU 11.1


def _chardev(name: str, path: str, more: str = "") -> list[str]:
    return ["-chardev", f"socket,id=vdev.{name},path={_quoted(path)},server=on,wait=off{more}"]


def _plain(driver: str, **properties: str | int) -> str:
    """A -device in QEMU's own syntax. QEMU makes all of these before those in JSON, in the order given.

    So ours take their places before a device among the user's arguments that names no address is given a free one.
    """
    words = {
        name.replace("_", "-"): ("on" if value else "off") if isinstance(value, bool) else value
        for name, value in properties.items()
    }
    return ",".join([driver, *(f"{name}={_quoted(str(value))}" for name, value in words.items())])


def _json(**properties: object) -> str:
    """QEMU's JSON form of an option, with its hyphens."""
    return json.dumps({name.replace("_", "-"): value for name, value in properties.items()})
