"""The guest's serial console: followed, and its end remembered. QEMU itself writes the complete log."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from qmp_bridge.errors import VmDied

TAIL_LINES = 2000  # caps what a chatty guest costs us
LINE_CHARACTERS = 4096  # a line without end is cut here
RETRY_SECONDS = 0.01
PANIC = "Kernel panic - not syncing"
VERDICT = "vdev-init: cannot run the payload: "  # of our initramfs (vdev/parts/initramfs.py)
NOTHING_BOOTS = "No bootable device."  # SeaBIOS, before it stops for good
# What a panic of a kernel of one's own most often means.
_PANIC_CURES = {
    "Unable to mount root fs": "it found no initrd: CONFIG_BLK_DEV_INITRD must be built in; "
    "with vm.initrd: none, the driver of the root disk, too",
    "No working init found": "it has no initrd or cannot run /init: CONFIG_BLK_DEV_INITRD, CONFIG_BINFMT_ELF and "
    "CONFIG_BINFMT_SCRIPT must be built in",
    "Requested init": "it cannot run that init: CONFIG_BINFMT_ELF and CONFIG_BINFMT_SCRIPT must be built in",
}
_CHUNK = 1 << 16


class Console:
    """One console. `follow` is given every byte as it comes; `write` types."""

    def __init__(self, follow: Callable[[bytes], None] | None = None) -> None:
        self._follow = follow
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)
        self._partial = ""
        self.nlines = 0  # so far, forgotten ones included
        self._writer: asyncio.StreamWriter | None = None
        self.nothing_boots = asyncio.Event()  # the firmware has given up

    def tail(self, count: int, since: int = 0) -> list[str]:
        """The last `count` lines, oldest first, with the unfinished one; none from before `nlines` was `since`."""
        lines = [*self._lines, self._partial] if self._partial else list(self._lines)
        count = min(count, self.nlines - since + bool(self._partial))
        return lines[-count:] if count > 0 else []

    def panic(self) -> str:
        """The line in which the guest's kernel gave up, and what to do if that is known; empty while it has not."""
        panic = self._last_with(PANIC)
        cures = [cure for words, cure in _PANIC_CURES.items() if words in panic]
        return f"{panic} ({cures[0]})" if cures else panic

    def verdict(self) -> str:
        """Why our initramfs could not run the payload; empty where it could."""
        return self._last_with(VERDICT).removeprefix(VERDICT)

    def _last_with(self, words: str) -> str:
        for line in reversed(self._lines):
            if (at := line.find(words)) >= 0:
                return line[at:]
        return ""

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Follow until QEMU hangs up."""
        self._writer = writer
        try:
            while chunk := await reader.read(_CHUNK):
                self.feed(chunk)
        except ConnectionError:
            pass  # the same as its end
        finally:
            self._writer = None
            writer.close()

    def feed(self, chunk: bytes) -> None:
        """Take in what the guest wrote."""
        if self._follow is not None:
            self._follow(chunk)
        text = self._partial + chunk.decode(errors="replace").replace("\r", "")
        *lines, self._partial = text.split("\n")
        if NOTHING_BOOTS in text:
            self.nothing_boots.set()
        self._lines.extend(line[:LINE_CHARACTERS] for line in lines)
        self.nlines += len(lines)
        self._partial = self._partial[:LINE_CHARACTERS]

    async def write(self, data: bytes) -> None:
        """Type `data`; dropped when there is no console any more."""
        if self._writer is not None:
            self._writer.write(data)
            await self._writer.drain()


async def connect(path: str, seconds: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a socket QEMU is about to make; VmDied when there is none after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return await asyncio.open_unix_connection(path)
                except OSError:
                    await asyncio.sleep(RETRY_SECONDS)
    except TimeoutError:
        raise VmDied(f"QEMU did not make its socket {path} within {seconds:.0f} s") from None
