"""A client of the backend's control socket: one command at a time, each with its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from qmp_bridge.errors import Refused, VmDied

ANSWER_SECONDS = 30.0  # the backend answers within milliseconds, unless the host has none to give it
_MAX_ANSWER_NBYTES = 16 << 20


class ControlClient:
    """Connects when it is first needed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def execute(self, command: str, **arguments: object) -> Any:
        """What the command returns. Raises VmDied for a refusal, and when the backend does not answer."""
        try:
            return await self.ask(command, arguments)
        except Refused as refusal:
            raise VmDied(f"the backend refuses {command}: {refusal}") from None

    async def ask(self, command: str, arguments: Mapping[str, object], seconds: float = ANSWER_SECONDS) -> Any:
        """What the command returns. Raises Refused with the backend's words; VmDied when it does not answer in time."""
        request = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        try:
            async with asyncio.timeout(seconds):
                if self._streams is None:
                    self._streams = await asyncio.open_unix_connection(self._path, limit=_MAX_ANSWER_NBYTES)
                reader, writer = self._streams
                writer.write(request)
                await writer.drain()
                line = await reader.readline()
        except (OSError, TimeoutError, ValueError) as error:  # ValueError: a line without end
            self.close()
            raise VmDied(f"the backend does not answer {command}: {str(error) or 'no word in time'}") from None
        except BaseException:
            self.close()  # an answer that nobody waits for must not be taken for the next one's
            raise
        if not line:
            self.close()
            raise VmDied(f"the backend hung up instead of answering {command}")
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"]["class"], answer["error"]["desc"])
        return answer["return"]

    def close(self) -> None:
        """Disconnect. Idempotent."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
