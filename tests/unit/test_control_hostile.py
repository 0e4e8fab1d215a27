"""Clients of the control socket that are many, greedy or wrong: the others are answered."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.support.schema import SMALL
from vdev.control.server import MAX_CLIENTS_OF_ONE_PROCESS, Command, ControlServer
from vdev.limited_log import LINES

ASK = b'{"execute": "query-answer"}\n'
NESTED = b'{"execute": "query-answer", "id": ' + b"[" * 30000 + b"]" * 30000 + b"}\n"


class Served:
    """A control server at `path`, and how often it was asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.server = ControlServer(self.listener, {"query-answer": Command(self._answer)}, described=SMALL.commands)

    def _answer(self) -> int:
        self.asked += 1
        return self.asked

    async def ask(self, line: bytes = ASK) -> bytes:
        """One request over a connection of its own; the answer, empty when there is none."""
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        try:
            writer.write(line)
            return await asyncio.wait_for(reader.readline(), 5)
        except ConnectionError:  # closed before we had written
            return b""
        finally:
            writer.close()


@asynccontextmanager
async def control(directory: Path) -> AsyncIterator[Served]:
    scene = Served(directory / "control.sock")
    await scene.server.start()
    try:
        yield scene
    finally:
        scene.server.close()
        scene.listener.close()


@pytest.mark.parametrize("line", [NESTED, b'{"execute": "\xff\xfe"}\n', b'{"execute": "\\ud800"}\n', b"\0\n"])
async def test_what_no_parser_likes_is_answered_with_an_error(tmp_path: Path, line: bytes) -> None:
    async with control(tmp_path) as scene:
        assert "not a request" in json.loads(await scene.ask(line))["error"]["desc"]


async def test_many_lines_at_once_leave_others_their_turn(tmp_path: Path) -> None:
    async with control(tmp_path) as scene:
        greedy_reader, greedy = await asyncio.open_unix_connection(str(scene.path))
        reader, writer = await asyncio.open_unix_connection(str(scene.path))
        await asyncio.sleep(0.01)
        greedy.write(ASK * 2000)
        writer.write(ASK)

        place = json.loads(await asyncio.wait_for(reader.readline(), 5))["return"]

        assert place < 100
        for _ in range(2000):
            await greedy_reader.readline()
        for each in (greedy, writer):
            each.close()


async def test_one_process_has_a_few_connections_and_the_rest_is_refused_in_a_handful_of_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with control(tmp_path) as scene:
        with ExitStack() as stack:
            for _ in range(MAX_CLIENTS_OF_ONE_PROCESS):
                stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(scene.path))
            refused = [await scene.ask() for _ in range(3 * LINES)]

        await asyncio.sleep(0.01)
        again = await scene.ask()

        assert refused == [b""] * (3 * LINES)
        assert json.loads(again) == {"return": 1}
        assert len(caplog.records) == LINES
        wanted = f"control: refused a client (pid {os.getpid()}): it has {MAX_CLIENTS_OF_ONE_PROCESS} connections"
        assert wanted in caplog.messages[0]


async def test_a_client_that_never_reads_holds_up_itself_alone(tmp_path: Path) -> None:
    async with control(tmp_path) as scene:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(scene.path))
            silent.setblocking(False)
            sent = 0
            while sent < 1000:
                try:
                    silent.send(b'{"execute": "' + b"x" * 30000 + b'"}\n')
                except BlockingIOError:
                    await asyncio.sleep(0)
                sent += 1

            assert json.loads(await scene.ask()) == {"return": 1}
