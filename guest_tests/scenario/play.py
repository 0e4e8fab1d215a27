"""Plays the steps of a scenario on a machine, one after another, and notes what happens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from guest_tests.scenario.kind import Done
from guest_tests.scenario.model import Step
from guest_tests.scenario.scene import MachineGone, Scene, StepFailed
from guest_tests.scenario.timeline import Failure, Timeline

END_S = 10.0  # in which a machine must be gone after a step with `ends`


class NotGreen(Exception):
    """A step failed: `failure` says which and how; `gone` is there when the machine is not."""

    def __init__(self, failure: Failure, gone: MachineGone | None = None) -> None:
        self.failure = failure
        self.gone = gone
        super().__init__(failure.found)


class Player:
    """Plays one scenario."""

    def __init__(self, scene: Scene, timeline: Timeline) -> None:
        self._scene = scene
        self._timeline = timeline
        self.ndone = 0
        self.is_over = False  # the machine has ended as it was to
        self._at: Step | None = None

    async def play(self, steps: Sequence[Step], seconds: float) -> None:
        """All of them within so many seconds. Raises NotGreen."""
        try:
            async with asyncio.timeout(seconds):
                await self._all(steps)
        except TimeoutError:
            at = self._at
            assert at is not None
            found = f"it was at {at.key} by then"
            raise NotGreen(Failure(at.key, at.kind, "", f"all is done within {seconds:g} s", found)) from None

    async def _all(self, steps: Sequence[Step]) -> None:
        for step in steps:
            await self._one(step)

    async def _one(self, step: Step) -> None:
        self._at = step
        words = ""
        try:
            words = step.does.words(self._scene)
            self._timeline.add(step.kind, words, step.key)
            done = await (self._ending(step) if step.ends else self._doing(step))
        except StepFailed as failed:
            failure = Failure(step.key, step.kind, words, failed.expected, failed.found, failed.detail)
            raise NotGreen(failure) from failed
        except MachineGone as gone:
            failure = Failure(step.key, step.kind, words, "the machine goes on", gone.reason)
            raise NotGreen(failure, gone) from gone
        if done.words:
            self._timeline.add("", done.words, step.key)
        if step.does.saved_as is not None:
            self._scene.values[step.does.saved_as] = done.value
        self.ndone += 1

    async def _doing(self, step: Step) -> Done:
        doing = step.does.do(self._scene, partial(self._all, step.inner))
        if self.is_over or step.inner:  # then the steps inside notice when the machine goes
            return await doing
        return await self._scene.machine.beside(doing)

    async def _ending(self, step: Step) -> Done:
        """The step is to end the backend, or the VM; whatever else became of it matters only when it does not."""
        value, problem = None, ""
        try:
            value = (await self._doing(step)).value
        except StepFailed as failed:
            problem = f"; {failed}"
        except MachineGone:
            pass
        reason = await self._scene.machine.ended(END_S)
        if reason is None:
            raise StepFailed(f"{WHO[step.ends]} ends", f"it goes on{problem}")
        if (step.ends == "backend") != reason.startswith(WHO["backend"]):
            raise StepFailed(f"{WHO[step.ends]} ends", reason)
        self.is_over = True
        return Done(reason, value)


WHO = {"backend": "the backend", "vm": "QEMU or the guest", None: ""}
