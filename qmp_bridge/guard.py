"""Which monitor commands are not for a VM with our functions, and which ones we have a part in. No I/O.

`QMP` and `HMP` are the whole policy; a command that is not in them is QEMU's alone. A refused command is still sent to
QEMU under a name that QEMU does not know, and QEMU's error is given our reason on its way back: so order, id,
negotiation and out-of-band execution stay QEMU's own, and nothing has to be counted here. The commands we have a part
in travel with a marked id, by which their reply is recognised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from qmp_bridge.json_stream import TooDeep, Unreadable, read_request

MARK = "__org.vdev_"
_REFUSED = MARK + "refused-"  # then the key of REASONS, a dot, and the command's name
_AWAITED = MARK + "awaited"  # the one member of the id of a command we have a part in: its own id, in a list
_TOO_DEEP = "nested-too-deep"
_NOT_JSON = "not-json"


class Rule(Enum):
    """What becomes of a command."""

    SAVES_STATE = "saves-state"
    LOADS_STATE = "loads-state"
    STOPS = "stops"  # our functions stop before QEMU does; the reply waits for them
    CONTINUES = "continues"  # they go on after QEMU does; the reply waits for them


_LOSES = (
    "QEMU neither has the state of vdev's functions (mappings, rings, work under way) nor knows that it lacks it, so "
)
REASONS: Mapping[str, str] = {
    Rule.SAVES_STATE.value: _LOSES + "what it saves or sends would look complete and not be. "
    "Instead: shut the guest down and start it elsewhere; its disks can be copied while it is off",
    Rule.LOADS_STATE.value: _LOSES + "the guest would wake up with devices that do not know it. "
    "Instead: start the guest from its disks",
    _TOO_DEEP: "it is nested too deeply to be sure that it is harmless",
    _NOT_JSON: "it is not a JSON object, and QEMU would look for commands in the middle of it",
}

# QMP commands. Deleting snapshots, and those of disks alone (blockdev-snapshot, transaction, ...), lose nothing.
QMP: Mapping[str, Rule] = {
    "migrate": Rule.SAVES_STATE,
    "snapshot-save": Rule.SAVES_STATE,
    "xen-save-devices-state": Rule.SAVES_STATE,  # needs no Xen
    "migrate-incoming": Rule.LOADS_STATE,
    "migrate-recover": Rule.LOADS_STATE,
    "snapshot-load": Rule.LOADS_STATE,
    "xen-load-devices-state": Rule.LOADS_STATE,
    "stop": Rule.STOPS,
    "dump-guest-memory": Rule.STOPS,  # for as long as it takes
    "cont": Rule.CONTINUES,
}
# Commands of the human monitor, which `human-monitor-command` runs. QEMU takes names whole, or one of their aliases.
HMP: Mapping[str, Rule] = {
    "migrate": Rule.SAVES_STATE,
    "savevm": Rule.SAVES_STATE,
    "migrate_incoming": Rule.LOADS_STATE,
    "migrate_recover": Rule.LOADS_STATE,
    "loadvm": Rule.LOADS_STATE,
    "stop": Rule.STOPS,
    "s": Rule.STOPS,
    "dump-guest-memory": Rule.STOPS,
    "cont": Rule.CONTINUES,
    "c": Rule.CONTINUES,
}
_HMP_BLANKS = " \t\n\v\f\r"


def rule_for(name: str, arguments: object) -> tuple[Rule | None, str]:
    """The rule for a QMP command, None when it is QEMU's alone; and the command's name for people."""
    if name != "human-monitor-command":
        return QMP.get(name), name
    match arguments:
        case {"command-line": str(line)}:
            name = _hmp_name(line)
            return HMP.get(name), name
    return None, name


def reason_for(name: str, arguments: object) -> str | None:
    """Why the QMP command is refused; None when it is not."""
    rule, shown = rule_for(name, arguments)
    return _reason(rule.value, shown) if rule is not None and rule.value in REASONS else None


def _reason(key: str, shown: str) -> str:
    return f"vdev refuses {shown or 'this command'}: {REASONS[key]} (docs/guards.md)"


def _hmp_name(line: str) -> str:
    """The command of a line as QEMU finds it: leading blanks do not count; a blank, a slash or a NUL ends it."""
    rest = line.lstrip(_HMP_BLANKS)
    end = next((at for at, character in enumerate(rest) if character in _HMP_BLANKS + "/\0"), len(rest))
    return rest[:end]


@dataclass(frozen=True)
class Judged:
    """What goes to QEMU in place of a client's value; `rule` is STOPS or CONTINUES where we have a part in it."""

    data: bytes
    rule: Rule | None = None


def judge(raw: bytes) -> Judged:
    """What becomes of one whole value of a client's stream."""
    try:
        request = read_request(raw)
    except Unreadable as error:
        key = _TOO_DEEP if isinstance(error, TooDeep) else _NOT_JSON
        return Judged(json.dumps({"execute": f"{_REFUSED}{key}."}).encode())
    if request is None:
        return Judged(raw)
    rule, shown = rule_for(request.name, request.arguments)
    if rule is None:
        return Judged(raw)
    if rule.value in REASONS:
        unknown = json.dumps(f"{_REFUSED}{rule.value}.{shown}")
        return Judged(request.with_members({request.verb: unknown}, without="arguments"))
    own_id = f"[{request.texts.get('id', '')}]"
    return Judged(request.with_members({"id": f'{{"{_AWAITED}": {own_id}}}'}), rule)


@dataclass(frozen=True)
class Answered:
    """What goes to the client in place of one line of QEMU's; `awaited`: only once our part is done.

    `nameless`: an error without an id, which may be that of a command we have a part in, if QEMU could not read it.
    """

    line: bytes
    awaited: bool = False
    nameless: bool = False


def answer(line: bytes) -> Answered:
    """What becomes of one line of QEMU's, its end included."""
    if MARK.encode() not in line:
        return Answered(line, nameless=_is_nameless_error(line))
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return Answered(line)
    awaited = False
    match message:
        case {"id": {"__org.vdev_awaited": [*own_id]}}:
            awaited = True
            message.pop("id")
            message.update({"id": own_id[0]} if own_id else {})
    match message:
        case {"error": {"class": "CommandNotFound", "desc": str(desc)}} if _REFUSED in desc:
            key, _, shown = desc.partition(_REFUSED)[2].partition(" ")[0].partition(".")
            if key in REASONS:
                message["error"] = {"class": "GenericError", "desc": _reason(key, shown)}
    return Answered(json.dumps(message).encode() + b"\r\n", awaited)


def _is_nameless_error(line: bytes) -> bool:
    if not line.startswith(b'{"error"'):  # QEMU writes an id first, and nothing else has this member
        return False
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(message, dict) and "error" in message and "id" not in message
