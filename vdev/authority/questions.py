"""Allocations that wait for the authority: each is answered once, within a second, whatever becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from vdev.authority.messages import Allocate
from vdev.iommu.pasid_set import Refusal

ANSWER_S = 0.8


@dataclass(slots=True)
class _Question:
    request: Allocate
    answer: Callable[[int | Refusal], None]
    timer: asyncio.TimerHandle


class Questions:
    """By their ids, which are never used twice."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Question] = {}
        self._ids = count(1)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Allocate]:
        return iter([question.request for question in self._waiting.values()])

    def ask(self, first: int, stop: int, answer: Callable[[int | Refusal], None]) -> Allocate:
        """The request to send, now or when the authority is back; UNREACHABLE if nothing came of it in time."""
        request = Allocate(next(self._ids), first, stop)
        timer = asyncio.get_running_loop().call_later(ANSWER_S, self.answer, request.id, Refusal.UNREACHABLE)
        self._waiting[request.id] = _Question(request, answer, timer)
        return request

    def answer(self, number: int, found: int | Refusal) -> bool:
        """Hand the answer to who asked; False where that one has been told something else already."""
        question = self._waiting.pop(number, None)
        if question is None:
            return False
        question.timer.cancel()
        question.answer(found)
        return True

    def give_up(self) -> None:
        """Nobody will answer any more."""
        for number in list(self._waiting):
            self.answer(number, Refusal.UNREACHABLE)
