"""What is done about each action: by the stock Linux driver, by our guest library. docs/faults.md shows this table.

Observed in booted guests, never worked out: each row names the test that shows it. The key is POINT/ACTION, and for an
action that may stand at every point its name alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NOT_YET = "not observed yet"


@dataclass(frozen=True, slots=True)
class Reaction:
    """In words, for people: what virtio_iommu and the drivers above it do, with what the kernel's log says and where it
    hangs by design; what guest_tests.payload.direct does. `test` is a file and a name: guest_tests/....py::test_..."""

    linux: str
    library: str
    test: str


REACTIONS: Mapping[str, Reaction] = {
    "request/status": Reaction(
        NOT_YET,
        "a method such as map raises RequestRefused with that status, send returns it",
        NOT_YET,
    ),
    "request/hold": Reaction(
        NOT_YET,
        "NoAnswer after two seconds; an answer that comes later has to be reaped (requests.ring.reap) "
        "before the next request is made",
        NOT_YET,
    ),
    "request/drop": Reaction(
        NOT_YET,
        "as hold, but that no answer comes before clear; a ring full of such requests raises RingFull",
        NOT_YET,
    ),
    "request/twice": Reaction(
        NOT_YET,
        "RingViolation at the second used element (an id which is not out), and from then on until start",
        NOT_YET,
    ),
    "request/used-length": Reaction(
        NOT_YET,
        "more than there is room for: RingViolation; less than a tail: RequestRefused with status None; "
        "other lengths: the status is read from where the length says the tail ends",
        NOT_YET,
    ),
    "request/reorder": Reaction(
        NOT_YET,
        "submit takes answers in any order; a request made alone is answered after a second",
        NOT_YET,
    ),
    "request/probe-truncate": Reaction(
        NOT_YET,
        "probe returns the properties there are; one that is cut has zeros for its rest",
        NOT_YET,
    ),
    "request/probe-corrupt": Reaction(
        NOT_YET,
        "probe returns what the bytes say: an unknown property is one of UnknownProperty",
        NOT_YET,
    ),
    "invalidation/stale": Reaction(
        NOT_YET,
        "nothing is raised: DMA goes where the page was",
        NOT_YET,
    ),
    "invalidation/early": Reaction(
        NOT_YET,
        "nothing is raised: bytes of an access under way change the page after unmap has returned",
        NOT_YET,
    ),
    "translation/unmapped": Reaction(
        NOT_YET,
        "the operation raises TranslationFault with address and access, the fault record is like a real one; "
        "a refused access of the ring stops the engine (EngineStopped, RING_FETCH or COMPLETION_WRITE) until "
        "it is started anew",
        NOT_YET,
    ),
    "translation/no-permission": Reaction(
        NOT_YET,
        "as unmapped; the host counts it as no-read or no-write",
        NOT_YET,
    ),
    "translation/wrong-domain": Reaction(
        NOT_YET,
        "nothing is raised: the operation succeeds and its bytes are elsewhere; where there is no such domain"
        " TranslationFault, with a record of reason DOMAIN",
        NOT_YET,
    ),
    "translation/aperture": Reaction(
        NOT_YET,
        "TranslationFault at the first byte outside; what stays inside is as ever",
        NOT_YET,
    ),
    "dma/unsupported-request": Reaction(
        NOT_YET,
        "UnsupportedRequest, with the operand's address and no fault record; of the ring EngineStopped",
        NOT_YET,
    ),
    "dma/completer-abort": Reaction(
        NOT_YET,
        "CompleterAbort, with the operand's address and no fault record; of the ring EngineStopped",
        NOT_YET,
    ),
    "dma/delay": Reaction(
        NOT_YET,
        "the operation's completion comes later, and so does the answer of an UNMAP of its operand; "
        "AcceleratorTimeout after 5 s",
        NOT_YET,
    ),
    "dma/partial": Reaction(
        NOT_YET,
        "TranslationFault at the first byte that did not move, `nbytes_done` says how many did, and a fault record",
        NOT_YET,
    ),
    "dma/corrupt": Reaction(
        NOT_YET,
        "nothing is raised: the bytes are wrong; a corrupted descriptor is executed as it reads, mostly BadDescriptor",
        NOT_YET,
    ),
    "event/drop": Reaction(
        NOT_YET,
        "wait_fault raises NoAnswer, faults returns nothing; the operation raises TranslationFault all the same",
        NOT_YET,
    ),
    "event/duplicate": Reaction(
        NOT_YET,
        "the same fault twice",
        NOT_YET,
    ),
    "event/delay": Reaction(
        NOT_YET,
        "the fault comes later, behind younger ones",
        NOT_YET,
    ),
    "event/unknown-reason": Reaction(
        NOT_YET,
        "a Fault whose reason is a plain number",
        NOT_YET,
    ),
    "interrupt/lose": Reaction(
        NOT_YET,
        "`Vector.wait` is False; who polls notices nothing",
        NOT_YET,
    ),
    "interrupt/delay": Reaction(
        NOT_YET,
        "`Vector.wait` is True when it comes",
        NOT_YET,
    ),
    "pasid/exhausted": Reaction(NOT_YET, NOT_YET, NOT_YET),
    "pasid/quota": Reaction(NOT_YET, NOT_YET, NOT_YET),
    "pasid/unreachable": Reaction(NOT_YET, NOT_YET, NOT_YET),
    "register/stuck": Reaction(
        NOT_YET,
        "it believes what it reads: an engine whose STATUS reads 0 is EngineStopped, a unit whose device "
        "status reads NEEDS_RESET is DeviceBroken",
        NOT_YET,
    ),
    "remove": Reaction(
        NOT_YET,
        "AcceleratorTimeout, with registers of all ones, or NoAnswer of a unit; after `clear` `awake()` and a"
        " new start",
        NOT_YET,
    ),
    "needs-reset": Reaction(
        NOT_YET,
        "DeviceBroken at the next request, until `start()`",
        NOT_YET,
    ),
    "config-change": Reaction(
        NOT_YET,
        "the configuration vector fires; `read_config` reads what it read before",
        NOT_YET,
    ),
    "flr": Reaction(
        NOT_YET,
        "EngineStopped or AcceleratorTimeout: the registers are at power-on values; `awake()` and a new start",
        NOT_YET,
    ),
    "aer": Reaction(
        "its AER driver logs it as an error of the root port's (`pcieport 0000:00:02.0: AER: ... error message "
        "received`) and has what is below recover from an uncorrectable one; an endpoint without a driver cannot "
        "(`can't recover (no error_detected callback)`). All goes on as before",
        "nothing: the status bits are there for whoever reads them",
        "guest_tests/suites/faults-stock/test_root_port.py"
        "::test_the_kernel_reports_an_error_of_the_port_in_front_of_the_endpoint",
    ),
    "spurious": Reaction(
        NOT_YET,
        "`Vector.has_fired` with nothing to be found; requests and operations go on",
        NOT_YET,
    ),
    "flood": Reaction(
        NOT_YET,
        "the faults come as fast as buffers are posted again; real ones of that time come behind them, or are lost",
        NOT_YET,
    ),
    "reclaim": Reaction(NOT_YET, NOT_YET, NOT_YET),
    "quota-order": Reaction(NOT_YET, NOT_YET, NOT_YET),
    "stall": Reaction(NOT_YET, NOT_YET, NOT_YET),
    "die": Reaction(NOT_YET, NOT_YET, NOT_YET),
}
