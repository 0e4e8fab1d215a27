"""What a stranger can cause to be logged is limited and counted."""

from __future__ import annotations

import logging

import pytest

from vdev.limited_log import LimitedLog

log = logging.getLogger("vdev.test")


class Scene:
    """A limited log whose clock stands still until told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.limited = LimitedLog(lambda: self.now, lines=3, interval_s=60)

    def write(self, count: int, kind: str = "refused", level: int = logging.WARNING) -> None:
        for index in range(count):
            self.limited.log(log, level, ("accel0", kind), f"accel0: {kind} {index}")


def test_a_few_lines_of_a_kind_are_written_and_the_last_says_so(caplog: pytest.LogCaptureFixture) -> None:
    Scene().write(1000)

    assert caplog.messages == [
        "accel0: refused 0",
        "accel0: refused 1",
        "accel0: refused 2 (more like it are only counted for up to 60 s)",
    ]


def test_kinds_do_not_silence_each_other(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.write(1000)
    scene.write(1, "dropped")

    assert caplog.messages[-1] == "accel0: dropped 0"


def test_the_next_interval_begins_with_what_was_kept_back(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.write(1000)
    scene.now += 60
    scene.write(1)

    assert caplog.messages[3:] == ["accel0: 997 more lines like it: refused", "accel0: refused 0"]
    assert caplog.records[3].levelno == logging.WARNING


def test_nothing_is_said_of_an_interval_that_was_quiet(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.write(3)
    scene.now += 60
    scene.write(1)

    assert caplog.messages[3:] == ["accel0: refused 0"]


def test_a_flush_tells_what_was_kept_back_and_once(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.write(5)
    scene.limited.flush(log)
    scene.limited.flush(log)

    assert caplog.messages[3:] == ["accel0: 2 more lines like it: refused"]
