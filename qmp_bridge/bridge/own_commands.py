"""Our commands on QMP: which there are, who answers them, and how QEMU's descriptions come to hold them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from qmp_bridge.bridge.merge import merged, prepared
from qmp_bridge.bridge.messages import not_found
from qmp_bridge.errors import Refused
from vdev.errors import VdevError
from vdev.qapi.check import check_arguments
from vdev.qapi.introspection import command_names, schema_info
from vdev.qapi.schema import schema

Handler = Callable[..., Awaitable[Any]]
Ask = Callable[[str, Mapping[str, object]], Awaitable[Any]]
DESCRIPTIONS = ("query-commands", "query-qmp-schema")


class OwnCommands:
    """Those of the schema. `handlers` answers what needs QEMU as well, by name without the prefix; `ask` asks vdev."""

    def __init__(self, handlers: Mapping[str, Handler], ask: Ask) -> None:
        self._handlers = handlers
        self._ask = ask
        self._prefix = schema().prefix
        self._merged: dict[str, bytes] = {}

    def has(self, name: str) -> bool:
        """Whether a command is ours to answer, with an error at least."""
        return name.startswith(self._prefix)

    async def execute(self, name: str, arguments: Mapping[str, object], *, oob: bool) -> Any:
        """What one of ours returns. Raises Refused."""
        own = name.removeprefix(self._prefix)
        command = schema().commands.get(own)
        if command is None or command.control_only:
            raise not_found(name)
        if oob:
            raise Refused("GenericError", f"The command {name} does not support OOB")
        handler = self._handlers.get(own)
        if handler is None and command.bridge_only:
            raise not_found(name)
        try:
            checked = check_arguments(command, arguments)
            return await (self._ask(own, arguments) if handler is None else handler(**checked))
        except VdevError as error:
            raise Refused(getattr(error, "error_class", "GenericError"), str(error)) from None

    def describe(self, name: str, body: bytes) -> bytes:
        """QEMU's reply to one of DESCRIPTIONS with ours behind it; `forget` when there is another QEMU."""
        if name not in self._merged and body.startswith(b'"return"'):
            present = {entry["name"] for entry in json.loads(b"{%s}" % body)["return"]}
            ours: list[object] = (
                [{"name": own} for own in command_names()] if name == DESCRIPTIONS[0] else [*schema_info(present)]
            )
            self._merged |= prepared({name: ours})
        return merged(body, self._merged.get(name, b""))

    def forget(self) -> None:
        """The next description is another QEMU's."""
        self._merged.clear()
