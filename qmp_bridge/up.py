"""One VM, from nothing to running and back to nothing: `async with bring_up(config, options) as vm`.

Order matters at both ends. QEMU connects to sockets that must already listen, so the backend comes first; and QEMU
aborts at its next RAM remap when a vfio-user socket closes under it, so it goes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from qemu.qmp import QMPError

from qmp_bridge.backend_process import STOP_SECONDS, check_sockets, death_of_backend, start_backend
from qmp_bridge.bridge.server import BridgeServer, Setup
from qmp_bridge.bridge.upstream import NoMonitor
from qmp_bridge.channel import Channel
from qmp_bridge.check_topology import check_topology
from qmp_bridge.child import Child, last_lines
from qmp_bridge.console import Console, connect
from qmp_bridge.control_client import ControlClient
from qmp_bridge.errors import VmDied, the_cause
from qmp_bridge.monitor import LoggedQmp, connect_monitor
from qmp_bridge.plan import TRACE_LOG, Options, Plan, find_parts, make_plan, overridden
from qmp_bridge.qemu_process import NOTICE_SECONDS, death_of_qemu, start_qemu, stop_qemu
from qmp_bridge.run_directory import RunDirectory
from qmp_bridge.run_state import RunState
from qmp_bridge.snapshot import restore
from vdev.config import Config, boot_kernel
from vdev.errors import ConfigError
from vdev.qemu.machine import expected_functions, socket_path
from vdev.qemu.restorable import late_units, restored_functions

TAIL_LINES = 40
TRACE_LINES = 50
CONNECT_SECONDS = 30.0  # from QEMU's start to its sockets; it connects to the backend in between
DRAIN_SECONDS = 2.0  # for what the guest said just before QEMU went
_SILENT = "and the console said nothing: has its kernel CONFIG_SERIAL_8250_CONSOLE built in, its disk a boot loader?"


class RunningVm:
    """A VM that runs. Made by `bring_up` alone.

    `qmp` is a connected QMPClient, `channel` the payload's, `console` the serial port; `control_path` is the
    backend's control socket and `monitor_path` a guarded QMP socket for the user; `logs` is where logs are written.
    """

    qmp: LoggedQmp
    control_path: str

    def __init__(self, config: Config, options: Options, plan: Plan, logs: Path) -> None:
        self.config = config
        self.options = options
        self.plan = plan
        self.logs = logs
        self.console = Console(options.follow)
        self.channel = Channel()
        self.monitor_path = socket_path(plan.paths.socket_dir, "monitor")
        self._bridge: BridgeServer | None = None
        self._control: ControlClient | None = None
        self._backend: Child | None = None
        self._qemu: Child | None = None
        self._qmp: LoggedQmp | None = None
        self._watchers: list[asyncio.Task[None]] = []
        self._end_expected = False

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        """What the payload says, to its `done` and including it. Raises VmDied when QEMU goes before that."""
        async with aclosing(self.channel.messages()) as messages:
            async for message in messages:
                yield message
        if self.channel.verdict is None and self.options.payload is not None:
            death = await self.death()
            if death is not None:
                raise death

    async def send(self, message: dict[str, Any]) -> None:
        """Say `message` to the payload."""
        await self.channel.send(message)

    def console_tail(self, count: int = TAIL_LINES, since: int = 0) -> list[str]:
        """The console's last `count` lines; none from before `console.nlines` was `since`."""
        return self.console.tail(count, since)

    def qmp_tail(self, count: int, since: int = 0) -> list[str]:
        """The last `count` messages to and from QEMU's monitor; none from before `qmp.nmessages` was `since`."""
        return self._qmp.tail(count, since) if self._qmp is not None else []

    def died(self, reason: str) -> VmDied:
        """The error to raise for `reason`, with the console's last lines."""
        return VmDied(reason, self.console_tail())

    async def wait_exit(self) -> int:
        """Wait for QEMU's end, which from now on is no failure; its exit status."""
        self._end_expected = True
        assert self._qemu is not None
        return await asyncio.shield(self._qemu.exited)

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Start both processes and connect to everything. Raises ConfigError or VmDied."""
        self.plan.write(self.config, self.logs)
        self._backend, ready = await start_backend(
            self.plan.backend, self.logs / "backend.log", Path(self.options.config_path or "config").name
        )
        self.control_path = ready.control
        check_sockets(ready, expected_functions(self.config), self.plan.paths.socket_dir)
        self._qemu = start_qemu(self.plan.qemu, self.plan.env, self.logs / "qemu.stderr")
        self._watch(tasks, self._watch_processes(self._backend, self._qemu))
        self._watch(tasks, self.console.run(*await connect(self.plan.paths.console, CONNECT_SECONDS)))
        self._watch(tasks, self.channel.run(*await connect(self.plan.paths.channel, CONNECT_SECONDS)))
        name, log = self.config.vm.name, self.logs / "qmp.log"
        self.qmp = self._qmp = await connect_monitor(name, self.plan.paths.qmp, log, CONNECT_SECONDS)
        expected = expected_functions(self.config)
        if self.options.restore is not None:
            await restore(self.qmp, self.options.restore, late_units(self.config, self.plan.paths.socket_dir))
            expected = restored_functions(self.config)
        await self._guard(tasks)
        self._watch(tasks, self._watch_clock())
        if boot_kernel(self.config.vm) is None:
            self._watch(tasks, self._watch_firmware())
        await check_topology(self.qmp, expected)

    async def _guard(self, tasks: asyncio.TaskGroup) -> None:
        """From now on the backend follows QEMU's run state, and the user has a monitor."""
        self._control = ControlClient(self.control_path)
        run_state = RunState(self._control, lambda: self.qmp.execute("query-status"))
        self.qmp.run_state = run_state
        setup = Setup(self.monitor_path, self.plan.paths.monitor, self.control_path)
        self._bridge = BridgeServer(setup, self.options.say)
        try:
            await self._bridge.connect(CONNECT_SECONDS)
        except NoMonitor as error:
            raise ConnectionError(str(error)) from error
        self._watch(tasks, run_state.follow())
        self._watch(tasks, self._bridge.run(run_state))

    def release(self) -> None:
        """Watch no longer: from now on everything may end."""
        self._end_expected = True
        for watcher in self._watchers:
            watcher.cancel()

    async def stop(self) -> None:
        """End everything, QEMU first. If this is cancelled, both processes are killed. Idempotent."""
        try:
            if self._qemu is not None:
                await stop_qemu(self._qemu, self._qmp)
            if self._qmp is not None:
                await self._qmp.close()
            if self._backend is not None:
                await self._backend.stop(STOP_SECONDS)
        finally:
            for guard in (self._bridge, self._control):
                if guard is not None:
                    guard.close()
            for child in (self._qemu, self._backend):
                if child is not None:
                    child.kill()

    async def death(self) -> VmDied | None:
        """Why the VM is gone, or going this very moment; None when it runs."""
        if self._qemu is None or self._backend is None or not await self._qemu.ended_within(NOTICE_SECONDS):
            return None
        return self.died(self._last_words(self._backend, self._qemu))

    def _watch(self, tasks: asyncio.TaskGroup, job: Coroutine[Any, Any, None]) -> None:
        self._watchers.append(tasks.create_task(job))

    async def _watch_processes(self, backend: Child, qemu: Child) -> None:
        """Raise VmDied when either process ends unasked. A dead backend takes QEMU with it, before QEMU can abort."""
        await asyncio.wait([backend.exited, qemu.exited], return_when=asyncio.FIRST_COMPLETED)
        if not backend.running and qemu.running:
            qemu.kill()
            raise self.died(death_of_backend(backend, self.logs / "backend.log"))
        if self._qmp is None and qemu.exited.result() == 1 and self.config.vm.extra_args:
            # Without them QEMU takes our command line: that is tested.
            words = death_of_qemu(qemu, self.logs / "qemu.stderr", "")
            raise ConfigError("vm.extra_args", words, "correct them, or leave them out")
        if self._qmp is not None:  # else there never was a channel
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    await self.channel.ended.wait()
        said_done = self.channel.verdict is not None or self.options.payload is None
        if not self._end_expected and not (said_done and qemu.exited.result() == 0):
            raise self.died(self._last_words(backend, qemu))

    def _last_words(self, backend: Child, qemu: Child) -> str:
        if qemu.exited.result() != 0 and not backend.running and backend.exited.result() != 0:
            return death_of_backend(backend, self.logs / "backend.log")
        notes = [self._qmp.shutdown_reason] if self._qmp and self._qmp.shutdown_reason else []
        if self.channel.verdict is None and self.options.payload is not None:
            notes.append("before the guest's payload was done")
        if verdict := self.console.verdict():
            return f"the guest cannot run the payload: {verdict}"
        if panic := self.console.panic():
            return f"the guest died of a {panic} ({', '.join(notes)})"
        return death_of_qemu(qemu, self.logs / "qemu.stderr", ", ".join(notes))

    async def _watch_firmware(self) -> None:
        """Raise VmDied when a BIOS stops for want of something to boot: nothing would ever happen."""
        await self.console.nothing_boots.wait()
        cure = "vm.firmware: ovmf boots disks made for UEFI only"
        raise self.died(f"the firmware finds nothing to boot on {self.config.vm.disk} ({cure})")

    async def _watch_clock(self) -> None:
        """Raise VmDied when the guest has not said hello in time, or has lived too long."""
        boot = self.config.vm.boot_timeout
        clock = asyncio.get_running_loop().time
        started = clock()
        if self.options.payload is not None:
            try:
                async with asyncio.timeout(boot):
                    await self.channel.greeted.wait()
            except TimeoutError:
                cure = "vm.boot_timeout sets the limit" if self.console_tail(1) else _SILENT
                raise self.died(f"the guest's payload did not report within {boot:.0f} s ({cure})") from None
        if self.options.timeout is not None:
            await asyncio.sleep(max(started + self.options.timeout - clock(), 0))
            raise self.died(f"the VM was not done within {self.options.timeout:.0f} s")


@asynccontextmanager
async def bring_up(config: Config, options: Options) -> AsyncIterator[RunningVm]:
    """A VM that runs inside the `async with` block; all of it is gone afterwards, on every path.

    Its death cancels the block and comes out as VmDied, whose `logs` says where the logs were kept; any other
    exception of the block keeps the logs, too. Raises ConfigError and PartsError before anything has started.
    Looking for parts blocks the event loop: call `find_parts` beforehand where something else runs in it.
    Enter and leave the block in the same task.
    """
    config = overridden(config, options)
    parts = options.parts or find_parts(config, options)
    run = RunDirectory()
    try:
        vm = RunningVm(config, options, make_plan(config, parts, options, run.path), run.logs)
        options.say(f"{config.vm.name}: QEMU {parts.version}, {parts.accel} ({parts.accel_reason})")
        with _logs_kept_on_failure(vm, run):
            async with _started(vm):
                yield vm
    finally:
        run.remove()


@asynccontextmanager
async def _started(vm: RunningVm) -> AsyncIterator[None]:
    try:
        async with asyncio.TaskGroup() as tasks:
            try:
                await _start(vm, tasks)
                yield
            except (QMPError, EOFError, ConnectionError) as error:
                # Whoever talks to QEMU sees its end first, and sees it as an error of the conversation.
                death = await vm.death()
                if death is None:
                    raise
                raise death from error
            finally:
                vm.release()
    except BaseExceptionGroup as group:
        raise the_cause(group) from None
    finally:
        # Outside the group, so that a watcher's alarm cannot cut it short; a second Ctrl-C still can.
        await vm.stop()


async def _start(vm: RunningVm, tasks: asyncio.TaskGroup) -> None:
    try:
        await vm.start(tasks)
    except ConnectionError:
        raise  # of the conversation with QEMU
    except OSError as error:
        raise vm.died(f"the VM cannot be started in {vm.plan.paths.socket_dir}: {error}") from error


@contextmanager
def _logs_kept_on_failure(vm: RunningVm, run: RunDirectory) -> Iterator[None]:
    try:
        yield
    except (ConfigError, asyncio.CancelledError, GeneratorExit, KeyboardInterrupt):
        raise  # somebody's wish or mistake: there is nothing to look into
    except BaseException as error:
        trace = last_lines(run.logs / TRACE_LOG, TRACE_LINES)  # complete now; whoever died earlier had not seen its end
        kept, problem = _kept(vm, run)
        match error:
            case VmDied():
                error.logs, error.logs_problem, error.trace = kept, problem, trace
                error.tail = error.tail or vm.console_tail()
        raise


def _kept(vm: RunningVm, run: RunDirectory) -> tuple[Path | None, str]:
    """Where the logs are now, or why they are nowhere: a full disk must not hide what the VM died of."""
    target = vm.options.logs
    if target is None:
        return None, ""
    try:
        return run.keep_logs(target, vm.config.vm.name), ""
    except OSError as error:
        problem = f"the logs could not be kept in {target}: {error}"
        vm.options.say(problem)
        return None, problem
