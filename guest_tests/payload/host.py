"""The host as a guest's test sees it: the fixture `host`, whose steps are done there while the test waits."""

from __future__ import annotations

from typing import Any

import pytest

from .guest import Channel, KernelLog

ANSWER_S = 600.0  # a step may stop the machine for a while


class HostRefused(Exception):
    """A step on the host failed; the text is the host's."""


class Host:
    """The host as a test sees it: steps that are done there while the test waits."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def ask(self, what: str, **arguments: Any) -> Any:
        """Have the host do `what` and return its result. Raises HostRefused."""
        self._channel.send({"ask": what, "arguments": arguments})
        answer = self._channel.receive(ANSWER_S)
        if answer is None:
            raise HostRefused(f"{what}: no answer within {ANSWER_S:.0f} s")
        if "error" in answer:
            raise HostRefused(f"{what}: {answer['error']}")
        return answer["answer"]

    def step(self, name: str, **arguments: Any) -> Any:
        """Run the function `name` of the directory's host_steps.py on the host. Raises HostRefused."""
        return self.ask("step", name=name, arguments=arguments)

    def control(self, command: str, **arguments: Any) -> Any:
        """Execute a command of vdev's control socket, such as query-iommu. Raises HostRefused."""
        return self.ask("control", command=command, arguments=arguments)

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Execute a QMP command. Raises HostRefused; `stop` is refused, as nobody could ask for `cont`: see pause."""
        return self.ask("qmp", command=command, arguments={key.replace("_", "-"): arguments[key] for key in arguments})

    def pause(self, seconds: float) -> None:
        """Stop the whole machine by QMP for so long, and let it go on. Raises HostRefused."""
        self.ask("pause", seconds=seconds)

    def note(self, text: str) -> None:
        """Put a line into vdev's trace."""
        self.control("trace-note", text=text)


HOST = pytest.StashKey[Host]()
MACHINE = pytest.StashKey[dict[str, Any]]()


@pytest.fixture(scope="session")
def host(pytestconfig: pytest.Config) -> Host:
    """Steps on the host: control commands, QMP commands, functions of host_steps.py."""
    return pytestconfig.stash[HOST]


@pytest.fixture(scope="session")
def machine(pytestconfig: pytest.Config) -> dict[str, Any]:
    """What this machine is: `name`, `attach`, `driver`, `units` and `endpoints` as in the configuration."""
    return pytestconfig.stash[MACHINE]


@pytest.fixture
def kernel_log() -> KernelLog:
    """The kernel's log; `mark` it, do something, `wait_for` what the kernel says."""
    return KernelLog()
