"""The guests of a pytest session: found by machine, two at a time at most, the one used longest ago ended first.

While the tests of one machine run, the next one's guest is started; one that nobody needs any more ends meanwhile.
Where one may live at a time, as in the two sessions of `make test`, nothing is started ahead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from guest_tests.runner.collection import Collection, collect, compiled, sources
from guest_tests.runner.guest import Guest, GuestGone, start_guest
from guest_tests.runner.library import GuestLibrary, guest_library
from guest_tests.runner.loop import LoopThread
from guest_tests.runner.snapshots import saved_guest
from guest_tests.runner.suite import Machine
from qmp_bridge.plan import MODULES, Options, Parts, find_parts, overridden
from vdev.errors import VdevError
from vdev.parts.cache import Cache
from vdev.parts.progress import Say, quiet

MAX_LIVE = 2
CHANNEL_MODULES = ("virtio_pci?", "virtio_console?")

T = TypeVar("T")


class NeverCameUp(VdevError):
    """The machine could not be started, now or earlier: it is tried once a session. `sections` as of GuestGone."""

    def __init__(self, text: str, sections: Iterable[tuple[str, str]] = (), logs: Path | None = None) -> None:
        self.sections = list(sections)
        self.logs = logs
        super().__init__(text)


@dataclass
class Coming:
    """A guest that is being started, and what there was to say about it. `task` is None until it begins."""

    said: list[str] = field(default_factory=list)
    future: Future[Guest] = field(default_factory=Future)
    task: asyncio.Task[Guest] | None = None


@dataclass
class Going:
    """A guest that nobody needs any more, and its end."""

    guest: Guest
    future: Future[None]


@dataclass(frozen=True)
class PoolOptions:
    """What the command line says about guests."""

    logs: Path
    cold: bool  # boot every guest
    pytest_options: tuple[str, ...]
    say: Say
    live: int = MAX_LIVE


class Pool:
    """Owns the loop, the library, the collections and the guests. Methods are for pytest's thread."""

    def __init__(self, options: PoolOptions) -> None:
        self._options = options
        self._cache = Cache()
        self._loop: LoopThread | None = None
        self._library: GuestLibrary | None = None
        self._collections: dict[Path, Collection] = {}
        self._parts: dict[tuple[Any, ...], Parts] = {}
        self._guests: dict[tuple[Path, str], Guest] = {}  # the one used last is last
        self._coming: dict[tuple[Path, str], Coming] = {}
        self._going: list[Going] = []
        self._failed: dict[tuple[Path, str], str] = {}
        self._lost: list[tuple[tuple[Path, str], GuestGone]] = []  # and not told of yet
        self._unsaved: set[tuple[Path, str]] = set()  # machines that are booted because they cannot be restored

    @property
    def library(self) -> GuestLibrary:
        """pytest and the payload for guests. Raises PartsError."""
        if self._library is None:
            self._library = guest_library(self._cache, self._options.say)
        return self._library

    def collection(self, root: Path) -> Collection:
        """The tests of the suite in `root`. Raises PartsError."""
        if root not in self._collections:
            self._collections[root] = collect(root, self.library, self._cache)
        return self._collections[root]

    def guest(self, machine: Machine, at_once: int = 1) -> Guest:
        """The running guest of `machine`, started if there is none, where so many may live `at_once` at least.

        Raises NeverCameUp.
        """
        self._sort_out_the_dead()
        guest = self._guests.pop(machine.key, None)
        if guest is None:
            if machine.key in self._failed:
                raise NeverCameUp(f"{machine.id} did not come up before: {self._failed[machine.key]}")
            try:
                guest = self._awaited(machine) or self._start(machine, at_once)
            except (VdevError, OSError) as error:
                self._failed[machine.key] = str(error).partition("\n")[0]
                raise _never_came_up(machine, error) from error
        self._guests[machine.key] = guest
        return guest

    def prepare(self, machine: Machine) -> None:
        """Start the guest of `machine` beside the one asked for last; one used before that ends first.

        What goes wrong is raised by `guest`, when the guest is asked for.
        """
        if machine.key in self._guests or machine.key in self._failed or self._coming or self._options.live < MAX_LIVE:
            return
        for key in list(self._guests)[: 1 - MAX_LIVE]:
            self._retire(key)
        coming = Coming()
        try:
            machine, options = self._ready(machine, coming.said.append)
        except (VdevError, OSError):
            return  # it will be raised again
        start = partial(self._started, machine, options, [going.future for going in self._going])
        coming.future = self._thread.submit(_followed(coming, start))
        self._coming[machine.key] = coming

    def retire(self) -> None:
        """No guest is needed for now: let all of them end beside whatever comes next."""
        for key in list(self._guests):
            self._retire(key)

    def _retire(self, key: tuple[Path, str]) -> None:
        guest = self._guests.pop(key)
        self._going.append(Going(guest, self._thread.submit(guest.close())))

    def lost(self) -> list[tuple[tuple[Path, str], GuestGone]]:
        """The guests that are gone though nobody asked anything of them, by key; each is told once."""
        self._sort_out_the_dead()
        gone, self._lost = self._lost, []
        return gone

    def forget(self, machine: Machine) -> None:
        """The guest of `machine` is gone, and whoever asked something of it knows."""
        self._guests.pop(machine.key, None)

    def settle(self) -> None:
        """Tear down the fixtures of modules that are still open, as after -x. Nobody hears what they say.

        A guest whose test was interrupted is left alone.
        """
        for guest in self._guests.values():
            if guest.idle:
                with suppress(VdevError):
                    self.do(guest.do(lambda living: living.agent.close_module()))

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, done in the guests' loop."""
        return self._thread.run(work)

    @property
    def _thread(self) -> LoopThread:
        if self._loop is None:
            self._loop = LoopThread()
        return self._loop

    def end(self, machine: Machine) -> None:
        """End the guest of `machine` if there is one."""
        guest = self._guests.pop(machine.key, None)
        if guest is not None:
            self.do(guest.close())

    def close(self) -> None:
        """End every guest, those that are only coming as well. Idempotent."""
        try:
            while self._coming:
                self._drop(self._coming.popitem()[1])
            while self._guests:
                self.do(self._guests.popitem()[1].close())
        finally:
            if self._loop is not None:
                self._loop.close()

    def _sort_out_the_dead(self) -> None:
        for key, guest in list(self._guests.items()):
            if guest.death is not None:
                self._lost.append((key, guest.death))
                del self._guests[key]
        for going in [going for going in self._going if going.future.done()]:
            if going.guest.death is not None:
                self._lost.append((going.guest.machine.key, going.guest.death))
            self._going.remove(going)

    def _make_room(self, at_once: int) -> None:
        while len(self._guests) + len(self._coming) >= max(self._options.live, at_once):
            if self._guests:
                oldest = next(iter(self._guests))
                self.do(self._guests.pop(oldest).close())
            else:
                self._drop(self._coming.popitem()[1])

    def _drop(self, coming: Coming) -> None:
        """End a guest that nobody asked for, however far it has got."""
        coming.future.cancel()
        self.do(_ended(coming))

    def _awaited(self, machine: Machine) -> Guest | None:
        """The guest that was started ahead, if it was. Raises as its start did."""
        coming = self._coming.pop(machine.key, None)
        if coming is None:
            return None
        guest = self._thread.wait(coming.future)
        for text in coming.said:
            self._options.say(text)
        return guest

    def _start(self, machine: Machine, at_once: int) -> Guest:
        self._make_room(at_once)
        return self.do(self._started(*self._ready(machine, self._options.say), [going.future for going in self._going]))

    def _ready(self, machine: Machine, say: Say) -> tuple[Machine, Options]:
        """The machine as it is to be started, with the parts it needs. Raises ConfigError, PartsError, OSError."""
        options = replace(self._options_for(machine), say=say)
        config = overridden(machine.config, options)
        options = replace(options, parts=self._parts_for(machine, options))
        return replace(machine, config=config), options

    async def _started(self, machine: Machine, options: Options, going: list[Future[None]]) -> Guest:
        assert options.parts is not None
        for end in going:  # never more than MAX_LIVE of them
            await asyncio.wait([asyncio.wrap_future(end)])
        if machine.driver == "none" and not self._options.cold and machine.key not in self._unsaved:
            saved = await saved_guest(machine.config, options.parts, options, self._cache, options.say)
            options = replace(options, restore=saved)
        started = time.monotonic()
        guest = await start_guest(machine, replace(options, say=quiet), list(self._options.pytest_options), options.say)
        if not guest.restored:
            self._unsaved.add(machine.key)  # saving or restoring it would fail again
            options.say(f"{machine.id}: booted in {time.monotonic() - started:.1f} s")
        try:
            await self.give_files(guest)
        except BaseException:
            await guest.close()
            raise
        return guest

    async def give_files(self, guest: Guest) -> None:
        """Put the directory of the guest's tests, with what was compiled of it, into the guest."""
        root = guest.machine.suite
        files = [(str(root / name), path) for name, path in sources(root)]
        if (collection := self._collections.get(root)) is not None:
            files += compiled(root, collection.pycache)
        await guest.do(lambda living: living.agent.put(files))

    def _options_for(self, machine: Machine) -> Options:
        modules = CHANNEL_MODULES if machine.driver == "none" else MODULES
        return Options(
            attach=machine.attach,
            kernel=machine.kernel,
            append=machine.append,
            payload="agent",
            payload_files=self.library.files(),
            modules=(*modules, *machine.modules),
            trace="logs",
            logs=self._options.logs,
            say=self._options.say,
        )

    def _parts_for(self, machine: Machine, options: Options) -> Parts:
        """Blocks while it downloads, or builds an initramfs: so it is done here, where Ctrl-C ends it at once."""
        vm = machine.config.vm
        key = (options.kernel, options.modules, vm.qemu, vm.kernel, vm.initrd, vm.disk, vm.firmware, vm.accel)
        if key not in self._parts:
            self._parts[key] = find_parts(machine.config, options)
        return self._parts[key]


async def _followed(coming: Coming, start: Callable[[], Coroutine[Any, Any, Guest]]) -> Guest:
    coming.task = asyncio.current_task()
    return await start()


async def _ended(coming: Coming) -> None:
    """In the loop, since the thread's future may be cancelled when the start has just succeeded."""
    if coming.task is None:
        return
    coming.task.cancel()
    await asyncio.wait([coming.task])
    if not coming.task.cancelled() and coming.task.exception() is None:
        await coming.task.result().close()


def _never_came_up(machine: Machine, error: Exception) -> NeverCameUp:
    text = f"{machine.id} did not come up: {error}"
    return NeverCameUp(text, error.sections, error.logs) if isinstance(error, GuestGone) else NeverCameUp(text)
