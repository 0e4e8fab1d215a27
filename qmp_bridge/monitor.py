"""QMP through `qemu.qmp`: one connected client that logs every message."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from qemu.qmp import ConnectError, ExecuteError, Message, QMPClient, QMPError
from qemu.qmp.models import ErrorResponse

from qmp_bridge.errors import VmDied
from qmp_bridge.guard import Rule, reason_for, rule_for
from qmp_bridge.run_state import RunState

RETRY_SECONDS = 0.02
NKEPT = 100  # newest messages kept in memory, whatever becomes of the file
KEPT_CHARACTERS = 500  # of each


class LoggedQmp(QMPClient):
    """A QMPClient that writes each message to a file, and remembers the newest and the reason of a SHUTDOWN.

    Where the file cannot be written, as on a full disk, the VM goes on without it.

    What the guard refuses it refuses, too: ExecuteError with the reason. `run_state`, once set, hears of every change
    in the order QEMU tells, and takes its part in `stop` and `cont`.
    """

    def __init__(self, name: str, log: Path) -> None:
        super().__init__(name)
        self._log: TextIO | None = None
        with suppress(OSError):
            self._log = log.open("a", encoding="utf-8", buffering=1)
        self._newest: deque[str] = deque(maxlen=NKEPT)
        self.nmessages = 0  # so far, forgotten ones included
        self._started = time.monotonic()
        self.shutdown_reason = ""
        self.run_state: RunState | None = None

    async def execute_msg(self, msg: Message) -> object:
        """As QMPClient's; a refused command never reaches QEMU."""
        name, arguments = str(msg.get("execute", msg.get("exec-oob"))), msg.get("arguments")
        if reason := reason_for(name, arguments):
            refusal = Message({"error": {"class": "GenericError", "desc": reason}})
            raise ExecuteError(ErrorResponse(refusal), msg, refusal)
        rule, _ = rule_for(name, arguments)
        if rule is None or self.run_state is None:
            return await super().execute_msg(msg)
        async with self.run_state.command(stops=rule is Rule.STOPS):
            return await super().execute_msg(msg)

    async def unguarded(self, name: str, arguments: Mapping[str, object]) -> object:
        """Execute what the guard refuses to everybody else: for states saved while no function of ours was there."""
        return await super().execute_msg(self.make_execute_msg(name, arguments))

    def _cb_outbound(self, msg: Message) -> Message:
        self._write("->", msg)
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        self._write("<-", msg)
        match dict(msg):
            case {"event": "SHUTDOWN", "data": {"reason": str(reason)}}:
                self.shutdown_reason = reason
            case {"event": "STOP" | "RESUME" as event}:
                self._saw(event == "RESUME", change=True)
            case {"return": {"status": str(), "running": bool(running)}}:  # of query-status
                self._saw(running, change=False)
        return msg

    def _saw(self, running: bool, *, change: bool) -> None:
        if self.run_state is not None:
            self.run_state.saw(running, change=change)

    def _write(self, direction: str, msg: Message) -> None:
        text = f"{time.monotonic() - self._started:10.4f} {direction} {bytes(msg).decode().strip()}"
        self._newest.append(text[:KEPT_CHARACTERS])
        self.nmessages += 1
        try:
            if self._log is not None:
                self._log.write(f"{text}\n")
        except OSError:
            self._end_log()

    def tail(self, count: int, since: int = 0) -> list[str]:
        """The newest messages, oldest first, each cut to KEPT_CHARACTERS; none from before `nmessages` was `since`."""
        count = min(count, self.nmessages - since)
        return list(self._newest)[-count:] if count > 0 else []

    def _end_log(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            with suppress(OSError):  # it tries to write what it could not write before
                log.close()

    async def close(self) -> None:
        """Disconnect, whatever state the connection is in, and close the log. Idempotent."""
        try:
            with suppress(QMPError, EOFError, OSError):
                await self.disconnect()
        finally:
            self._end_log()


async def connect_monitor(name: str, path: str, log: Path, seconds: float) -> LoggedQmp:
    """A client connected to the QMP socket at `path`, which may not be there yet.

    Raises VmDied when it is not there after `seconds`. Cancel this when QEMU has died.
    """
    qmp = LoggedQmp(name, log)
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    await qmp.connect(path)
                    return qmp
                except ConnectError as error:
                    match error.exc:
                        case OSError() | EOFError():  # not there yet, or there no more: then we are cancelled
                            await asyncio.sleep(RETRY_SECONDS)
                        case _:
                            raise VmDied(f"QEMU's QMP socket does not speak QMP: {error}") from error
    except TimeoutError:
        await qmp.close()
        raise VmDied(f"QEMU's QMP socket did not answer within {seconds:.0f} s") from None
    except BaseException:
        await qmp.close()
        raise
