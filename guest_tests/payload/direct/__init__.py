"""Drives a virtio-iommu unit and the accelerators behind it from user space, with no kernel driver in between.

docs/direct-driver.md is the tour. In a guest, as root:

    pool = DmaPool()
    with Viommu.open(find_units()[0], pool) as viommu, Accel.open(find_accels()[0], pool) as accel:
        accel.start_in(viommu, domain=1)
        ...
"""

from __future__ import annotations

from .accel import (
    Aborted,
    Accel,
    AccelError,
    BadDescriptor,
    EngineStopped,
    Mismatch,
    TranslationFault,
    UnsupportedRequest,
    find_accels,
)
from .answers import Answer, Layout, RequestRefused
from .errors import (
    DeviceBroken,
    DirectError,
    FeaturesRefused,
    NoAnswer,
    NotNegotiated,
    OutOfDmaMemory,
    QueueRefused,
    RingFull,
    RingViolation,
)
from .function import PciFunction
from .memory import DmaArena, DmaBuffer, DmaPool
from .pasids import OwnPasid, PasidPool, Pasids
from .viommu import DEFAULT_FEATURES, Viommu, find_units
from .vring import INDIRECT, NEXT, NO_NOTIFY, UNWRITTEN, WRITE_ONLY, Chain, Descriptor, Segment
from .wire import (
    ATTACH_BYPASS,
    MMIO,
    READ,
    WRITE,
    Access,
    Attach,
    Config,
    Detach,
    Fault,
    Feature,
    Map,
    PasidFlag,
    PasidWidth,
    Probe,
    Reason,
    ResvMem,
    ResvPasid,
    Status,
    Subtype,
    UnknownProperty,
    Unmap,
)
from .wire_pasid import (
    ATTACH_PASID_BYPASS,
    ATTACH_PASID_MIRROR_RID,
    PASID_LAST,
    AttachPasid,
    DetachPasid,
    Granted,
    PasidAlloc,
    PasidConfig,
    PasidFree,
    Space,
)

__all__ = [
    "ATTACH_BYPASS",
    "ATTACH_PASID_BYPASS",
    "ATTACH_PASID_MIRROR_RID",
    "DEFAULT_FEATURES",
    "INDIRECT",
    "MMIO",
    "NEXT",
    "NO_NOTIFY",
    "PASID_LAST",
    "READ",
    "UNWRITTEN",
    "WRITE",
    "WRITE_ONLY",
    "Aborted",
    "Accel",
    "AccelError",
    "Access",
    "Answer",
    "Attach",
    "AttachPasid",
    "BadDescriptor",
    "Chain",
    "Config",
    "Descriptor",
    "Detach",
    "DetachPasid",
    "DeviceBroken",
    "DirectError",
    "DmaArena",
    "DmaBuffer",
    "DmaPool",
    "EngineStopped",
    "Fault",
    "Feature",
    "FeaturesRefused",
    "Granted",
    "Layout",
    "Map",
    "Mismatch",
    "NoAnswer",
    "NotNegotiated",
    "OutOfDmaMemory",
    "OwnPasid",
    "PasidAlloc",
    "PasidConfig",
    "PasidFlag",
    "PasidFree",
    "PasidPool",
    "PasidWidth",
    "Pasids",
    "PciFunction",
    "Probe",
    "QueueRefused",
    "Reason",
    "RequestRefused",
    "ResvMem",
    "ResvPasid",
    "RingFull",
    "RingViolation",
    "Segment",
    "Space",
    "Status",
    "Subtype",
    "TranslationFault",
    "UnknownProperty",
    "Unmap",
    "UnsupportedRequest",
    "Viommu",
    "find_accels",
    "find_units",
]
