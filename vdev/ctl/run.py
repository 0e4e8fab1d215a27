"""`vdev ctl` from its command line to its output."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from vdev.ctl.fault import run as fault
from vdev.ctl.options import arguments_of, parser
from vdev.ctl.pasid import run as pasid
from vdev.ctl.target import Target
from vdev.ctl.text import event_line, lines_of
from vdev.errors import ArgumentError, ConfigError
from vdev.qapi.check import check_arguments
from vdev.qapi.model import Command
from vdev.qapi.schema import schema

ANSWER_S = 30.0  # beyond the time a command itself waits
OWN_WAIT_S = 30.0  # of a command with a timeout, unless it is told another
INTERRUPTED = 130
_FOLLOW, _TRACE_FOLLOW = "events-follow", "trace-follow"


def run(argv: Sequence[str]) -> int:
    """The exit status. ConfigError: the input is wrong. VdevError: the command was refused, or not answered."""
    if argv[:1] in (["pasid"], ["fault"]):
        return {"pasid": pasid, "fault": fault}[argv[0]](argv[1:])
    given = parser(schema()).parse_args(argv)
    command = schema().commands[given.command]
    try:
        arguments = arguments_of(command, given)
        check_arguments(command, arguments)
    except ArgumentError as error:
        raise ConfigError(command.name, str(error), f"vdev ctl {command.name} --help") from None
    try:
        _run(command, arguments, given)
    except KeyboardInterrupt:
        return 0 if command.name in (_FOLLOW, _TRACE_FOLLOW) else INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes at its end, and must not find the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _run(command: Command, arguments: dict[str, Any], given: argparse.Namespace) -> None:
    described = schema()
    client = Target(given.runtime_dir, given.socket).connect(command, described.prefix)
    try:
        if command.name == _FOLLOW:
            _write(sys.stdout, (_event(event, given.json) for event in client.events()))
            return
        returned = client.execute(command.name, arguments, timeout_of(command, arguments))
        shown = [json.dumps(returned)] if given.json else lines_of(command.returns, returned)
        _write(sys.stdout, shown)
        if command.name == _TRACE_FOLLOW:
            _write(sys.stdout, map(json.dumps, client.lines()))
    finally:
        client.close()


def timeout_of(command: Command, arguments: dict[str, Any]) -> float:
    """Seconds to wait for the answer: a command that waits for the guest may take as long as it says, and more."""
    if not any(member.name == "timeout" for member in command.arguments):
        return ANSWER_S
    return ANSWER_S + float(arguments.get("timeout", OWN_WAIT_S))


def _event(event: dict[str, Any], as_json: bool) -> str:
    if as_json:
        return json.dumps(event)
    described = schema().events.get(str(event.get("event")))
    return event_line(event, described.members if described else ())


def _write(out: TextIO, lines: Iterable[str]) -> None:
    for line in lines:
        out.write(line + "\n")
        out.flush()
