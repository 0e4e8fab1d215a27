"""KVM or TCG: /dev/kvm may exist, answer, and still not run a guest, so the kernel is booted once to see."""

from __future__ import annotations

import json
import os
import platform
import selectors
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vdev.errors import PartsError
from vdev.parts.cache import Cache, write_atomically
from vdev.parts.kernel import DEFAULT_FLAVOUR, Kernel, find_kernel
from vdev.parts.progress import Say
from vdev.parts.qemu import Qemu

DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
VERDICTS = "kvm-verdicts.json"
PROBE_SECONDS = 10.0
ALIVE = b"Linux version"  # first line of every kernel's log
BROKEN = b"KVM internal error"  # QEMU says so and stays, stopped
OUTPUT_NBYTES = 1 << 16


@dataclass(frozen=True)
class Accel:
    """`name` is "kvm" or "tcg", as -accel takes it; `reason` says why in one line."""

    name: str
    reason: str


def choose_accel(qemu: Qemu, kernel: Kernel | None, requested: str, cache: Cache, say: Say) -> Accel:
    """The accelerator for `requested` ("auto", "kvm" or "tcg"); without a kernel KVM is tried with the default one.

    :raise PartsError: "kvm" was requested and cannot run this kernel here.
    """
    if requested == "tcg":
        return Accel("tcg", "accel: tcg")
    problem = device_problem(DEVICE)
    if not problem:
        problem = _verdict(qemu, kernel or find_kernel(DEFAULT_FLAVOUR, say, cache), cache, say)
    if not problem:
        return Accel("kvm", "KVM boots this kernel")
    if requested == "kvm":
        raise PartsError("vm.accel", f"kvm was asked for, but {problem}", "set accel: auto, or repair KVM on this host")
    accel = Accel("tcg", f"KVM is not usable: {problem}")
    say(f"using TCG. {accel.reason}")
    return accel


def device_problem(device: Path) -> str:
    """Why /dev/kvm cannot even be opened; empty if it can."""
    if platform.machine() != "x86_64":
        return f"a {platform.machine()} host cannot run x86 guests under KVM"
    if not device.exists():
        return f"there is no {device}"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"this user may not open {device} (join the group kvm)"
    return ""


def _verdict(qemu: Qemu, kernel: Kernel, cache: Cache, say: Say) -> str:
    boot_id = BOOT_ID.read_text().strip() if BOOT_ID.is_file() else "unknown"
    info = kernel.image.stat()
    # A rebuilt kernel keeps its path and its version, hence size and time.
    key = "\n".join((qemu.version, str(qemu.binary), str(kernel.image), f"{info.st_size} {info.st_mtime_ns}"))
    known = read_verdicts(cache.root / VERDICTS, boot_id)
    if key not in known:
        say(f"trying KVM: booting {kernel.version} (at most {PROBE_SECONDS:.0f} s)")
        known[key] = probe_kvm(qemu, kernel.image, PROBE_SECONDS)
        text = json.dumps({"boot_id": boot_id, "verdicts": known}, indent=1) + "\n"
        with suppress(OSError):  # a cache that cannot be written still serves; it is only tried again next time
            write_atomically(cache.root / VERDICTS, text)
    return known[key]


def read_verdicts(path: Path, boot_id: str) -> dict[str, str]:
    """Verdicts of this boot of the host by key: "" is usable, else the problem. A damaged file counts as none."""
    try:
        data = json.loads(path.read_text())
        verdicts = data["verdicts"] if data["boot_id"] == boot_id else {}
        return {str(key): str(problem) for key, problem in verdicts.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def probe_kvm(qemu: Qemu, image: Path, seconds: float) -> str:
    """Boot `image` under KVM until its first line; "" if it came, else what went wrong. QEMU is gone on return."""
    command = [
        *qemu.argv_prefix, "-accel", "kvm", "-cpu", "host", "-M", "q35", "-m", "256", "-nodefaults", "-no-user-config",
        "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", str(image),
        "-append", "console=ttyS0 earlyprintk=serial,ttyS0,115200 panic=-1",
    ]  # fmt: skip
    try:
        process = subprocess.Popen(
            command, env={**os.environ, **qemu.env},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except OSError as error:
        return f"QEMU does not start ({error})"
    with process:
        try:
            return _watch(process, time.monotonic() + seconds, seconds)
        finally:
            process.kill()


def _watch(process: subprocess.Popen[bytes], deadline: float, seconds: float) -> str:
    assert process.stdout is not None
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0 and len(output) < OUTPUT_NBYTES:
            if not selector.select(left):
                break
            chunk = os.read(process.stdout.fileno(), 4096)
            if not chunk:
                return f"QEMU ended before the kernel said anything: {last_line(output)}"
            output += chunk
            if ALIVE in output:
                return ""
            if BROKEN in output and b"\n" in output.partition(BROKEN)[2]:
                return "the kernel does not start: " + output[output.index(BROKEN) :].splitlines()[0].decode(
                    "ascii", "replace"
                )
    return f"the kernel said nothing within {seconds:.0f} s"


def last_line(output: bytes) -> str:
    """The last line with text in it, for a one-line message."""
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
