"""One command to the authority's admin.sock, from a backend's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from vdev.authority.messages import ADMIN_SOCKET
from vdev.errors import VdevError

ASK_S = 5.0
MAX_ANSWER_NBYTES = 64 << 20  # every PASID of the host, in words


async def ask(directory: Path, command: str, arguments: Mapping[str, Any], on_behalf: str = "") -> Any:
    """What `command` returns. VdevError when it is refused, or nobody answers. `on_behalf` goes into the audit."""
    given = {**arguments, **({"on-behalf": on_behalf} if on_behalf else {})}
    line = msgspec.json.encode({"execute": command, "arguments": given}) + b"\n"
    path = directory / ADMIN_SOCKET
    try:
        async with asyncio.timeout(ASK_S):
            answer = await _exchange(path, line)
    except TimeoutError:
        raise VdevError(f"the PASID authority does not answer on {path}") from None
    except OSError as error:
        raise VdevError(f"the PASID authority cannot be asked on {path}: {error.strerror}") from None
    if "error" in answer:
        raise VdevError(answer["error"]["desc"])
    return answer["return"]


async def _exchange(path: Path, line: bytes) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(path, limit=MAX_ANSWER_NBYTES)
    try:
        writer.write(line)
        await writer.drain()
        raw = await reader.readline()
    finally:
        writer.close()
    if not raw:
        raise VdevError(f"the PASID authority hung up on {path}")
    decoded: dict[str, Any] = msgspec.json.decode(raw)
    return decoded
