"""The qtest line protocol, without a QEMU."""

from __future__ import annotations

import pytest

from tests.qtest.protocol import MAX_LINE_NBYTES, Lines, QtestError, read_command, write_command


def test_a_reply_may_come_in_pieces() -> None:
    lines = Lines()

    assert lines.feed(b"OK 0x12") == []
    assert lines.feed(b"34\nOK\n") == ["0x1234", ""]


def test_an_interrupt_is_no_reply() -> None:
    lines = Lines()

    assert lines.feed(b"IRQ raise 4\nOK\n") == [""]
    assert lines.interrupts == ["IRQ raise 4"]


@pytest.mark.parametrize("line", [b"FAIL Unknown command\n", b"ERR no\n", b"\n"])
def test_what_is_not_ok_is_an_error(line: bytes) -> None:
    with pytest.raises(QtestError):
        Lines().feed(line)


def test_a_line_without_end_is_an_error() -> None:
    with pytest.raises(QtestError, match="a line of more"):
        Lines().feed(b"0" * (MAX_LINE_NBYTES + 1))


def test_commands_name_their_width() -> None:
    assert read_command(0x1000, 2) == b"readw 0x1000\n"
    assert write_command(0x1000, 8, 0xAB) == b"writeq 0x1000 0xab\n"
