"""Which monitor commands are not for a VM with our functions, and which ones we have a part in. No I/O.

`QMP` and `HMP` are the whole policy; a command that is not in them is QEMU's alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class Rule(Enum):
    """What becomes of a command."""

    SAVES_STATE = "saves-state"
    LOADS_STATE = "loads-state"
    STOPS = "stops"  # our functions stop before QEMU does; the reply waits for them
    CONTINUES = "continues"  # they go on after QEMU does; the reply waits for them


_LOSES = (
    "QEMU neither has the state of vdev's functions (mappings, rings, work under way) nor knows that it lacks it, so "
)
REASONS: Mapping[Rule, str] = {
    Rule.SAVES_STATE: _LOSES + "what it saves or sends would look complete and not be. "
    "Instead: shut the guest down and start it elsewhere; its disks can be copied while it is off",
    Rule.LOADS_STATE: _LOSES + "the guest would wake up with devices that do not know it. "
    "Instead: start the guest from its disks",
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
    if rule is None or rule not in REASONS:
        return None
    return f"vdev refuses {shown}: {REASONS[rule]} (docs/guards.md)"


def _hmp_name(line: str) -> str:
    """The command of a line as QEMU finds it: leading blanks do not count; a blank, a slash or a NUL ends it."""
    rest = line.lstrip(_HMP_BLANKS)
    end = next((at for at, character in enumerate(rest) if character in _HMP_BLANKS + "/\0"), len(rest))
    return rest[:end]
