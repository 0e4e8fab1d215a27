"""Packets with fds over a socket: what waits, what is bounded, and what is closed."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from tests.support.authority import until
from vdev.authority import packets
from vdev.authority.packets import PacketLink


class Peer:
    """A link and what came of it, with the plain socket at its other end."""

    def __init__(self, *, is_patient: bool = False) -> None:
        ours, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        self.taken: list[bytes] = []
        self.nfds = 0
        self.ends: list[str] = []
        self.link = PacketLink(ours, self._take, self.ends.append, is_patient=is_patient)

    def _take(self, data: bytes, fds: list[int]) -> None:
        self.taken.append(data)
        self.nfds += len(fds)
        for fd in fds:
            os.close(fd)

    def read_all(self) -> list[bytes]:
        found: list[bytes] = []
        while True:
            try:
                data = self.sock.recv(1 << 17)
            except BlockingIOError:
                return found
            if not data:
                return found
            found.append(data)


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open("/dev/null", os.O_RDONLY)
    yield fd
    os.close(fd)


async def test_packets_come_whole_and_in_order_with_their_fds(null: int) -> None:
    peer = Peer()

    socket.send_fds(peer.sock, [b"one"], [null])
    peer.sock.send(b"two")
    await until(lambda: len(peer.taken) == 2)

    assert peer.taken == [b"one", b"two"]
    assert peer.nfds == 1
    peer.link.end("done")
    peer.sock.close()


async def test_what_does_not_fit_waits_with_its_fd_and_comes_in_order(null: int) -> None:
    peer = Peer()
    sent = [b"%d" % number * 20_000 for number in range(40)]
    for data in sent[:-1]:
        peer.link.send(data)
    peer.link.send(sent[-1], null)
    was_congested = peer.link.is_congested

    found: list[bytes] = []
    async with asyncio.timeout(20):
        while len(found) < len(sent):
            found += peer.read_all()
            await asyncio.sleep(0)

    assert was_congested
    assert found == sent
    assert not peer.link.is_congested
    peer.link.end("done")
    peer.sock.close()


async def test_a_peer_that_never_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "MAX_QUEUED", 5)
    peer = Peer()

    for _ in range(1000):
        peer.link.send(b"x" * 20_000)

    assert peer.ends == ["5 packets wait for it"]
    assert not peer.link.is_open
    peer.sock.close()


async def test_a_patient_link_reads_nothing_while_its_answers_are_not_taken() -> None:
    peer = Peer(is_patient=True)
    while not peer.link.is_congested:
        peer.link.send(b"x" * 20_000)
    peer.sock.send(b"more")
    await asyncio.sleep(0.05)
    meanwhile = list(peer.taken)

    peer.read_all()
    await until(lambda: peer.taken == [b"more"])

    assert meanwhile == []
    peer.link.end("done")
    peer.sock.close()


async def test_the_last_words_of_a_peer_are_heard_although_it_hung_up_without_reading() -> None:
    peer = Peer()
    peer.link.send(b"hello")
    peer.sock.send(b"refused")
    peer.sock.close()

    peer.link.send(b"and more")
    await until(lambda: bool(peer.ends))

    assert peer.taken == [b"refused"]
    assert peer.ends == ["it hung up"]


async def test_an_end_is_told_once_and_closes_what_waits(null: int) -> None:
    peer = Peer()
    while not peer.link.is_congested:
        peer.link.send(b"x" * 20_000)
    before = len(os.listdir("/proc/self/fd"))
    peer.link.send(b"last", null)

    peer.link.end("enough")
    peer.link.end("again")
    peer.link.send(b"nothing")

    assert peer.ends == ["enough"]
    assert len(os.listdir("/proc/self/fd")) == before - 1  # the link's own
    peer.sock.close()


@pytest.mark.parametrize(("nbytes", "nfds"), [((64 << 10) + 1, 0), (10, 9)])
async def test_a_packet_that_is_cut_ends_the_link(null: int, nbytes: int, nfds: int) -> None:
    peer = Peer()
    before = len(os.listdir("/proc/self/fd"))

    socket.send_fds(peer.sock, [b"x" * nbytes], [null] * nfds)
    await until(lambda: bool(peer.ends))

    assert peer.ends == ["a packet is too long, or has too many fds"]
    assert peer.taken == []
    assert len(os.listdir("/proc/self/fd")) == before - 1
    peer.sock.close()
