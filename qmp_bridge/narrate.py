"""What the payload says, for somebody to read. The guest is not trusted: whatever is unexpected is shown as it came."""

from __future__ import annotations

import json
from typing import Any

_MAX_SHOWN = 400  # characters of one message


def narrate(message: dict[str, Any]) -> str:
    """One line about one message of the payload."""
    match message:
        case {"hello": _, "kernel": str(kernel), "checks": list(checks)}:
            line = f"the payload runs on Linux {kernel}: {len(checks)} checks"
        case {"starting": _, "title": str(title)}:
            line = f"{title} ..."
        case {"check": _, "ok": bool(ok), "detail": str(detail), "ms": float() | int() as ms}:
            line = f"  {'ok' if ok else 'FAILED'} after {ms:.0f} ms: {detail}"
        case {"done": True, "ok": bool(ok), "checks": int(checks), "passed": int(passed)}:
            line = f"done, {passed} of {checks} checks passed"
        case _:
            line = json.dumps(message)
    printable = "".join(character if character.isprintable() else "?" for character in line)
    return printable if len(printable) <= _MAX_SHOWN else printable[:_MAX_SHOWN] + " ..."
