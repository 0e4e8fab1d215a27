"""What a peer sent as an fd is closed at once, with all that is hidden in it."""

from __future__ import annotations

import array
import os
import socket
import tempfile
from pathlib import Path

import pytest

from tests.support.hostile_fds import lingering_socket
from vdev.transports.stream import ReceivedFds, close_foreign, take_in

pytestmark = pytest.mark.timeout(20)  # far less than the sockets here linger


def hide(fd: int, sock: socket.socket) -> None:
    """Send `fd` over `sock` and close it."""
    sock.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
    os.close(fd)


def test_a_lingering_socket_inside_unix_sockets_is_told_not_to() -> None:
    with lingering_socket() as fd:
        for _ in range(3):
            near, far = socket.socketpair()
            hide(fd, near)
            near.close()
            fd = far.detach()
        close_foreign([fd])


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_one_behind_an_empty_packet_is_found_too(kind: int) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, kind)
    with near, lingering_socket() as fd:
        near.send(b"")
        hide(fd, near)
        close_foreign([far.detach()])


def test_one_in_a_connection_that_nobody_accepted_is_found_too() -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client, lingering_socket() as fd:
        with tempfile.TemporaryDirectory() as directory:
            listening.bind(f"{directory}/s")
            listening.listen(1)
            client.connect(listening.getsockname())
        hide(fd, client)
        close_foreign([listening.detach()])


def test_the_list_is_empty_afterwards_and_every_fd_closed() -> None:
    fds = [os.eventfd(0), os.open("/", os.O_PATH), *(sock.detach() for sock in socket.socketpair())]
    closed = list(fds)
    close_foreign(fds)

    assert fds == []
    assert [fd for fd in closed if Path(f"/proc/self/fd/{fd}").is_symlink()] == []


def test_what_waits_in_a_socket_is_taken_in_piece_by_piece_until_its_end() -> None:
    near, far = socket.socketpair()
    with near:
        with far:
            for _ in range(3):
                hide(os.eventfd(0), far)
            first = take_in(near, 2)
        rest = take_in(near)

    assert [(len(fds), is_over) for fds, is_over in (first, rest)] == [(2, False), (1, True)]
    close_foreign(first[0] + rest[0])


def test_an_eventfd_opened_with_o_path_is_no_eventfd() -> None:
    real = os.eventfd(0)
    path = os.open(f"/proc/self/fd/{real}", os.O_PATH)
    answers = []
    for fd in (real, path):
        with ReceivedFds([fd]) as fds:
            answers.append(fds.all_eventfds())

    assert answers == [True, False]
