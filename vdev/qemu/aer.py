"""The root port's half of an error of an endpoint, which only QEMU can do: vfio-user has no message for it.

QEMU takes the id of the endpoint as well, answers OK, and nothing comes of it. With the id of the root port the port
has the error itself and interrupts, so that is what Linux says: the error is of the port. Observed with QEMU 11.1.
"""

from __future__ import annotations

from vdev.qemu.machine import port_of

ERRORS = {  # names of fault plans, and QEMU's
    "receiver": "RCVR",
    "bad-tlp": "BAD_TLP",
    "bad-dllp": "BAD_DLLP",
    "rollover": "REP_ROLL",
    "replay-timer": "REP_TIMER",
    "advisory-nonfatal": "ADV_NONFATAL",
    "poisoned-tlp": "POISON_TLP",
    "completion-timeout": "COMP_TIME",
    "completer-abort": "COMP_ABORT",
    "unexpected-completion": "UNX_COMP",
    "unsupported-request": "UNSUP",
}


def root_port_error(bdf: str, error: str) -> str | None:
    """The command of QEMU's human monitor for `error` at the root port in front of an address; None without a port."""
    port = port_of(bdf)
    return None if port is None else f"pcie_aer_inject_error {port} {ERRORS[error]}"
