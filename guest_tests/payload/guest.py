"""The guest around us: sysfs, the kernel's log, modules, and the channel to the host."""

from __future__ import annotations

import json
import os
import select
import time
from pathlib import Path
from typing import Any

SYS = Path("/sys")
CHANNEL_NAME = "org.vdev.agent"
CHANNEL_TIMEOUT_S = 30.0
MAX_KMSG_RECORD_NBYTES = 8192  # the kernel refuses reads with a smaller buffer


def parse_kmsg(record: bytes) -> tuple[float, str]:
    """One /dev/kmsg record "prio,seq,usec,flags;text" (then " KEY=value" lines) -> (seconds since boot, text)."""
    header, _, rest = record.partition(b";")
    text = rest.split(b"\n", 1)[0].decode(errors="replace")
    return int(header.split(b",")[2]) / 1e6, text


class KernelLog:
    """Reads /dev/kmsg from the beginning and keeps every line."""

    def __init__(self, path: str = "/dev/kmsg") -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.lines: list[str] = []

    def refresh(self) -> None:
        """Take in what the kernel has said since the last time."""
        while True:
            try:
                record = os.read(self._fd, MAX_KMSG_RECORD_NBYTES)
            except BlockingIOError:
                return
            except BrokenPipeError:
                continue  # the ring overtook us; the next read goes on at its oldest record
            if not record:
                return
            seconds, text = parse_kmsg(record)
            self.lines.append(f"[{seconds:12.6f}] {text}")

    def find(self, *needles: str, since: int = 0) -> list[str]:
        """The lines from index `since` on that contain every one of `needles`."""
        self.refresh()
        return [line for line in self.lines[since:] if all(needle in line for needle in needles)]

    def mark(self) -> int:
        """The index the next line will get."""
        self.refresh()
        return len(self.lines)

    def wait_for(self, *needles: str, since: int, timeout_s: float = 2.0) -> str | None:
        """The first line from `since` on with every needle, or None after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.find(*needles, since=since)
            if found:
                return found[0]
            if time.monotonic() > deadline:
                return None
            time.sleep(0.01)


def read_text(path: Path) -> str:
    """A sysfs attribute without its newline."""
    return path.read_text().strip()


def find_pci(vendor: int, device: int) -> list[str]:
    """BDFs of all PCI functions with these ids."""
    root = SYS / "bus/pci/devices"
    return sorted(
        entry.name
        for entry in root.iterdir()
        if int(read_text(entry / "vendor"), 16) == vendor and int(read_text(entry / "device"), 16) == device
    )


def endpoint_id(bdf: str) -> int:
    """The number the IOMMU knows function "0000:01:00.0" by: bus, device and function packed in 16 bits."""
    _, bus, rest = bdf.split(":")
    device, function = rest.split(".")
    return int(bus, 16) << 8 | int(device, 16) << 3 | int(function)


def link_name(path: Path) -> str | None:
    """The last component of what a sysfs link points at, or None where there is no link."""
    return os.path.basename(os.readlink(path)) if path.is_symlink() else None


def bind_driver(bdf: str, driver: str) -> None:
    """Give PCI function `bdf` to `driver` and to no other. Raises OSError."""
    function = SYS / "bus/pci/devices" / bdf
    (function / "driver_override").write_text(driver)
    if link_name(function / "driver") not in (None, driver):
        (function / "driver/unbind").write_text(bdf)
    if link_name(function / "driver") is None:
        (SYS / "bus/pci/drivers_probe").write_text(bdf)


def unbind_driver(bdf: str) -> None:
    """Take PCI function `bdf` from its driver."""
    function = SYS / "bus/pci/devices" / bdf
    if link_name(function / "driver") is not None:
        (function / "driver/unbind").write_text(bdf)
    (function / "driver_override").write_text("\n")


def load_module(name: str) -> None:
    """Load a kernel module unless it is there already; failing is left to whoever needs it."""
    if not (SYS / "module" / name.replace("-", "_")).exists():
        os.spawnvp(os.P_WAIT, "busybox", ["busybox", "modprobe", name])


def find_channel() -> str | None:
    """The device file of our virtio-serial port, or None while there is none."""
    named = Path("/dev/virtio-ports") / CHANNEL_NAME
    if named.exists():
        return str(named)
    for port in sorted((SYS / "class/virtio-ports").glob("*")):
        if (port / "name").exists() and read_text(port / "name") == CHANNEL_NAME:
            return f"/dev/{port.name}"
    return None


class Channel:
    """JSON lines to and from the host."""

    def __init__(self, path: str | None = None) -> None:
        """Open the port, waiting for it to appear. Raises TimeoutError or OSError."""
        deadline = time.monotonic() + CHANNEL_TIMEOUT_S
        while (found := path or find_channel()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no virtio-serial port named {CHANNEL_NAME}")
            time.sleep(0.02)
        self._fd = os.open(found, os.O_RDWR | os.O_CLOEXEC)
        self._pending = b""

    def send(self, message: dict[str, Any]) -> None:
        """Write one message. Blocks while the host does not read."""
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        while data:
            data = data[os.write(self._fd, data) :]

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message from the host, or None after `timeout_s` or when the host closed the port."""
        deadline = time.monotonic() + timeout_s
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000):
                return None
            chunk = os.read(self._fd, 4096)
            if not chunk:
                return None
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        message = json.loads(line)
        return message if isinstance(message, dict) else None
