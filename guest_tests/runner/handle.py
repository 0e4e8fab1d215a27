"""The fixture `guest_on`: a guest for a test that runs on the host, which calls functions in it and looks from outside.

def test_mappings_outlive_a_stop(guest_on):
    guest = guest_on(CONFIG, files=HERE / "inside")
    guest.call("mappings:make", count=3)
    guest.qmp("stop")
    assert guest.control("query-iommu")[0]["mappings"] == 3
    guest.qmp("cont")
    assert guest.call("mappings:work") == "all three"
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from guest_tests.payload.fault_fixtures import Faults
from guest_tests.runner.guest import Guest, GuestGone, Living
from guest_tests.runner.nodes import POOL, tier
from guest_tests.runner.pool import Pool
from guest_tests.runner.suite import Driver, Machine
from vdev.config import Attach, Config, load_config

CALL_S = 30.0

GuestOn = Callable[..., "GuestHandle"]
FaultsOf = Callable[["GuestHandle"], Faults]


class GuestHandle:
    """One guest of a test on the host. Methods raise GuestGone when it is gone, with what there was to see."""

    def __init__(self, pool: Pool, guest: Guest) -> None:
        self._pool = pool
        self._guest = guest
        self._faults: Faults | None = None

    def call(self, function: str, *, limit: float = CALL_S, **arguments: Any) -> Any:
        """Call "module:function" of the guest's files; what it leaves behind stays for the next call.

        Raises CallFailed with the guest's traceback, GuestRefused, GuestGone after `limit` seconds.
        """
        where = str(self._guest.machine.suite)
        return self._do(lambda living: living.agent.call(function, arguments, limit, where))

    def control(self, command: str, **arguments: Any) -> Any:
        """Execute a command of vdev's control socket. Raises ControlError."""
        return self._do(lambda living: living.side.control(command, **arguments))

    @property
    def faults(self) -> Faults:
        """Its fault plan (docs/faults.md); what is refused raises ControlError. See the fixture `faults`, too."""
        if self._faults is None:
            self._faults = Faults(self)
        return self._faults

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Execute a QMP command, `stop` and `cont` among them. Raises QMPError."""
        return self._do(lambda living: living.side.qmp(command, **arguments))

    def kill(self) -> None:
        """Kill QEMU, as a crash would, and wait until all of the VM is gone; the handle is of no use afterwards."""
        os.kill(self.control("query-status")["process"]["pid"], signal.SIGKILL)
        self._pool.end(self._guest.machine)

    def restart(self) -> None:
        """Reset the whole machine, and wait until it has booted again. It must not be a restored one."""

        async def reset(living: Living) -> None:
            await living.side.qmp("set-action", reboot="reset")  # else QEMU ends instead
            await living.side.qmp("system_reset")

        self._do(reset)
        self.wait_restarted()

    def wait_restarted(self) -> None:
        """Wait until the guest, which was told to restart, has booted again. Its files are there again, too."""
        self._do(lambda living: living.agent.wake(restored=False, seconds=self._guest.machine.config.vm.boot_timeout))
        self._pool.do(self._pool.give_files(self._guest))

    def _do(self, work: Callable[[Living], Any]) -> Any:
        return self._pool.do(self._guest.do(work))


@pytest.fixture
def guest_on(request: pytest.FixtureRequest) -> Iterator[GuestOn]:
    """`guest_on(config, attach=..., driver="none", files=DIRECTORY)`: a guest of the test's own, ended after it.

    A test that needs two guests at a time says `at_once=2` for the second.
    """
    pool = request.config.stash[POOL]
    machines: list[Machine] = []

    def start(
        config: Path | Config,
        *,
        files: Path | None = None,
        attach: Attach | None = None,
        driver: Driver = "none",
        kernel: str | None = None,
        append: str = "",
        at_once: int = 1,
    ) -> GuestHandle:
        machine = Machine(
            id=f"{request.node.name}-{len(machines)}",
            suite=files or request.config.rootpath / "no-files",
            config=load_config(config) if isinstance(config, Path) else config,
            driver=driver,
            attach=attach,
            kernel=kernel,
            append=append,
            modules=(),
            tier=tier(),
        )
        machines.append(machine)
        return GuestHandle(pool, pool.guest(machine, at_once))

    yield start
    for machine in machines:
        pool.end(machine)


@pytest.fixture
def faults() -> Iterator[FaultsOf]:
    """`faults(guest)`: the fault plan of a guest, cleared after the test if the guest is still there."""
    used: list[GuestHandle] = []

    def of(guest: GuestHandle) -> Faults:
        used.append(guest)
        return guest.faults

    yield of
    for guest in used:
        with suppress(GuestGone):
            guest.faults.clear()
