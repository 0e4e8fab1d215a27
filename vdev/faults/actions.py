"""The table of fault injection: at which points an action may stand, its parameters, what `clear` cannot undo.

An action of a point does something to the occurrence it meets. A free one does something by itself, so it may stand at
every point: there the occurrence is only what sets it off. docs/faults.md shows this table to people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vdev.pci.aer import ERRORS
from vdev.wire.viommu import REQUEST_NAMES, STATUS_NAMES
from vdev.wire.viommu_pasid import REQUEST_NAMES as PASID_REQUEST_NAMES

Value = int | float | str | bool

U8, U16, U32, U64 = (1 << 8) - 1, (1 << 16) - 1, (1 << 32) - 1, (1 << 64) - 1
MAX_SECONDS = 3600.0  # of holding anything: what is held is bounded by number as well, so this only catches mistakes
MAX_STALL_SECONDS = 60.0  # QEMU waits for a register access; at 30 s it gives up (docs/faults.md)
MAX_FLOOD = 1 << 20
PASID_MAX = (1 << 20) - 1

# What a match may name, and at which points an occurrence has it.
POINTS: Mapping[str, tuple[str, frozenset[str]]] = {
    "request": (
        "a request that the unit takes from its ring",
        frozenset({"unit", "type", "endpoint", "domain", "pasid", "iova"}),
    ),
    "invalidation": (
        "an UNMAP, DETACH or DETACH_PASID that was granted",
        frozenset({"unit", "type", "endpoint", "domain", "pasid", "iova"}),
    ),
    "translation": (
        "an access of an endpoint, on its way through the IOMMU",
        frozenset({"unit", "endpoint", "domain", "pasid", "iova", "access"}),
    ),
    "dma": (
        "an access of an endpoint that the IOMMU let through",
        frozenset({"unit", "endpoint", "domain", "pasid", "iova", "access"}),
    ),
    "event": (
        "a fault record on its way to the guest",
        frozenset({"unit", "endpoint", "pasid", "iova", "access"}),
    ),
    "interrupt": ("an interrupt about to be signalled", frozenset({"unit", "endpoint", "function", "vector"})),
    "pasid": ("a PASID about to be asked of the host", frozenset({"unit", "pasid"})),
    "register": ("a guest's read of a register in BAR 0", frozenset({"unit", "endpoint", "function", "register"})),
    "timer": ("time has come; needs no traffic", frozenset()),
}  # fmt: skip

# Requests that there are at a point.
TYPES: Mapping[str, tuple[str, ...]] = {
    "request": (*REQUEST_NAMES.values(), *PASID_REQUEST_NAMES.values()),
    "invalidation": ("UNMAP", "DETACH", "DETACH_PASID"),
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One key of a rule's `with`. `default` None: it may be left out; `required`: it may not."""

    kind: str  # integer, seconds, boolean, word
    about: str
    default: Value | None = None
    required: bool = False
    low: float = 0
    high: float = U64
    words: tuple[str, ...] = ()

    @property
    def values(self) -> str:
        """What may be given, in words."""
        match self.kind:
            case "boolean":
                return "true or false"
            case "word":
                return ", ".join(self.words) or "a name"
            case "seconds":
                return f"{self.low:g}..{self.high:g} seconds"
        return f"{int(self.low)}..{int(self.high):#x}"


@dataclass(frozen=True, slots=True)
class Action:
    """`terminal`: why `clear` cannot undo it; empty where it can, and `undone` says how."""

    about: str
    parameters: Mapping[str, Parameter]
    undone: str = "nothing is left to undo"
    terminal: str = ""


def _seconds(
    about: str, *, required: bool = False, default: float | None = None, high: float = MAX_SECONDS
) -> Parameter:
    return Parameter("seconds", about, default, required, 0, high)


def _count(
    about: str, default: int | None = None, *, low: int = 0, high: int = U32, required: bool = False
) -> Parameter:
    return Parameter("integer", about, default, required, low, high)


def _function(about: str) -> Parameter:
    return Parameter("word", about)


STATUSES = tuple(STATUS_NAMES.values())
AER_ERRORS = tuple(ERRORS)

_HELD = "what is held is answered"

BOUND: Mapping[str, Mapping[str, Action]] = {
    "request": {
        "status": Action(
            "answered with a status of your choice",
            {
                "status": Parameter("word", "of the answer", required=True, words=STATUSES),
                "perform": Parameter("boolean", "whether it is carried out all the same", default=False),
            },
        ),
        "hold": Action(
            "carried out, and answered later",
            {"seconds": _seconds("for how long; without it until it is released")},
            _HELD,
        ),
        "drop": Action("carried out, and never answered", {}, "what was dropped is answered after all"),
        "twice": Action(
            "answered twice: two used elements for one chain",
            {},
            terminal="a driver that takes the ring for broken, such as Linux, stays so until it resets the unit",
        ),
        "used-length": Action(
            "answered with a used length of your choice", {"nbytes": _count("the used length", required=True)}
        ),
        "reorder": Action(
            "answered right after requests that came later were, or after 1 s: their driver may wait for this one",
            {"behind": _count("how many of them", 1, low=1, high=255)},
            _HELD,
        ),
        "probe-truncate": Action(
            "a PROBE whose properties end early: the rest is zeros, the last property may be cut",
            {"nbytes": _count("of properties that are left", 0, high=U16)},
        ),
        "probe-corrupt": Action(
            "a PROBE with wrong bytes among its properties",
            {
                "offset": _count("of the first wrong byte", 0, high=U16),
                "value": _count("of each wrong byte", 0xFF, high=U8),
                "nbytes": _count("how many", 1, low=1, high=U16),
            },
        ),
    },
    "invalidation": {
        "stale": Action(
            "granted, while what was invalidated lives on, in front of anything mapped there anew",
            {
                "seconds": _seconds("for how long", default=1.0),
                "accesses": _count("for how many accesses at most", low=1),
            },
            "stale translations end",
        ),
        "early": Action("answered without waiting for accesses in flight", {}),
    },
    "translation": {
        "unmapped": Action("refused as if nothing were mapped there", {}),
        "no-permission": Action("refused as if the mapping did not allow it", {}),
        "wrong-domain": Action(
            "translated by the mappings of another domain",
            {"domain": _count("whose", required=True)},
        ),
        "aperture": Action(
            "refused where it leaves a smaller input range",
            {
                "start": _count("first IOVA of it", 0, high=U64),
                "end": _count("last IOVA of it", required=True, high=U64),
            },
        ),
    },
    "dma": {
        "unsupported-request": Action("ends as an Unsupported Request", {}),
        "completer-abort": Action("ends as a Completer Abort", {}),
        "delay": Action("moves its bytes later", {"seconds": _seconds("how much later", required=True)}, _HELD),
        "partial": Action("moves its first bytes, and then faults", {"nbytes": _count("how many move", required=True)}),
        "corrupt": Action(
            "moves wrong bytes",
            {
                "pattern": _count("of each wrong byte", 0xA5, high=U8),
                "offset": _count("of the first wrong byte in the access", 0),
                "nbytes": _count("how many are wrong; without it all from `offset` on", low=1),
            },
        ),
    },
    "event": {
        "drop": Action("the guest is not told", {}),
        "duplicate": Action("the guest is told twice", {}),
        "delay": Action("the guest is told later", {"seconds": _seconds("how much later", required=True)}, _HELD),
        "unknown-reason": Action(
            "told with a reason no specification has", {"reason": _count("of the record", 0x7F, high=U8)}
        ),
    },
    "interrupt": {
        "lose": Action("not signalled", {}),
        "delay": Action("signalled later", {"seconds": _seconds("how much later", required=True)}, _HELD),
    },
    "pasid": {
        "exhausted": Action("refused as if the host had none left", {}),
        "quota": Action("refused as if the quota were another", {"quota": _count("that quota", 0)}),
        "unreachable": Action("refused as if the authority were away", {}),
    },
    "register": {
        "stuck": Action("read as a value of your choice", {"value": _count("that value", required=True, high=U64)}),
    },
    "timer": {},
}

FREE: Mapping[str, Action] = {
    "remove": Action(
        "surprise removal: the function answers all-ones and does nothing any more",
        {"function": _function("which")},
        "it is back as after power-on; its driver has to start it anew",
    ),
    "needs-reset": Action(
        "the unit sets DEVICE_NEEDS_RESET and serves nothing until its driver resets it (vfio-user)",
        {"function": _function("which unit")},
        terminal="only the guest's driver can reset the unit; Linux does when it is bound again",
    ),
    "config-change": Action(
        "the unit says that its configuration changed, which it did not", {"function": _function("which unit")}
    ),
    "flr": Action(
        "a function-level reset nobody asked for",
        {"function": _function("which")},
        terminal="what the driver had set up is gone; it has to start the function anew",
    ),
    "aer": Action(
        "an error in the function's AER capability, and, by QEMU, a message at its root port",
        {
            "function": _function("which endpoint"),
            "error": Parameter("word", "which", "unsupported-request", words=AER_ERRORS),
            "root": Parameter("boolean", "whether the root port is told", True),
        },
        "the status bits are cleared",
    ),
    "spurious": Action(
        "an interrupt for no reason",
        {"function": _function("which"), "vector": _count("its vector; of vhost-user its queue", 0, high=2047)},
    ),
    "flood": Action(
        "fault records until the unit's queue of them overflows",
        {
            "unit": _function("which"),
            "records": _count("how many; without it one more than fit", low=1, high=MAX_FLOOD),
            "endpoint": _function("whose faults they claim to be; without it the unit's first"),
            "iova": _count("at which IOVA", 0xBAD000, high=U64),
        },
        "records that were not delivered are dropped",
    ),
    "reclaim": Action(
        "the host takes a PASID back by force, used or not",
        {
            "pasid": _count("which; without it the lowest that the guest has", low=1, high=PASID_MAX),
            "all": Parameter("boolean", "all of them, and every one to come", False),
        },
        terminal="the guest has it no longer and may ask for others; after `all` it gets none until its QEMU ends",
    ),
    "quota-order": Action(
        "the host's authority gives the VM another quota",
        {"quota": _count("that quota", required=True, high=PASID_MAX)},
        "the quota of before is ordered",
    ),
    "stall": Action(
        "the backend serves nothing and answers nobody",
        {"seconds": _seconds("for how long", required=True, high=MAX_STALL_SECONDS)},
    ),
    "die": Action("the backend kills itself (SIGKILL)", {}, terminal="QEMU's functions have lost their backend"),
}


def find_action(point: str, name: str) -> Action | None:
    """The action `name` at `point`; None where there is none."""
    return BOUND[point].get(name) or FREE.get(name)


def names_at(point: str) -> list[str]:
    """All that may stand at `point`, bound ones first."""
    return [*BOUND[point], *FREE]
