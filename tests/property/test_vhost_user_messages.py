"""Any sequence of vhost-user messages, made of their records, before and after the rings run: the rules hold, and how
the stream is cut changes nothing.

What the rules are is said where the fuzzer looks for the same: tests/fuzz/targets/vhost_user.py.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.line import EDGES, EVENTFD, MEMFD, RAM_NBYTES, make_fds
from tests.fuzz.reader import Reader
from tests.fuzz.targets.vhost_user import AVAIL, HVA, RINGS, USED, Scene
from tests.property.records import records
from vdev.transports.vhost_session import COMMANDS, PROTOCOL_FEATURES
from vdev.wire import vhost_user as wire
from vdev.wire.vhost_user import Command

FIELDS = st.sampled_from([*EDGES, HVA, HVA + RINGS[0]]) | st.integers(0, (1 << 64) - 1)
FLAGS = st.sampled_from([1, 1, 9, 9, 5, 2])
FDS = st.sampled_from([0, 0, 0, MEMFD, EVENTFD, MEMFD + 8])
START = wire.message(Command.SET_PROTOCOL_FEATURES, wire.U64(PROTOCOL_FEATURES).pack())


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message of any command, its record of any numbers."""
    command = draw(st.sampled_from(sorted(COMMANDS)) | st.integers(0, 60))
    row = COMMANDS.get(command)
    body = draw(records(row.record, FIELDS)) if row is not None and row.record is not None else b""
    body += draw(st.sampled_from([b""] * 3) | st.binary(max_size=64))
    return wire.Header(command, draw(FLAGS), len(body)).pack() + body


@st.composite
def sound_messages(draw: st.DrawFn) -> bytes:
    """A message as QEMU would send it, without descriptors."""
    index, number = draw(st.integers(0, 1)), draw(st.sampled_from([0, 1, 8, 16, 256]))
    state, base = wire.RingState(index, number).pack(), HVA + RINGS[index]
    region = wire.SingleRegion(0, 0, RAM_NBYTES, HVA, 0).pack()
    command, body = draw(
        st.sampled_from(
            [
                (Command.GET_FEATURES, b""),
                (Command.SET_VRING_NUM, state),
                (Command.SET_VRING_BASE, state),
                (Command.SET_VRING_ADDR, wire.RingAddress(index, 0, base, base + USED, base + AVAIL, 0).pack()),
                (Command.SET_VRING_ENABLE, wire.RingState(index, number & 1).pack()),
                (Command.GET_VRING_BASE, state),
                (Command.ADD_MEM_REG, region),
                (Command.REM_MEM_REG, region),
                (Command.GET_CONFIG, wire.ConfigAccess(0, number, 0).pack() + bytes(number)),
                (Command.RESET_DEVICE, b""),
            ]
        )
    )
    return wire.message(command, body, draw(st.sampled_from([0, wire.NEED_REPLY])))


async def played(sent: list[tuple[bytes, int]], *, running: bool) -> bytes:
    """All replies to these pieces of a stream, each with a choice of descriptors; the rules were checked."""
    scene, answers = Scene(), b""
    turn = scene.line.turn

    async def noted() -> bytes:
        nonlocal answers
        data = await turn()
        answers += data
        return data

    scene.line.turn = noted  # type: ignore[method-assign]
    if running:
        await scene.start()
    for data, fds in sent:
        await scene.send(data, make_fds(Reader(bytes([fds]))))
    await scene.finish()
    return answers


@given(st.lists(st.tuples(messages() | sound_messages(), FDS), max_size=12), st.booleans())
@settings(deadline=None, max_examples=150)
def test_whatever_is_sent_is_answered_by_the_rules(sent: list[tuple[bytes, int]], running: bool) -> None:
    asyncio.run(played([(START, 0), *sent], running=running))


@given(
    st.lists(sound_messages() | messages(), min_size=1, max_size=8),
    st.lists(st.integers(0, 2000), max_size=12),
    st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_the_same_stream_is_answered_the_same_however_it_is_cut(
    sent: list[bytes], cuts: list[int], running: bool
) -> None:
    stream = b"".join([START, *sent])
    at = sorted({0, len(stream), *(cut % len(stream) for cut in cuts)})

    whole = asyncio.run(played([(data, 0) for data in (START, *sent)], running=running))
    cut = asyncio.run(played([(stream[start:stop], 0) for start, stop in pairwise(at)], running=running))

    assert cut == whole
