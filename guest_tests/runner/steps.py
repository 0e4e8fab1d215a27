"""What a test in the guest may ask of the host, one function each; the table is at the end."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from qemu.qmp import QMPError

from guest_tests.boot import Control
from qmp_bridge.up import RunningVm
from vdev.errors import VdevError

FILE = "host_steps.py"
MAX_PAUSE_S = 60.0
_NOBODY_COULD_RESUME = ("stop", "quit")


class StepRefused(VdevError):
    """A step cannot be done; the test gets the text."""


class HostSide:
    """The running machine as a function of host_steps.py gets it."""

    def __init__(self, vm: RunningVm, control: Control, suite: Path) -> None:
        self.vm = vm
        self.suite = suite
        self._control = control

    async def control(self, command: str, **arguments: Any) -> Any:
        """The answer of one command of vdev's control socket. Raises ControlError."""
        return await self._control.execute(command, **arguments)

    async def qmp(self, command: str, **arguments: Any) -> Any:
        """The answer of one QMP command. Raises QMPError."""
        return await self.vm.qmp.execute(command, arguments or None)


async def answer(side: HostSide, what: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request of a test: `answer`, or `error` with the reason."""
    step = STEPS.get(what)
    if step is None:
        return {"error": f"the host knows no {what!r}; it knows {', '.join(STEPS)}"}
    try:
        return {"answer": await step(side, **arguments)}
    except (VdevError, QMPError, OSError) as error:
        return {"error": str(error) or type(error).__name__}
    except TypeError as error:
        return {"error": f"{what}: {error}"}


async def _control(side: HostSide, *, command: str, arguments: dict[str, Any]) -> Any:
    return await side.control(command, **arguments)


async def _qmp(side: HostSide, *, command: str, arguments: dict[str, Any]) -> Any:
    if command in _NOBODY_COULD_RESUME:
        raise StepRefused(f"{command} would leave nobody to ask for more; host.pause(seconds) stops the machine")
    return await side.qmp(command, **arguments)


async def _pause(side: HostSide, *, seconds: float) -> None:
    if not 0 <= seconds <= MAX_PAUSE_S:
        raise StepRefused(f"a pause of {seconds} s is not in 0..{MAX_PAUSE_S:.0f}")
    await side.qmp("stop")
    await asyncio.sleep(seconds)
    await side.qmp("cont")


async def _step(side: HostSide, *, name: str, arguments: dict[str, Any]) -> Any:
    function = getattr(_load(side.suite / FILE), name, None)
    if not inspect.iscoroutinefunction(function):
        raise StepRefused(f"{side.suite / FILE} has no `async def {name}(vm, ...)`")
    try:
        return await function(side, **arguments)
    except AssertionError as error:
        raise StepRefused(f"{name}: {str(error) or 'an assertion failed'}") from None


def _load(path: Path) -> ModuleType:
    if not path.is_file():
        raise StepRefused(f"there is no {path}")
    spec = importlib.util.spec_from_file_location("host_steps", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError, NameError) as error:
        raise StepRefused(f"{path} cannot be imported: {error}") from None
    return module


STEPS: dict[str, Callable[..., Awaitable[Any]]] = {
    "control": _control,
    "qmp": _qmp,
    "pause": _pause,
    "step": _step,
}
