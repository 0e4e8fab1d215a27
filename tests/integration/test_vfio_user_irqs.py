"""SET_IRQS in every form QEMU has, and interrupts through the eventfds."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support import vfio_scene
from tests.support.vfio_client import Refused
from tests.support.vfio_scene import FakeFunction, eventfds, fired, open_fds, served, until

every_fd_is_closed = vfio_scene.every_fd_is_closed

TRIGGER_EVENTFD = 0x24
TRIGGER_NONE = 0x21
TRIGGER_BOOL = 0x22


async def test_vectors_reach_the_eventfds_they_were_given(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with eventfds(4) as fds:
            await client.set_irqs(TRIGGER_EVENTFD, 0, 1)  # MSI-X on, no vectors yet
            await client.set_irqs(TRIGGER_EVENTFD, 0, 4, fds)
            scene.function.raise_vector(2)
            scene.function.raise_vector(2)
            scene.function.raise_vector(0)

            assert [fired(fd) for fd in fds] == [1, 0, 2, 0]


async def test_vectors_may_come_in_chunks_and_runs(tmp_path: Path) -> None:
    async with served(tmp_path, FakeFunction(msix_vectors=40)) as scene:
        client = await scene.negotiated()
        with eventfds(40) as fds:
            await client.set_irqs(TRIGGER_EVENTFD, 0, 16, fds[:16])
            await client.set_irqs(TRIGGER_EVENTFD, 16, 16, fds[16:32])
            await client.set_irqs(TRIGGER_EVENTFD, 32, 3)  # a run without fds
            await client.set_irqs(TRIGGER_EVENTFD, 35, 5, fds[35:])
            for vector in range(40):
                scene.function.raise_vector(vector)

            assert [fired(fd) for fd in fds] == [1] * 32 + [0] * 3 + [1] * 5


async def test_an_eventfd_may_be_replaced_and_taken_away(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with eventfds(2) as (old, new):
            before = len(open_fds())
            await client.set_irqs(TRIGGER_EVENTFD, 1, 1, [old])
            await client.set_irqs(TRIGGER_EVENTFD, 1, 1, [new])
            scene.function.raise_vector(1)
            await client.set_irqs(TRIGGER_EVENTFD, 1, 1)
            scene.function.raise_vector(1)

            assert (fired(old), fired(new)) == (0, 1)
            assert len(open_fds()) == before


async def test_disabling_closes_every_eventfd_and_forgets_what_was_pending(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with eventfds(4) as fds:
            before = len(open_fds())
            await client.set_irqs(TRIGGER_EVENTFD, 0, 2, fds[:2])
            scene.function.raise_vector(3)
            await client.set_irqs(TRIGGER_NONE, 0, 0)
            scene.function.raise_vector(0)
            await client.set_irqs(TRIGGER_EVENTFD, 0, 4, fds)

            assert [fired(fd) for fd in fds] == [0] * 4
            await client.set_irqs(TRIGGER_NONE, 0, 0)
            assert len(open_fds()) == before


async def test_an_interrupt_of_a_vector_without_eventfd_is_delivered_when_it_comes(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with eventfds(1) as [fd]:
            await client.set_irqs(TRIGGER_EVENTFD, 0, 1)
            scene.function.raise_vector(3)
            await client.set_irqs(TRIGGER_EVENTFD, 3, 1, [fd])
            assert fired(fd) == 1

            await client.set_irqs(TRIGGER_EVENTFD, 3, 1, [fd])
            assert fired(fd) == 0


async def test_a_reset_voids_remembered_interrupts(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with eventfds(1) as [fd]:
            await client.set_irqs(TRIGGER_EVENTFD, 0, 1)
            scene.function.raise_vector(3)
            await client.reset()
            await client.set_irqs(TRIGGER_EVENTFD, 3, 1, [fd])

            assert fired(fd) == 0


async def test_the_client_may_trigger_vectors_itself(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with eventfds(4) as fds:
            await client.set_irqs(TRIGGER_EVENTFD, 0, 4, fds)
            await client.set_irqs(TRIGGER_NONE, 1, 2)
            await client.set_irqs(TRIGGER_BOOL, 0, 4, data=b"\1\0\1\0")

            assert [fired(fd) for fd in fds] == [1, 1, 2, 0]


async def test_a_vector_that_does_not_exist_is_dropped(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        scene.function.raise_vector(4)
        scene.function.raise_vector(-1)
        scene.function.raise_vector(0xFFFF)

        assert (await client.irq_info(2)).count == 4


async def test_a_full_eventfd_does_not_block(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        blocking = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            await client.set_irqs(TRIGGER_EVENTFD, 0, 1, [blocking])
            os.eventfd_write(blocking, (1 << 64) - 2)
            scene.function.raise_vector(0)

            assert fired(blocking) == (1 << 64) - 2
        finally:
            os.close(blocking)


async def test_switching_off_interrupts_that_are_not_there_is_no_error(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        await client.set_irqs(TRIGGER_NONE, 0, 0, index=0)
        await client.set_irqs(TRIGGER_NONE, 0, 0, index=1)

        assert scene.server.describe()["connection"]["refused"] == 0


@pytest.mark.parametrize(
    ("flags", "start", "count", "nfds", "index"),
    [
        (TRIGGER_EVENTFD, 0, 2, 1, 2),  # fewer fds than vectors
        (TRIGGER_EVENTFD, 0, 1, 2, 2),
        (TRIGGER_EVENTFD, 3, 2, 2, 2),  # beyond the last vector
        (TRIGGER_EVENTFD, 0xFFFFFFFF, 1, 1, 2),
        (TRIGGER_EVENTFD, 0, 0, 0, 2),
        (TRIGGER_NONE, 0, 1, 1, 2),  # fds that do not belong
        (TRIGGER_BOOL, 0, 4, 0, 2),  # no data
        (0x27, 0, 1, 0, 2),  # three kinds of data
        (0x20, 0, 1, 0, 2),
        (0x3C, 0, 1, 0, 2),  # three actions
        (0x01, 0, 1, 0, 2),
        (0x124, 0, 1, 1, 2),
        (TRIGGER_EVENTFD, 0, 1, 1, 0),  # INTx
        (TRIGGER_EVENTFD, 0, 1, 1, 3),  # ERR would let us stop the VM
        (TRIGGER_NONE, 0, 0, 0, 4),
    ],
)
async def test_a_wrong_set_irqs_is_refused_and_its_fds_are_closed(
    tmp_path: Path, flags: int, start: int, count: int, nfds: int, index: int
) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with eventfds(nfds) as fds:
            before = open_fds()
            with pytest.raises(Refused) as refusal:
                await client.set_irqs(flags, start, count, fds, index=index)

            assert refusal.value.errno == errno.EINVAL
            assert open_fds() == before


@pytest.mark.parametrize("flags", [0x09, 0x11])
async def test_masking_is_left_to_qemu(tmp_path: Path, flags: int) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with pytest.raises(Refused) as refusal:
            await client.set_irqs(flags, 0, 1)

        assert refusal.value.errno == errno.ENOTSUP


async def test_an_fd_that_is_no_eventfd_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        reading, writing = os.pipe()
        before = open_fds()
        with pytest.raises(Refused):
            await client.set_irqs(TRIGGER_EVENTFD, 0, 1, [writing])
        assert open_fds() == before
        os.close(reading)
        os.close(writing)


async def test_after_the_connection_interrupts_go_nowhere(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with eventfds(1) as [fd]:
            await client.set_irqs(TRIGGER_EVENTFD, 0, 1, [fd])
            client.close()
            await until(lambda: scene.server.connection is None)
            scene.function.raise_vector(0)

            assert fired(fd) == 0
