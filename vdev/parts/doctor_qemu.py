"""`vdev doctor --qemu PID` and `--command FILE`: the rules of `vdev.qemu.rules`, for a QEMU somebody else starts."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from vdev.errors import ConfigError
from vdev.parts.progress import Say
from vdev.qemu.options import parse_command
from vdev.qemu.rules import RuleBroken, check_command, check_version

MAX_COMMAND_NBYTES = 8 << 20  # no kernel passes a longer one; a log is read to its last start of QEMU
VERSION_SECONDS = 10
_LIBVIRT_START = re.compile(r"^\S+ \S+: starting up libvirt version: ", re.MULTILINE)
_VERSION = re.compile(r"(?:qemu version: |QEMU emulator version )(\d+)\.(\d+)")


def doctor_process(pid: int, say: Say) -> int:
    """Say what is wrong with the command line of the running QEMU `pid`; 0 nothing, 1 something. Raises ConfigError."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError as error:
        raise ConfigError("--qemu", f"the command line of process {pid} cannot be read: {error.strerror}") from None
    if not words:
        problem = f"process {pid} has no command line: it has ended, or is the kernel's"
        raise ConfigError("--qemu", problem, "give the id of a running QEMU")
    argv = [os.fsdecode(word) for word in words]
    return doctor_command(argv, version_of(argv), f"process {pid}", say)


def doctor_file(name: str, say: Say) -> int:
    """The same for a command line in the file `name` ("-": standard input), such as a script's or libvirt's log."""
    try:
        data = sys.stdin.buffer.read(MAX_COMMAND_NBYTES) if name == "-" else _tail(Path(name))
    except OSError as error:
        raise ConfigError("--command", f"{name} cannot be read: {error.strerror}") from None
    text = data.decode(errors="replace")
    starts = list(_LIBVIRT_START.finditer(text))
    said = _VERSION.search(text[starts[-1].start() :]) if starts else None
    argv = words_of(text)
    version = (int(said[1]), int(said[2])) if said else version_of(argv)
    return doctor_command(argv, version, "standard input" if name == "-" else name, say)


def doctor_command(argv: Sequence[str], version: tuple[int, int] | None, what: str, say: Say) -> int:
    """Say what is wrong with the command `argv`; 0 nothing, 1 something. ConfigError when it is not QEMU's."""
    command = parse_command(argv)
    if not command.options:
        raise ConfigError(what, "there is no QEMU command line in it", "give QEMU's, or a libvirt log of the domain")
    if version is None:
        say(f"   note  {what}: the version of its QEMU is not known; it must be 10.2 or newer")
    return report([*check_version(version), *check_command(command)], what, say)


def report(broken: Iterable[RuleBroken], what: str, say: Say) -> int:
    """Say each broken rule with its cure; 0 if there is none, else 1."""
    count = 0
    for rule in broken:
        count += 1
        say(f"warning  {rule.thing}: {rule.problem}")
        say(f"         -> {rule.cure}")
    say(f"{what}: {count} warning(s)" if count else f"{what}: vdev can work behind this command line")
    return 1 if count else 0


def words_of(text: str) -> list[str]:
    """The words of the last QEMU command in `text`: a shell's, possibly over several lines, or a libvirt log's.

    Raises ConfigError for a quote that is never closed.
    """
    starts = list(_LIBVIRT_START.finditer(text))
    if starts:
        text = text[starts[-1].start() :].partition("\n")[2]
        lines: list[str] = []
        for line in text.splitlines():  # the command ends with the first line that is not continued
            lines.append(line)
            if not line.endswith("\\"):
                break
        text = "\n".join(lines)
    try:
        return shlex.split(text.replace("\\\n", " "), comments=not starts)
    except ValueError as error:
        raise ConfigError("--command", f"not a command line: {error}", "quote it as a shell would have it") from None


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MAX_COMMAND_NBYTES))
        return file.read(MAX_COMMAND_NBYTES)


def version_of(argv: Sequence[str]) -> tuple[int, int] | None:
    """What the command's own QEMU says; None when it is not here, or belongs to somebody we should not run."""
    program = parse_command(argv).program
    through_loader = len(program) == 4 and program[1] == "--library-path"  # vdev's own QEMU is started so
    if not (len(program) == 1 or through_loader) or not all(map(_is_trusted, program[::2] + program[3:])):
        return None
    try:
        done = subprocess.run(
            [*program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=VERSION_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(done.stdout)
    return (int(match[1]), int(match[2])) if match else None


def _is_trusted(word: str) -> bool:
    if "/" not in word:
        return True  # looked for where our own PATH says
    try:
        return word.startswith("/") and os.stat(word).st_uid in (0, os.geteuid())
    except OSError:
        return False
