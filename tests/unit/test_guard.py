"""The guard's table: what is refused, in which words, and what happens to ids and replies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qmp_bridge.guard import HMP, MARK, QMP, REASONS, Rule, answer, judge, reason_for

REFUSED_QMP = [name for name, rule in QMP.items() if rule.value in REASONS]
REFUSED_HMP = [name for name, rule in HMP.items() if rule.value in REASONS]
NOT_FOUND = "The command {} has not been found"


def hmp(line: str, **more: object) -> bytes:
    request = {"execute": "human-monitor-command", "arguments": {"command-line": line}, **more}
    return json.dumps(request).encode()


def as_qemu_answers(sent: bytes, error: bool = True) -> bytes:
    """QEMU's line about a command it does not know, or (`error` false) about one it has executed."""
    request = json.loads(sent)
    name = request.get("execute") or request["exec-oob"]
    body: dict[str, Any] = {"return": {}}
    if error:
        body = {"error": {"class": "CommandNotFound", "desc": NOT_FOUND.format(name)}}
    return json.dumps({**({"id": request["id"]} if "id" in request else {}), **body}).encode() + b"\r\n"


def test_the_list_of_refused_commands_is_this() -> None:
    assert set(REFUSED_QMP) == {
        "migrate",
        "migrate-incoming",
        "migrate-recover",
        "snapshot-save",
        "snapshot-load",
        "xen-save-devices-state",
        "xen-load-devices-state",
    }
    assert set(REFUSED_HMP) == {"migrate", "migrate_incoming", "migrate_recover", "savevm", "loadvm"}


@pytest.mark.parametrize("name", REFUSED_QMP)
@pytest.mark.parametrize("verb", ["execute", "exec-oob"])
def test_a_refused_command_is_answered_with_the_reason_and_its_id(name: str, verb: str) -> None:
    sent = judge(json.dumps({verb: name, "arguments": {"uri": "exec:cat"}, "id": [1, {"a": None}]}).encode())
    reply = json.loads(answer(as_qemu_answers(sent.data)).line)

    assert name not in (json.loads(sent.data).get("execute"), json.loads(sent.data).get("exec-oob"))
    assert sent.rule is None
    assert reply["id"] == [1, {"a": None}]
    assert reply["error"]["class"] == "GenericError"
    assert reply["error"]["desc"].startswith(f"vdev refuses {name}: QEMU neither has the state of vdev's functions")
    assert "Instead: " in reply["error"]["desc"]
    assert reason_for(name, {}) == reply["error"]["desc"]


@pytest.mark.parametrize("name", REFUSED_HMP)
@pytest.mark.parametrize("line", ["{}", "  \t{} tag", "{}/x", "{}\n"])
def test_the_human_monitors_commands_are_refused_however_they_are_spelled(name: str, line: str) -> None:
    sent = judge(hmp(line.format(name), id="x"))
    reply = json.loads(answer(as_qemu_answers(sent.data)).line)

    assert reply["id"] == "x"
    assert reply["error"]["desc"].startswith(f"vdev refuses {name}: ")


@pytest.mark.parametrize("line", ["", "  ", "info migrate", "migrate_cancel", "migrate_set_speed 1", "delvm x", "sav"])
def test_other_commands_of_the_human_monitor_pass(line: str) -> None:
    assert judge(hmp(line)).data == hmp(line)


@pytest.mark.parametrize(
    "raw",
    [
        b'{ "execute":"query-status" ,"id": 1.50 }',
        b'{"execute": "migrate_cancel"}',
        b'{"execute": "snapshot-delete"}',
        b'{"execute": "human-monitor-command", "arguments": {"command-line": 5}}',
        b'{"execute": "human-monitor-command"}',
    ],
)
def test_everything_else_goes_to_qemu_as_it_came(raw: bytes) -> None:
    judged = judge(raw)
    assert judged.data == raw
    assert judged.rule is None


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b'{"execute": "stop"}', Rule.STOPS),
        (b"{'execute': 'cont', 'id': 7}", Rule.CONTINUES),
        (b'{"execute": "dump-guest-memory", "arguments": {"paging": 0}}', Rule.STOPS),
        (hmp("stop"), Rule.STOPS),
        (hmp(" s "), Rule.STOPS),
        (hmp("c"), Rule.CONTINUES),
    ],
)
def test_stop_and_cont_are_recognised_and_reach_qemu(raw: bytes, rule: Rule) -> None:
    judged = judge(raw)
    sent, original = json.loads(judged.data), json.loads(raw.replace(b"'", b'"'))
    assert judged.rule is rule
    assert {**sent, "id": None} == {**original, "id": None}


@pytest.mark.parametrize("own_id", ["", ', "id": null', ', "id": [[1], "\\u00e9"]', ', "id": {"a": 1.5}'])
@pytest.mark.parametrize("error", [False, True])
def test_the_reply_of_a_stop_waits_and_has_the_clients_id_again(own_id: str, error: bool) -> None:
    raw = f'{{"execute": "stop"{own_id}}}'.encode()
    answered = answer(as_qemu_answers(judge(raw).data, error=error))
    reply = json.loads(answered.line)

    assert answered.awaited
    assert {key: reply[key] for key in reply if key == "id"} == {
        key: value for key, value in json.loads(raw).items() if key == "id"
    }
    assert ("error" in reply) == error


def test_lines_of_qemu_pass_unchanged() -> None:
    for line in (b'{"return": {}, "id": 1}\r\n', b'{"event": "STOP"}\r\n', MARK.encode() + b"{\r\n"):
        assert answer(line).line == line
        assert not answer(line).awaited


@pytest.mark.parametrize("raw", [b'{N{"execute": "migrate"}}', b'["migrate"]', b'{"execute": "stop", "id": NaN}'])
def test_what_is_one_value_for_us_and_perhaps_not_for_qemu_does_not_reach_it(raw: bytes) -> None:
    sent = judge(raw)
    reply = json.loads(answer(as_qemu_answers(sent.data)).line)

    assert sent.rule is None
    assert b"migrate" not in sent.data
    assert "it is not a JSON object" in reply["error"]["desc"]


@pytest.mark.parametrize(
    ("line", "nameless"),
    [
        (b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\r\n', True),
        (b'{"id": 1, "error": {"class": "GenericError", "desc": "no"}}\r\n', False),
        (b'{"error": {"class": "GenericError", "desc": "no"}, "id": 1}\r\n', False),
        (b'{"return": {"error": 1}}\r\n', False),
        (b'{"error"\r\n', False),
    ],
)
def test_an_error_without_an_id_is_told_from_all_else(line: bytes, nameless: bool) -> None:
    assert answer(line).nameless == nameless


def test_a_command_too_deep_to_be_read_is_refused() -> None:
    sent = judge(b'{"execute": "migrate", "id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    reply = json.loads(answer(as_qemu_answers(sent.data)).line)
    assert "nested too deeply" in reply["error"]["desc"]
