"""systemd's notification protocol: one datagram of VARIABLE=value lines to the socket in NOTIFY_SOCKET.

Source: sd_notify(3). Without the variable nothing is sent, so that the same command works at a prompt.
"""

from __future__ import annotations

import logging
import socket

log = logging.getLogger(__name__)

READY = "READY=1"
STOPPING = "STOPPING=1"


def notify(address: str | None, *lines: str) -> bool:
    """Send `lines` to `address`, the value of NOTIFY_SOCKET; whether that was possible.

    A path, or "@name" for an abstract socket. A failure is logged: systemd will say itself that it heard nothing.
    """
    if not address:
        return False
    if address[0] not in "/@":
        log.warning("NOTIFY_SOCKET=%s is neither a path nor an abstract socket: systemd is not told", address)
        return False
    name = "\0" + address[1:] if address[0] == "@" else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # a full queue must not hold the loop
            sock.sendto("\n".join(lines).encode(), name)
    except OSError as error:
        log.warning("systemd was not told %s: NOTIFY_SOCKET=%s: %s", lines[0], address, error.strerror or error)
        return False
    return True
