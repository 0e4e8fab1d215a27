"""The recorded commands: a QEMU's replies through the bridge are those of a direct connection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.monitor_lab import Client, Message, bridge_between, client
from tests.support.real_qemu import real_qemu
from vdev.qapi.model import BUILTINS
from vdev.qapi.schema import schema

COMMANDS = Path(__file__).parents[1] / "support" / "monitor_commands.yaml"
MERGED = ("query-commands", "query-qmp-schema")


def recorded() -> list[tuple[str, dict[str, Any]]]:
    """Names and arguments."""
    entries = yaml.safe_load(COMMANDS.read_text(encoding="utf-8"))
    return [(entry, {}) if isinstance(entry, str) else next(iter(entry.items())) for entry in entries]


async def replies(person: Client) -> list[Message]:
    """To each command, with an id of its own that must come back; without it."""
    found = []
    for at, (name, arguments) in enumerate(recorded()):
        own_id = [at, {"é": None}]
        person.send(json.dumps({"execute": name, "arguments": arguments, "id": own_id}).encode())
        reply = await person.reply()
        assert reply.pop("id") == own_id
        if name == "query-cpus-fast":
            for cpu in reply["return"]:
                del cpu["thread-id"]  # the kernel's
        found.append(reply)
    return found


def without_ours(name: str, reply: Message) -> Message:
    """A description without what the bridge adds behind QEMU's own."""
    if name not in MERGED:
        return reply
    prefix = schema().prefix
    kept = [entry for entry in reply["return"] if not entry["name"].lstrip("[").startswith(prefix)]
    return {"return": kept}


def is_added(entry: dict[str, Any]) -> bool:
    return str(entry["name"]).strip("[]") in BUILTINS


@pytest.mark.timeout(120)
async def test_every_recorded_command_has_the_reply_of_a_direct_connection(tmp_path: Path) -> None:
    with real_qemu(tmp_path, "qmp") as paths:
        async with client(paths["qmp"]) as direct:
            expected = await replies(direct)
            events = direct.events
    with real_qemu(tmp_path, "qmp") as paths:
        async with bridge_between(paths["qmp"], tmp_path) as found, client(found.bridged) as person:
            seen = await replies(person)

    assert len(recorded()) >= 40
    for (name, arguments), ours, qemus in zip(recorded(), seen, expected, strict=True):
        stripped = without_ours(name, ours)
        if name in MERGED:
            count = len(qemus["return"])
            assert all(is_added(entry) for entry in stripped["return"][count:])
            stripped = {"return": stripped["return"][:count]}
        assert stripped == qemus, (name, arguments)
    assert [event["event"] for event in person.events] == [event["event"] for event in events]
