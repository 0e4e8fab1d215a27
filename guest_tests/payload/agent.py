"""The guest's end of the runner: says hello once pytest is imported, then does what the host asks, one thing at a time.

A guest is saved between hello and the first request, so nothing before it may depend on vdev's functions, on the time
or on chance. Requests are one JSON object a line with the key `do`; the table at the end says which there are. A module
of tests runs in a child process, which then has the channel to itself: what it leaves behind goes with it.
"""

from __future__ import annotations

import base64
import fcntl
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from . import session
from .guest import SYS, Channel, read_text

Message = dict[str, Any]

LISTEN_S = 60.0
NOBODY_S = 0.01  # the host is away, or comes back from a restore
BRIDGE_CLASS = 0x060400
PCI_CAPABILITIES, PCI_CAPABILITY_EXPRESS = 0x34, 0x10
SLOT_CONTROL, SLOT_POWER_OFF = 0x18, 1 << 10  # of the PCI Express capability
RANDOM_RESEED = 0x5207  # RNDRESEEDCRNG
MAX_TRACEBACK = 8000
MAX_RETURNED = 200_000  # characters; the host takes lines of 256 KiB


def wake(channel: Channel, request: Message) -> Message:
    """After a restore: the host's time and randomness, and the functions that are there now and were not before."""
    time.clock_settime(time.CLOCK_REALTIME, request["time"])
    with open("/dev/urandom", "wb", buffering=0) as random:
        random.write(base64.b64decode(request["seed"]))
        fcntl.ioctl(random, RANDOM_RESEED)
    if request["restored"]:
        power_slots()
        (SYS / "bus/pci/rescan").write_text("1")
    return {"kernel": os.uname().release, "cpus": os.cpu_count()}


def power_slots() -> None:
    """Switch every root port's slot on: an empty one was off, and hides what is plugged in."""
    for function in sorted((SYS / "bus/pci/devices").iterdir()):
        if int(read_text(function / "class"), 16) != BRIDGE_CLASS:
            continue
        with (function / "config").open("r+b", buffering=0) as config:
            at = config.read(256)
            offset = at[PCI_CAPABILITIES]
            while offset and at[offset] != PCI_CAPABILITY_EXPRESS:
                offset = at[offset + 1]
            if offset:
                control = int.from_bytes(at[offset + SLOT_CONTROL : offset + SLOT_CONTROL + 2], "little")
                config.seek(offset + SLOT_CONTROL)
                config.write((control & ~SLOT_POWER_OFF).to_bytes(2, "little"))


def put(channel: Channel, request: Message) -> Message:
    """Store files as they are on the host, time included: what Python compiled there is then good here."""
    for file in request["files"]:
        os.makedirs(os.path.dirname(file["path"]), exist_ok=True)
        with open(file["path"], "ab" if file["more"] else "wb") as stored:
            stored.write(base64.b64decode(file["data"]))
        os.utime(file["path"], ns=(file["mtime_ns"], file["mtime_ns"]))
    return {"stored": len(request["files"])}


def run_module(channel: Channel, request: Message) -> Message:
    """Run one module's tests in a child process, which the host then talks to, until it has gone."""
    pid = os.fork()
    if pid == 0:
        status = 70  # of a child that breaks
        try:
            status = session.run(channel, request)
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return {"ended": os.waitstatus_to_exitcode(status)}


def call(channel: Channel, request: Message) -> Message:
    """Call a function of a module in this process, where what it leaves behind stays for the next call."""
    module, _, name = request["function"].partition(":")
    if request["where"] not in sys.path:
        sys.path.insert(0, request["where"])
    try:
        returned = getattr(importlib.import_module(module), name)(**request["arguments"])
        if (length := len(json.dumps(returned))) > MAX_RETURNED:  # TypeError where it is no plain data
            raise ValueError(f"it returned {length} characters, at most {MAX_RETURNED} go through the channel")
        return {"returned": returned}
    except Exception as error:  # whatever it is belongs to the caller
        return {"raised": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()[-MAX_TRACEBACK:]}


REQUESTS: dict[str, Callable[[Channel, Message], Message]] = {
    "wake": wake,
    "put": put,
    "module": run_module,
    "call": call,
}


def answer(channel: Channel, request: Message) -> Message:
    """What to say to one request; a refusal names what is wrong with it."""
    doing = REQUESTS.get(str(request.get("do")))
    if doing is None:
        return {"refused": f"there is no request {request.get('do')!r}; known: {', '.join(REQUESTS)}"}
    try:
        return doing(channel, request)
    except (OSError, KeyError, ValueError, TypeError) as error:
        return {"refused": f"{request['do']}: {type(error).__name__}: {error}"}


def main() -> int:
    """Serve for ever."""
    session.rehearse()
    channel = Channel()
    channel.send({"hello": 1, "kernel": os.uname().release, "pytest": pytest.__version__})
    while True:
        request = channel.receive(LISTEN_S)
        if request is None:
            time.sleep(NOBODY_S)
        else:
            channel.send(answer(channel, request))
