"""What a backend and the authority say to each other on lease.sock: one JSON object in one packet (SOCK_SEQPACKET).

A conversation: `Hello`, `Welcome`; once there is a QEMU `Open` with its pidfd, `Opened` and everything the set holds in
`Held`; then `Allocate`, `Tell`, `Release` as the guest pleases. A packet carries at most one fd.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any, Literal

import msgspec

VERSION = 1
MAX_PACKET_NBYTES = 64 << 10
MAX_PASIDS = 4096  # in one packet
LEASE_SOCKET = "lease.sock"
ADMIN_SOCKET = "admin.sock"

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$")]
Pasid = Annotated[int, msgspec.Meta(ge=0, lt=1 << 20)]
Bound = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
Pasids = Annotated[list[Pasid], msgspec.Meta(max_length=MAX_PASIDS)]
Text = Annotated[str, msgspec.Meta(max_length=1024)]


class Hello(msgspec.Struct, tag="hello", tag_field="op", forbid_unknown_fields=True, frozen=True):
    """Of a backend: the VM's name, and the quota its configuration asks for."""

    version: int
    name: Name
    quota: Bound | None = None


class Open(msgspec.Struct, tag="open", tag_field="op", forbid_unknown_fields=True, frozen=True):
    """The VM is the process whose pidfd comes with this. A set it has is claimed, else it gets one."""


class Allocate(msgspec.Struct, tag="allocate", tag_field="op", forbid_unknown_fields=True, frozen=True):
    """One PASID of [first, stop). `id` is the backend's and comes back in the answer."""

    id: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
    first: Bound
    stop: Bound


class Tell(msgspec.Struct, tag="tell", tag_field="op", forbid_unknown_fields=True, frozen=True):
    """The guest's use of these has changed."""

    state: Literal["allocated", "attached", "free-pending"]
    pasids: Pasids


class Release(msgspec.Struct, tag="release", tag_field="op", forbid_unknown_fields=True, frozen=True):
    """Nothing uses these any more. Those the set does not have are passed over."""

    pasids: Pasids


class Revoked(msgspec.Struct, tag="revoked", tag_field="op", forbid_unknown_fields=True, frozen=True):
    """The answer to `Revoke`, when nothing uses these any more."""

    pasids: Pasids


Request = Hello | Open | Allocate | Tell | Release | Revoked


class Welcome(msgspec.Struct, tag="welcome", tag_field="op", frozen=True):
    """The answer to `Hello`, and again whenever the terms change (unasked)."""

    space: Literal["system", "per-vm"]
    quota: int
    first: int
    stop: int


class Refused(msgspec.Struct, tag="refused", tag_field="op", frozen=True):
    """The answer to a `Hello` or `Open` that cannot be."""

    problem: str


class Opened(msgspec.Struct, tag="opened", tag_field="op", frozen=True):
    """The backend has the set; `Held` follows."""

    set_id: int
    is_claimed: bool


class Held(msgspec.Struct, tag="held", tag_field="op", frozen=True):
    """What the set holds; the last packet of it has no `more`."""

    pasids: list[int]
    more: bool


class Granted(msgspec.Struct, tag="granted", tag_field="op", frozen=True):
    """The answer to `Allocate`: it is in the ledger."""

    id: int
    pasid: int


class NotGranted(msgspec.Struct, tag="not-granted", tag_field="op", frozen=True):
    """The other answer to `Allocate`. unreachable: the ledger cannot be written."""

    id: int
    why: Literal["quota", "supply", "range", "fenced", "unreachable"]


class Revoke(msgspec.Struct, tag="revoke", tag_field="op", frozen=True):
    """The administrator takes these back: use must end, then comes `Revoked`. `is_forced`: they are gone already."""

    pasids: list[int]
    is_forced: bool
    reason: str


class Ended(msgspec.Struct, tag="ended", tag_field="op", frozen=True):
    """The set is no more."""

    why: str


Answer = Welcome | Refused | Opened | Held | Granted | NotGranted | Revoke | Ended

encode = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(Request).decode
decode_answer = msgspec.json.Decoder(Answer).decode


def chunks(pasids: Sequence[int]) -> Iterator[list[int]]:
    """`pasids` in pieces that fit a packet."""
    rest = iter(pasids)
    while piece := list(islice(rest, MAX_PASIDS)):
        yield piece


def held_packets(pasids: Sequence[int]) -> list[Held]:
    """`Held` for all of `pasids`; one without any where there are none."""
    pieces = list(chunks(pasids)) or [[]]
    return [Held(piece, more=piece is not pieces[-1]) for piece in pieces]


def request_from(data: bytes) -> Any:
    """The request in `data`; ValueError (of msgspec, or of text that is none) for anything else."""
    return decode_request(data)
