"""Register and config accesses: synchronous, posted, multiple, wrong, late."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import vfio_scene
from tests.support.vfio_client import Refused, VfioClient
from tests.support.vfio_scene import PAGE, FakeFunction, served, until
from vdev.wire import vfio_user as wire
from vdev.wire.vfio_user import Command

every_fd_is_closed = vfio_scene.every_fd_is_closed


def multi(*entries: tuple[int, int, int, bytes], count: int | None = None) -> bytes:
    """REGION_WRITE_MULTI payload of (offset, region, count, data) entries."""
    body = b"".join(wire.WriteMultiEntry(*entry).pack() for entry in entries)
    return wire.WriteMulti(len(entries) if count is None else count).pack() + body


@pytest.mark.parametrize("nbytes", [1, 2, 4, 8])
async def test_registers_read_back_what_was_written(tmp_path: Path, nbytes: int) -> None:
    data = bytes(range(1, nbytes + 1))
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        answer = await client.region_write(2, 0x40, data)
        found = await client.region_read(2, 0x40, nbytes)

    assert found == data
    assert wire.RegionAccess.parse(answer) == wire.RegionAccess(0x40, 2, nbytes)


async def test_posted_writes_are_done_in_order_and_never_answered(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        for value in range(100):
            client.post_write(0, 0, value.to_bytes(4, "little"))
        found = await client.region_read(0, 0, 4)

        assert found == (99).to_bytes(4, "little")
        assert len(scene.function.calls) == 100
        assert client.death is None


async def test_a_refused_posted_write_is_not_answered_either(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        client.post_write(8, 0, b"abcd")
        client.send(99, b"", flags=wire.NO_REPLY)
        await client.device_info()

        assert client.death is None
        assert scene.server.describe()["connection"]["refused"] == 2
        assert scene.function.calls == []


@pytest.mark.parametrize(
    ("region", "offset", "count"),
    [
        (0, PAGE, 4),
        (0, PAGE - 2, 4),
        (0, (1 << 64) - 4, 4),
        (0, 0, 3),
        (0, 0, 16),
        (0, 0, 0),
        (1, 0, 4),
        (6, 0, 4),
        (7, 4096, 1),
        (7, 0, 0),
        (7, 0, 4097),
        (7, 0, 0xFFFFFFFF),
        (9, 0, 4),
    ],
)
async def test_a_read_outside_a_region_or_of_no_register_size_is_refused(
    tmp_path: Path, region: int, offset: int, count: int
) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        payload = wire.RegionAccess(offset, region, count).pack()
        with pytest.raises(Refused) as refusal:
            await client.request(Command.REGION_READ, payload)

    assert refusal.value.errno == errno.EINVAL


@pytest.mark.parametrize("data", [b"abc", b"abcde", b""])
async def test_a_write_whose_data_is_not_its_count_is_refused(tmp_path: Path, data: bytes) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with pytest.raises(Refused):
            await client.request(Command.REGION_WRITE, wire.RegionAccess(0, 0, 4).pack() + data)

        assert scene.function.calls == []


async def test_config_space_is_read_whole_and_written_in_parts(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        await client.region_write(7, 0x1FE, b"\xaa\xbb\xcc")
        config = await client.region_read(7, 0, 4096)

    assert len(config) == 4096
    assert config[0x1FE:0x201] == b"\xaa\xbb\xcc"


async def test_write_multi_does_every_write_in_order(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        payload = multi((0, 0, 4, b"aaaa"), (0, 0, 2, b"bb"), (8, 2, 8, b"12345678"))
        client.send(Command.REGION_WRITE_MULTI, payload, flags=wire.NO_REPLY)

        assert await client.region_read(0, 0, 4) == b"bbaa"
        assert await client.region_read(2, 8, 8) == b"12345678"


async def test_a_bad_write_among_many_does_not_lose_the_others(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        payload = multi((0, 8, 4, b"aaaa"), (0, 0, 9, b"bb"), (0, 0, 2, b"cc"))
        with pytest.raises(Refused):
            await client.request(Command.REGION_WRITE_MULTI, payload)

        assert scene.function.calls == ["write 0:0x0"]


@pytest.mark.parametrize(
    "payload", [multi(count=1), multi(count=1 << 63), multi(*[(0, 0, 4, b"aaaa")] * 201), b"1234567"]
)
async def test_write_multi_with_a_wrong_count_is_refused_whole(tmp_path: Path, payload: bytes) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with pytest.raises(Refused):
            await client.request(Command.REGION_WRITE_MULTI, payload)

        assert scene.function.calls == []


async def test_device_reset_resets_the_function_and_keeps_the_maps(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        await client.dma_map(0, PAGE)
        await client.reset()

        assert scene.function.calls == ["memory", "reset"]
        assert len(scene.function.memory) == 1


class Clock:
    """Nanoseconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now_ns = 1

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> Callable[[], None]:
        def step() -> None:
            self.now_ns += int(seconds * 1e9)

        return step


async def test_an_answer_that_took_too_long_goes_out_as_a_bare_error(tmp_path: Path) -> None:
    clock = Clock()
    async with served(tmp_path, deadline_s=4.5, clock_ns=clock) as scene:
        client = await scene.negotiated()
        scene.function.on_read = clock.advance(5)
        with pytest.raises(Refused) as refusal:
            await client.region_read(0, 0, 4)

        assert refusal.value.errno == errno.ETIMEDOUT


async def test_a_client_that_forgot_its_request_survives_the_late_answer(tmp_path: Path) -> None:
    clock = Clock()
    async with served(tmp_path, clock_ns=clock) as scene:
        client = await scene.negotiated()

        def slow() -> None:
            clock.advance(5)()
            client.forget()

        scene.function.on_read = slow
        with pytest.raises(asyncio.CancelledError):
            await client.region_read(0, 0, 4)
        scene.function.on_read = lambda: None

        assert len(await client.region_read(0, 0, 4)) == 4
        assert client.death is None


async def test_what_waits_behind_a_slow_request_is_late_too(tmp_path: Path) -> None:
    clock = Clock()
    async with served(tmp_path, clock_ns=clock) as scene:
        client = await scene.negotiated()
        scene.function.on_read = clock.advance(3)
        answers = await asyncio.gather(*(client.region_read(0, 0, 4) for _ in range(2)), return_exceptions=True)

    assert answers[0] == bytes(4)
    assert isinstance(answers[1], Refused)


async def test_replies_the_client_does_not_read_wait_for_it(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        async with asyncio.timeout(10):
            answers = await asyncio.gather(
                *(client.region_read(7, 0, 4096) for _ in range(120))
            )  # half a megabyte, twice the socket buffer

        assert set(answers) == {bytes(scene.function.config)}


async def test_a_client_that_never_reads_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        connection = scene.server.connection
        asyncio.get_running_loop().remove_reader(client._sock)
        await _pump(client, lambda: scene.server.connection is not connection)

        assert "does not read" in caplog.text
        assert scene.function.calls == ["disconnected", "memory"]


async def _pump(client: VfioClient, done: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not done():
            try:
                client.send(Command.REGION_READ, wire.RegionAccess(0, 7, 4096).pack())
            except (BlockingIOError, ConnectionError):
                await asyncio.sleep(0)


async def test_a_bug_in_the_function_ends_the_server_with_it(tmp_path: Path) -> None:
    function = FakeFunction()

    def bug() -> None:
        raise ZeroDivisionError("a bug of ours")

    function.on_read = bug
    with pytest.RaisesGroup(pytest.RaisesGroup(ZeroDivisionError)):
        async with served(tmp_path, function) as scene:
            client = await scene.negotiated()
            client.send(Command.REGION_READ, wire.RegionAccess(0, 0, 4).pack())
            await until(lambda: "disconnected" in function.calls)
            await asyncio.sleep(1)
