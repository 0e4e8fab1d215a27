"""What becomes of each command, and who hears of each event: the middle of the bridge, between sessions and QEMU."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qmp_bridge.bridge.messages import (
    COMMAND_NOT_FOUND,
    GENERIC_ERROR,
    Request,
    error_body,
    event_line,
    reply_line,
    return_body,
)
from qmp_bridge.bridge.own_commands import DESCRIPTIONS, OwnCommands
from qmp_bridge.bridge.session import Session
from qmp_bridge.bridge.upstream import Upstream
from qmp_bridge.errors import Refused, VmDied
from qmp_bridge.guard import Rule, reason_for, rule_for
from qmp_bridge.run_state import RunState
from vdev.qapi.schema import schema

NEGOTIATE = "qmp_capabilities"
_EXPECTING = "Expecting capabilities negotiation with 'qmp_capabilities'"
_ALREADY = "Capabilities negotiation is already complete, command ignored"


@dataclass(slots=True)
class Bridge:
    """One VM's. `tasks` is where commands run, so that what was begun ends whether or not its client waits for it.

    `fatal`: that vdev does not follow ends the bridge (VmDied out of `tasks`), besides the client's error.
    """

    own: OwnCommands
    run_state: RunState
    tasks: asyncio.TaskGroup
    fatal: bool
    upstream: Upstream | None = None
    away: str = "it was never there"  # why there is no upstream
    sessions: set[Session] = field(default_factory=set)

    def tell(self, line: bytes) -> None:
        """An event for every client that has negotiated."""
        for session in list(self.sessions):
            session.event(line)

    def tell_own(self, name: str, data: Mapping[str, object]) -> None:
        """An event of ours, happening now."""
        self.tell(event_line(schema().prefix + name, data, time.time()))

    def connected(self, upstream: Upstream) -> None:
        """There is a QEMU."""
        self.upstream = upstream
        self.own.forget()

    def disconnected(self, reason: str) -> None:
        """There is none any more; `reason` in words."""
        self.upstream, self.away = None, reason

    async def execute(self, session: Session, request: Request) -> None:
        """Execute one command of a client to the end, also if the client is gone meanwhile. Never raises."""
        if session.negotiated and request.name != NEGOTIATE:
            await asyncio.shield(self.tasks.create_task(self._execute(session, request)))
            return
        request.close()
        try:
            session.reply(request, self._negotiate(session, request))
        except Refused as refusal:
            session.reply(request, error_body(str(refusal), refusal.error_class))

    def _negotiate(self, session: Session, request: Request) -> bytes:
        if request.name != NEGOTIATE:
            raise Refused(COMMAND_NOT_FOUND, _EXPECTING)
        if request.oob:
            raise Refused(GENERIC_ERROR, f"The command {NEGOTIATE} does not support OOB")
        if session.negotiated:
            raise Refused(COMMAND_NOT_FOUND, _ALREADY)
        enabled = _enabled(request.arguments, session.offered)
        session.oob = "oob" in enabled
        session.negotiated = True
        return return_body({})

    async def _execute(self, session: Session, request: Request) -> None:
        name, arguments = request.name, request.arguments
        try:
            if self.own.has(name):
                session.reply(request, return_body(await self.own.execute(name, arguments, oob=request.oob)))
            elif reason := reason_for(name, arguments):
                raise Refused(GENERIC_ERROR, reason)
            else:
                await self._forward(session, request)
        except Refused as refusal:
            session.reply(request, error_body(str(refusal), refusal.error_class))
        finally:
            request.close()

    async def _forward(self, session: Session, request: Request) -> None:
        if self.upstream is None:
            raise Refused(GENERIC_ERROR, f"QEMU is gone: {self.away}")
        rule, _ = rule_for(request.name, request.arguments)
        if rule is not None:
            await self._guarded(session, request, self.upstream, rule)
            return

        def on_reply(body: bytes) -> None:
            if request.name in DESCRIPTIONS:
                body = self.own.describe(request.name, body)
            session.reply(request, body)

        await self.upstream.call(request.name, request.arguments, on_reply, oob=request.oob, fds=request.fds)

    async def _guarded(self, session: Session, request: Request, upstream: Upstream, rule: Rule) -> None:
        """A command that stops or continues the VM: its reply comes when vdev has followed, which nothing overtakes."""
        body = b""
        try:
            async with self.run_state.command(stops=rule is Rule.STOPS):
                body = await upstream.call(
                    request.name, request.arguments, lambda _: session.output.hold(), oob=request.oob
                )
        except VmDied as error:
            problem = "was executed, but vdev does not follow" if body else "was not executed, as vdev does not follow"
            session.output.release(reply_line(error_body(f"{request.name} {problem}: {error}"), request.own_id))
            if self.fatal:
                raise
        else:
            session.output.release(reply_line(body, request.own_id))


def _enabled(arguments: Mapping[str, Any], offered: list[str]) -> list[str]:
    """The capabilities a client asks for. Raises Refused in QEMU's words, its slips included."""
    enable = arguments.get("enable", [])
    if not isinstance(enable, list):
        raise Refused(GENERIC_ERROR, "Invalid parameter type for 'enable', expected: array")
    for index, name in enumerate(enable):
        if not isinstance(name, str):
            raise Refused(GENERIC_ERROR, f"Invalid parameter type for 'enable[{index}]', expected: string")
        if name != "oob":
            raise Refused(GENERIC_ERROR, f"Parameter 'null' does not accept value '{name}'")
        if name not in offered:
            raise Refused(GENERIC_ERROR, f"Capability '{name}' is not available")
    for name in arguments:
        if name != "enable":
            raise Refused(GENERIC_ERROR, f"Parameter '{name}' is unexpected")
    return enable
