"""What a test in the guest may ask of the host, one function each; the table is at the end."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import traceback
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
        result = await step(side, **arguments)
        json.dumps(result)
    except (VdevError, QMPError, OSError) as error:
        return {"error": str(error) or type(error).__name__}
    except (TypeError, ValueError) as error:  # wrong arguments, or a result that is no plain data
        return {"error": f"{what}: {error}"}
    return {"answer": result}


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
    call = function(side, **arguments)  # wrong arguments are the test's mistake
    try:
        return await call
    except (asyncio.CancelledError, VdevError, QMPError, OSError):
        raise
    except BaseException as error:  # pytest.fail and sys.exit among them: none may end the host's loop
        raise StepRefused(f"{name}: {_what_failed(error)}") from error


def _what_failed(error: BaseException) -> str:
    """The error with the place in host_steps.py where it came from."""
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == FILE]
    where = f" ({FILE}, line {places[-1].lineno})" if places else ""
    kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
    return f"{kind}{str(error) or 'an assertion failed'}{where}"


def _load(path: Path) -> ModuleType:
    if not path.is_file():
        raise StepRefused(f"there is no {path}")
    spec = importlib.util.spec_from_file_location("host_steps", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise StepRefused(f"{path} cannot be imported: {_what_failed(error)}") from error
    return module


STEPS: dict[str, Callable[..., Awaitable[Any]]] = {
    "control": _control,
    "qmp": _qmp,
    "pause": _pause,
    "step": _step,
}
