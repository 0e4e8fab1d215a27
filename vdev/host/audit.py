"""What an administrator changed, as a record."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Audit:
    """One change that was ordered: by whom (as the kernel says), for whom (as that one says), of what, and to what."""

    uid: int
    pid: int
    on_behalf: str
    command: str
    set_id: int | None
    vm: str
    before: str
    after: str
    reason: str = ""
