"""A socket that answers commands from a table: whoever asks is the one that is tested."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Answers = dict[str, Any]
Make = Callable[[str, Answers], "Answering"]


class Answering:
    """One socket that answers commands from a table; `asked` is what came."""

    def __init__(self, path: Path, answers: Answers) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._answers = answers
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, sock.makefile("rwb") as stream:
                for line in stream:
                    request = json.loads(line)
                    self.asked.append((request["execute"], request.get("arguments", {})))
                    answer = self._answers[request["execute"]]
                    returned = answer.pop(0) if isinstance(answer, Pages) else answer
                    key = "error" if isinstance(returned, Refusal) else "return"
                    value = {"class": "GenericError", "desc": returned} if key == "error" else returned
                    stream.write(json.dumps({key: value}).encode() + b"\n")
                    stream.flush()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


class Pages(list[Any]):
    """Answers for one command, one after the other."""


class Refusal(str):
    """An answer that is an error."""

    __slots__ = ()


@contextmanager
def answering_in(directory: Path) -> Iterator[Make]:
    """`make(name, answers)`: such a socket in `directory`, gone after the block."""
    made: list[Answering] = []

    def make(name: str, answers: Answers) -> Answering:
        made.append(Answering(directory / name, answers))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            one.close()
