"""Which process a pidfd is of, and when one counts as dead."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.authority import Vm
from vdev.authority import processes
from vdev.authority.processes import boot_id, has_ended, owner_of, pin
from vdev.errors import PeerError
from vdev.host.changes import Owner
from vdev.transports.identity import start_time_of

BOOT = boot_id()


@pytest.fixture
def vm() -> Iterator[Vm]:
    with Vm() as made:
        yield made


def pidfd_of(vm: Vm) -> int:
    assert vm.identity.pidfd is not None
    return vm.identity.pidfd


def owner(vm: Vm) -> Owner:
    return owner_of(pidfd_of(vm), BOOT)[0]


def test_a_pidfd_tells_process_start_and_user(vm: Vm) -> None:
    started = start_time_of(vm.process.pid)
    assert started is not None

    assert owner_of(pidfd_of(vm), BOOT) == (Owner(vm.process.pid, started, BOOT), os.geteuid())


def test_what_is_no_pidfd_is_refused_whatever_it_is_called() -> None:
    fd = os.memfd_create("anon_inode:[pidfd]")

    with pytest.raises(PeerError, match="the fd is no pidfd"):
        owner_of(fd, BOOT)

    os.close(fd)


def test_a_dead_process_is_nobody(vm: Vm) -> None:
    vm.kill()

    with pytest.raises(PeerError, match="the VM's process has ended"):
        owner_of(pidfd_of(vm), BOOT)


def test_a_zombie_is_dead(vm: Vm) -> None:
    vm.process.kill()
    os.waitid(os.P_PIDFD, pidfd_of(vm), os.WEXITED | os.WNOWAIT)

    assert has_ended(pidfd_of(vm))


def test_a_living_process_is_pinned_again(vm: Vm) -> None:
    pidfd = pin(owner(vm), BOOT)

    assert pidfd is not None
    assert owner_of(pidfd, BOOT)[0].pid == vm.process.pid
    os.close(pidfd)


def test_another_process_with_its_number_is_not_it(vm: Vm) -> None:
    mine = owner(vm)

    assert pin(Owner(mine.pid, mine.start_time - 1, BOOT), BOOT) is None


def test_a_process_of_another_boot_is_dead_whoever_has_its_number(vm: Vm) -> None:
    mine = owner(vm)

    assert pin(Owner(mine.pid, mine.start_time, "another"), BOOT) is None


def test_a_process_that_has_ended_cannot_be_pinned(vm: Vm) -> None:
    mine = owner(vm)
    vm.kill()

    assert pin(mine, BOOT) is None


def test_where_proc_does_not_tell_nothing_is_proven(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = owner(vm)
    monkeypatch.setattr(processes, "start_time_of", lambda _: None)

    pidfd = pin(mine, BOOT)

    assert pidfd is not None
    os.close(pidfd)
