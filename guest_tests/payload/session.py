"""One module's tests in the guest: a pytest session that runs the test the host names next, and reports at once.

The host's pytest is the one people see. It decides what runs, and gets this session's own reports.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import warnings
from typing import Any

import pytest

from .guest import Channel
from .host import HOST, MACHINE, Host

Message = dict[str, Any]

PLUGINS = (
    "guest_tests.payload.host",
    "guest_tests.payload.fixtures",
    "guest_tests.payload.stock_fixtures",
    "guest_tests.payload.fault_fixtures",
)  # where the guest's own fixtures are
LISTEN_S = 3600.0
NOWHERE = "/tmp/rehearsal"
MAX_MESSAGE_NBYTES = 200_000  # the host takes lines of 256 KiB
MAX_SECTION = 20_000  # characters of captured output kept where a report is too long
STACKS_BEFORE_S = 0.5  # before the host gives up on a test, its stacks go to the console
INI = "/payload/pytest.ini"  # empty: the settings of the host's pytest are not the guest's
ARGUMENTS = ("-q", "-p", "no:cacheprovider", "-p", "no:stepwise")


class Conversation:
    """The pytest plugin that takes its orders from the host."""

    def __init__(self, channel: Channel, machine: Message) -> None:
        self._channel = channel
        self._machine = machine

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[HOST] = Host(self._channel)
        config.stash[MACHINE] = self._machine
        config.addinivalue_line("markers", "machines(*patterns): on which machines of its suite the test runs")
        config.addinivalue_line("markers", "timeout(seconds): how long the test may take; the host watches it")
        self._config = config

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._channel.send({"collection_failed": report.longreprtext[-MAX_SECTION:]})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._channel.send({"report": fitting(data)})

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage, when: str) -> None:
        if when == "runtest":
            said = warning_message
            warning = {"text": str(said.message)[:MAX_SECTION], "category": said.category.__name__}
            self._channel.send({"warning": {**warning, "file": said.filename, "line": said.lineno}})

    def pytest_internalerror(self, excrepr: object) -> None:
        print(excrepr, file=sys.__stderr__, flush=True)  # the console; the terminal report goes nowhere

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        name = "pytest.exit" if isinstance(excinfo.value, pytest.exit.Exception) else excinfo.typename
        self._channel.send({"left": f"{name}: {excinfo.value}"[:MAX_SECTION].removesuffix(": ")})

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run what the host names until it says that this is all."""
        items = {item.nodeid: item for item in session.items}
        self._channel.send({"collected": len(items)})
        with open("/dev/console", "w") as console:
            while (order := self._channel.receive(LISTEN_S)) is not None and order["do"] == "test":
                item = items.get(order["test"])
                if item is None:
                    self._channel.send({"refused": f"there is no test {order['test']} in the guest"})
                    continue
                faulthandler.dump_traceback_later(max(order["limit"] - STACKS_BEFORE_S, STACKS_BEFORE_S), file=console)
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=items.get(order["next"]))
                faulthandler.cancel_dump_traceback_later()
                self._channel.send({"finished": item.nodeid})
        return True


def fitting(report: Message) -> Message:
    """The report as JSON that fits a message: where it is too long, captured output loses its beginning."""
    text = json.dumps(report, default=repr)
    report = json.loads(text)
    if len(text) > MAX_MESSAGE_NBYTES:
        report["sections"] = [(name, f"[cut]...{said[-MAX_SECTION:]}") for name, said in report["sections"]]
        report["user_properties"] = []
    if len(text) > MAX_MESSAGE_NBYTES and len(json.dumps(report)) > MAX_MESSAGE_NBYTES:
        report["longrepr"] = f"[too long to show]...{json.dumps(report['longrepr'])[-MAX_SECTION:]}"
    return report


def rehearse() -> None:
    """An empty session, so that all that pytest imports on its way is there before the first real one."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.makedirs(NOWHERE, exist_ok=True)
    os.chdir(NOWHERE)
    pytest.main(arguments(NOWHERE, [NOWHERE]), plugins=[])
    os.chdir("/")


def arguments(root: str, more: list[str], ini: str = INI) -> list[str]:
    """The command line of a session in `root`, here or where tests are collected for here."""
    plugins = [word for name in PLUGINS for word in ("-p", name)]
    return ["-c", ini, f"--rootdir={root}", f"--confcutdir={root}", *ARGUMENTS, *plugins, *more]


def run(channel: Channel, request: Message) -> int:
    """Run the module of `request`; pytest's exit status."""
    os.chdir(request["root"])
    with open(os.devnull, "w") as nowhere:
        sys.stdout.flush()
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    options = [*request["options"], request["file"]]
    return int(pytest.main(arguments(request["root"], options), plugins=[Conversation(channel, request["machine"])]))
