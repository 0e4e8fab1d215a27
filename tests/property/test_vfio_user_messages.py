"""Any sequence of vfio-user messages, made of their records: the rules hold, and how the stream is cut changes nothing.

What the rules are is said where the fuzzer looks for the same: tests/fuzz/targets/vfio_user.py.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.line import EDGES, EVENTFD, MEMFD, RAM_NBYTES, make_fds
from tests.fuzz.reader import Reader
from tests.fuzz.targets.vfio_user import VECTORS, VERSION, Scene
from tests.property.records import records
from vdev.transports.vfio_session import COMMANDS
from vdev.wire import vfio_user as wire
from vdev.wire.vfio_user import Command

FIELDS = st.sampled_from(EDGES) | st.integers(0, (1 << 64) - 1)
FLAGS = st.sampled_from([0, 0, 0, wire.NO_REPLY, wire.TYPE_REPLY, 2])
FDS = st.sampled_from([0, 0, 0, MEMFD, EVENTFD, EVENTFD + 8, MEMFD + 8])
START = wire.message(0, Command.VERSION, VERSION)
PAGES = range(0, RAM_NBYTES, 4096)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message of any command, its record of any numbers."""
    command = draw(st.sampled_from(sorted(COMMANDS)) | st.integers(0, 0xFFFF))
    row = COMMANDS.get(command)
    payload = draw(records(row.record, FIELDS)) if row is not None and row.record is not None else b""
    payload += draw(st.binary(max_size=64))
    return wire.message(draw(st.integers(0, 0xFFFF)), command, payload, draw(FLAGS))


@st.composite
def sound_messages(draw: st.DrawFn) -> bytes:
    """A message as QEMU would send it, without descriptors."""
    region, count = draw(st.sampled_from([(0, 4), (2, 8), (7, 1), (7, 64)]))
    access = wire.RegionAccess(8 * draw(st.integers(0, 400)), region, count).pack()
    page, vector = draw(st.sampled_from(PAGES)), draw(st.integers(0, VECTORS - 1))
    command, payload = draw(
        st.sampled_from(
            [
                (Command.REGION_READ, access),
                (Command.REGION_WRITE, access + bytes(count)),
                (Command.DMA_MAP, wire.DmaMap(32, 3, 0, page, 4096).pack()),
                (Command.DMA_UNMAP, wire.DmaUnmap(24, 0, page, 4096).pack()),
                (Command.DEVICE_SET_IRQS, wire.SetIrqs(20, 0x21, 2, vector, 1).pack()),
                (Command.DEVICE_RESET, b""),
            ]
        )
    )
    return wire.message(draw(st.integers(0, 0xFFFF)), command, payload, draw(st.sampled_from([0, wire.NO_REPLY])))


async def played(sent: list[tuple[bytes, int]]) -> bytes:
    """All replies to these pieces of a stream, each with a choice of descriptors; the rules were checked."""
    scene, answers = Scene(), b""
    turn = scene.line.turn

    async def noted() -> bytes:
        nonlocal answers
        data = await turn()
        answers += data
        return data

    scene.line.turn = noted  # type: ignore[method-assign]
    for data, fds in sent:
        await scene.send(data, make_fds(Reader(bytes([fds]))))
    await scene.finish()
    return answers


@given(st.lists(st.tuples(messages() | sound_messages(), FDS), max_size=12), st.booleans())
@settings(deadline=None, max_examples=150)
def test_whatever_is_sent_is_answered_by_the_rules(sent: list[tuple[bytes, int]], opened: bool) -> None:
    asyncio.run(played([(START, 0)] * opened + sent))


@given(st.lists(sound_messages() | messages(), min_size=1, max_size=8), st.lists(st.integers(0, 2000), max_size=12))
@settings(deadline=None, max_examples=100)
def test_the_same_stream_is_answered_the_same_however_it_is_cut(sent: list[bytes], cuts: list[int]) -> None:
    stream = b"".join([START, *sent])
    at = sorted({0, len(stream), *(cut % len(stream) for cut in cuts)})

    whole = asyncio.run(played([(data, 0) for data in (START, *sent)]))
    cut = asyncio.run(played([(stream[start:stop], 0) for start, stop in pairwise(at)]))

    assert cut == whole
