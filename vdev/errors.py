"""Every exception vdev raises on purpose, in one tree.

    VdevError
    +-- ConfigError          the user's YAML, argv or environment: names the key, the rule and the value
    +-- PartsError           a part from outside (QEMU, kernel, apt) is missing or wrong: carries the cure
    +-- PeerError            the other end of a socket broke its protocol: that connection ends or gets an errno
    |   +-- MessageError     one vfio-user message is refused; carries the errno of its reply
    +-- MemoryAccessError    guest-physical range that is not RAM, or not writable
    +-- DmaError             one DMA access of an endpoint was refused; carries the reason
    |   +-- TranslationFault the IOMMU refused it
    |   +-- DmaDelayed       it is to be tried again later
    +-- RequestError         a virtio-iommu request is refused; carries the status of its tail
    +-- ArgumentError        a command's arguments are not what the schema says; the text is QEMU's own
    +-- SchemaError          the schema of the commands breaks a rule; names the line

Anything else that is raised is a bug of ours and propagates.
"""

from __future__ import annotations


class VdevError(Exception):
    """Root of all deliberate errors."""


class ConfigError(VdevError):
    """The user's input is wrong. `key` is the dotted path, the text says rule, value and cure."""

    def __init__(self, key: str, problem: str, cure: str = "") -> None:
        self.key = key
        self.problem = problem
        self.cure = cure
        super().__init__(f"{key}: {problem}" + (f" ({cure})" if cure else ""))


class PartsError(VdevError):
    """A part from outside is missing or unusable; `cure` tells the person what to do."""

    def __init__(self, part: str, problem: str, cure: str = "") -> None:
        self.part = part
        self.problem = problem
        self.cure = cure
        super().__init__(f"{part}: {problem}" + (f"\n  cure: {cure}" if cure else ""))


class PeerError(VdevError):
    """The peer broke the protocol so that the stream cannot go on."""


class MessageError(PeerError):
    """One message is refused; the stream goes on. `errno` is positive and goes into the reply."""

    def __init__(self, errno: int, problem: str) -> None:
        self.errno = errno
        super().__init__(problem)


class MemoryAccessError(VdevError):
    """A guest-physical range is not (wholly) RAM we may use this way.

    `lost` says that there was RAM which has been unmapped and not mapped again: it may come back.
    """

    def __init__(self, gpa: int, nbytes: int, problem: str, *, lost: bool = False) -> None:
        self.gpa = gpa
        self.nbytes = nbytes
        self.lost = lost
        super().__init__(f"GPA {gpa:#x}+{nbytes:#x}: {problem}")


class DmaError(VdevError):
    """One DMA access of an endpoint was refused. `reason` is a short stable word for registers, counters and logs.

    `passing` says that nobody did anything wrong: the same access may succeed later.
    """

    def __init__(self, reason: str, iova: int, detail: str = "", *, passing: bool = False) -> None:
        self.reason = reason
        self.iova = iova
        self.passing = passing
        super().__init__(f"DMA at IOVA {iova:#x}: {reason}" + (f", {detail}" if detail else ""))


class TranslationFault(DmaError):
    """The IOMMU refused the access; `fault_reason` is the wire reason (0 UNKNOWN, 1 DOMAIN, 2 MAPPING; 0x40-0x42)."""

    def __init__(self, fault_reason: int, reason: str, iova: int, detail: str = "") -> None:
        self.fault_reason = fault_reason
        super().__init__(reason, iova, detail)


class DmaDelayed(DmaError):
    """The same access succeeds later; its door says when. Injected only."""

    def __init__(self, iova: int) -> None:
        super().__init__("delayed", iova, passing=True)


class RequestError(VdevError):
    """A virtio-iommu request is refused with `status` (VIRTIO_IOMMU_S_*)."""

    def __init__(self, status: int, problem: str) -> None:
        self.status = status
        super().__init__(problem)


class ArgumentError(VdevError):
    """A value is not what the schema says. The text is the one QEMU has for it, as monitors show it."""


class SchemaError(VdevError):
    """A schema breaks a rule of its language, in `line`."""

    def __init__(self, line: int, problem: str) -> None:
        self.line = line
        super().__init__(f"schema, line {line}: {problem}")
