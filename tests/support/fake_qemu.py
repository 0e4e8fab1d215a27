"""Stands in for QEMU under the launcher: makes the sockets its arguments name and plays a given part.

Run as `python fake_qemu.py PART QEMU-ARGUMENTS...`. It connects to the functions' sockets as QEMU does, answers QMP,
and reports the PCI addresses its own -device arguments give.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from typing import Any


def say(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(json.dumps(message).encode() + b"\r\n")


class FakeQemu:
    """One run; `part` is done, silent, crash, refuse, stillborn, wrong-bus, failed-check, babble or deaf, paused."""

    def __init__(self, part: str, arguments: list[str]) -> None:
        self.part = part
        self.arguments = arguments
        self.ended = asyncio.Event()
        self.running = part != "paused"
        self.monitors: list[asyncio.StreamWriter] = []  # those that have negotiated
        self.executed: list[str] = []  # on the user's monitor

    def socket(self, pattern: str) -> str:
        """The path in the first argument that `pattern` matches."""
        return next(match[1] for argument in self.arguments if (match := re.match(pattern, argument)))

    async def run(self) -> int:
        """Play the part; the exit status."""
        if self.part == "refuse":
            sys.stderr.write("qemu: -device nonsense: 'nonsense' is not a valid device model name\n")
            return 1
        if self.part == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        servers = [
            await asyncio.start_unix_server(self.qmp, self.socket("unix:([^,]+)")),
            await asyncio.start_unix_server(self.user_qmp, self.socket("unix:([^,]+/qemu-monitor.sock)")),
            await asyncio.start_unix_server(self.console, self.socket("socket,id=vdev.console,path=([^,]+)")),
            await asyncio.start_unix_server(self.channel, self.socket("socket,id=vdev.channel,path=([^,]+)")),
        ]
        await self.ended.wait()
        for server in servers:
            server.close()
        return 0

    async def console(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"[    0.000000] Linux version 0\r\nlast words of the console\r\n")
        await writer.drain()
        await reader.read()
        writer.close()

    async def channel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.part == "babble":
            writer.write(b"this is not JSON\n")
        if self.part in ("done", "failed-check"):
            for message in ({"hello": 1}, {"done": True, "ok": self.part == "done", "checks": 1, "passed": 1}):
                writer.write(json.dumps(message).encode() + b"\n")
            await writer.drain()
            await reader.readline()  # the bye
            self.ended.set()
        if self.part == "crash":
            writer.write(b'{"hello": 1}\n')
            await writer.drain()
            await asyncio.sleep(0.2)
            os.abort()
        await reader.read()
        writer.close()

    async def user_qmp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.qmp(reader, writer, self.executed)

    async def qmp(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, executed: list[str] | None = None
    ) -> None:
        if self.part == "stillborn":
            sys.stderr.write("qemu: Failed to connect to '/x/iommu0.sock': Connection refused\n")
            sys.stderr.flush()
            writer.close()
            await asyncio.sleep(0.1)
            os._exit(1)
        version = {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": ""}
        say(writer, {"QMP": {"version": version, "capabilities": []}})
        decoder, pending = json.JSONDecoder(), ""
        while chunk := await reader.read(65536):
            pending = (pending + chunk.decode()).lstrip()
            while pending:
                try:
                    request, end = decoder.raw_decode(pending)
                except ValueError:
                    break
                pending = pending[end:].lstrip()
                if "\ud800" in json.dumps(request, ensure_ascii=False):
                    say(writer, {"error": {"class": "GenericError", "desc": "JSON parse error, not a character"}})
                    continue
                if executed is not None:
                    executed.append(request["execute"])
                answer = self.execute(request["execute"], writer)
                say(writer, {**answer, **({"id": request["id"]} if "id" in request else {})})
                await writer.drain()
        if writer in self.monitors:
            self.monitors.remove(writer)
        writer.close()

    def execute(self, command: str, writer: asyncio.StreamWriter) -> dict[str, Any]:
        """The answer to one command, without its id. `x-panic` stops the VM, `x-executed` tells what the user ran."""
        if command == "qmp_capabilities":
            self.monitors.append(writer)
        elif command.startswith("__") or writer not in self.monitors:
            desc = f"The command {command} has not been found"
            return {"error": {"class": "CommandNotFound", "desc": desc}}
        if command == "quit" and self.part != "deaf":
            self.ended.set()
        if command in ("stop", "cont", "x-panic"):
            self.set_running(command == "cont")
        status = {"status": "running" if self.running else "paused", "running": self.running}
        answers = {"query-pci": self.buses(), "query-status": status, "x-executed": self.executed}
        return {"return": answers.get(command, {})}

    def set_running(self, running: bool) -> None:
        """Stop or continue, with an event when that changes something."""
        if running != self.running:
            self.running = running
            for monitor in self.monitors:
                say(monitor, {"event": "RESUME" if running else "STOP", "timestamp": {}})

    def buses(self) -> list[dict[str, Any]]:
        """The answer to query-pci."""
        devices: list[dict[str, Any]] = []
        for argument in self.arguments:
            if "vfio-user-pci" not in argument:
                continue
            device = json.loads(argument)
            bus = int(device["bus"].removeprefix("vdev.port")) if device["bus"] != "pcie.0" else 0
            slot, function = (int(part, 16) for part in device["addr"].split("."))
            wrong = self.part == "wrong-bus" and bus > 0
            found = {"qdev_id": device["id"], "bus": bus + wrong, "slot": slot, "function": function}
            port = {"qdev_id": "", "bus": 0, "slot": bus + 1, "function": 0, "pci_bridge": {"devices": [found]}}
            devices.append(port if bus else found)
        return [{"bus": 0, "devices": devices}]


if __name__ == "__main__":
    sys.exit(asyncio.run(FakeQemu(sys.argv[1], sys.argv[2:]).run()))
