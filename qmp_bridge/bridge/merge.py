"""Our commands and events in QEMU's descriptions of its own. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

_LIST, _END = b'"return": [', b"]"


def prepared(additions: Mapping[str, Sequence[object]]) -> dict[str, bytes]:
    """What `merged` appends to the replies of these commands."""
    return {name: ", ".join(map(json.dumps, items)).encode() for name, items in additions.items() if items}


def merged(body: bytes, additions: bytes) -> bytes:
    """A reply that is a list, with ours behind QEMU's; an error as it is."""
    if not body.startswith(_LIST) or not body.endswith(_END):
        return body
    separator = b"" if body == _LIST + _END else b", "
    return body[: -len(_END)] + separator + additions + _END
