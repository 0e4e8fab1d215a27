"""Runs in the guest: what scenarios have a driver do. `start` first; what it makes is there for the calls after it."""

from __future__ import annotations

import time
from typing import Any

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import FILL, OK, STATUS_NAMES, Completion, Operation
from guest_tests.payload.direct import DmaBuffer, RequestRefused, wait
from guest_tests.payload.planted import DRIVERS, USER_IOVA, Driver, Loan, User

PAGE = 4096
FINISH_S = 10.0
_drivers: list[Driver] = []
_loans: dict[str, Loan] = {}
_users: dict[str, User] = {}
_letters: dict[str, DmaBuffer] = {}
_pending: list[int] = []


def start(driver: str, pasids: bool = False) -> dict[str, Any]:
    """Start the driver of that name, of `guest_tests.payload.planted`."""
    _drivers.append(DRIVERS[driver](pasids=pasids))
    return {"driver": driver, "vhost_user": _driver().viommu.is_vhost_user}


def lend(name: str, npages: int = 1) -> dict[str, Any]:
    """Lend the device memory. Raises RequestRefused."""
    started = time.monotonic()
    loan = _loans[name] = _driver().lend(npages * PAGE)
    return {"iova": loan.iova, "nbytes": loan.buffer.nbytes, "seconds": round(time.monotonic() - started, 3)}


def lend_many(count: int) -> dict[str, Any]:
    """`count` loans of a page, one after the other; the numbers, from 1, of those that were refused."""
    refused = []
    for number in range(1, count + 1):
        try:
            _loans[f"loan-{number}"] = _driver().lend(PAGE)
        except RequestRefused:
            refused.append(number)
    return {"refused": refused, "lent": count - len(refused)}


def take_back(name: str) -> None:
    """End a loan; its memory is free."""
    _driver().take_back(_loans.pop(name))


def keep(name: str, byte: int, npages: int = 1) -> None:
    """Memory for somebody else, which no device is to reach: all bytes are `byte`."""
    _letters[name] = _driver().alloc(npages * PAGE).fill(byte)


def admit(name: str, byte: int) -> dict[str, Any]:
    """A new user with a PASID; its page has `byte` everywhere."""
    user = _users[name] = _driver().admit(PAGE)
    user.buffer.fill(byte)
    return {"pasid": user.pasid, "iova": USER_IOVA}


def dismiss(name: str) -> None:
    """The end of a user."""
    _driver().dismiss(_users.pop(name))


def write(iova: int, byte: int, nbytes: int = PAGE, pasid: int = 0) -> dict[str, Any]:
    """The device writes `byte` so often; what became of it."""
    return _told(_driver().accel.run(_fill(iova, byte, nbytes, pasid)))


def begin_write(iova: int, byte: int, nbytes: int = PAGE, pasid: int = 0) -> None:
    """The device begins to write; `finish_write` waits for it."""
    _pending.append(_driver().accel.engine.submit(_fill(iova, byte, nbytes, pasid)))


def finish_write() -> dict[str, Any]:
    """What became of the oldest write that was begun."""
    accel, index = _driver().accel, _pending.pop(0)
    if not wait.until(lambda: accel.engine.status_of(index) != engine.PENDING, FINISH_S):
        return {"status": "pending"}
    return _told(accel.engine.wait(index, time.monotonic_ns()))


def content(name: str) -> dict[str, Any]:
    """The bytes of a loan, a user's page or a letter: which there are, and how many of each."""
    buffer = _letters[name] if name in _letters else (_loans.get(name) or _users[name]).buffer
    found = buffer.read()
    return {"bytes": sorted(set(found)), "first": found[0], "last": found[-1]}


def hear(count: int, seconds: float = 2.0) -> dict[str, Any]:
    """Wait for so many faults and not for ever; those that came."""
    found: list[Any] = []

    def has_come() -> bool:
        found.extend(_driver().faults())
        return len(found) >= count

    wait.until(has_come, seconds)
    shown = [{"reason": int(one.reason), "iova": one.address, "pasid": one.pasid} for one in found]
    return {"count": len(shown), "faults": shown[:2]}


def _driver() -> Driver:
    return _drivers[-1]


def _fill(iova: int, byte: int, nbytes: int, pasid: int) -> Operation:
    return Operation(FILL, dst=iova, nbytes=nbytes, arg=int.from_bytes(bytes([byte]) * 8, "little"), pasid=pasid)


def _told(completion: Completion) -> dict[str, Any]:
    done = completion.status == OK
    return {"status": STATUS_NAMES[completion.status], "nbytes": None if done else completion.result}
