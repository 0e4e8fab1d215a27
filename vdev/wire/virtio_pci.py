"""virtio over PCI, modern interface: the layouts of virtio 1.4 "Virtio Over PCI Bus" and the status and feature bits of
"Basic Facilities of a Virtio Device". Little endian."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import ClassVar

from vdev.wire.record import Record

VENDOR_VIRTIO = 0x1AF4
DEVICE_ID_BASE = 0x1040
ENTROPY_DEVICE_ID = 4  # virtio 1.x, "Device Types"
REVISION_MODERN = 1
NO_VECTOR = 0xFFFF  # VIRTIO_MSI_NO_VECTOR

F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29
F_VERSION_1 = 1 << 32
F_ACCESS_PLATFORM = 1 << 33
FEATURE_NAMES = {
    F_INDIRECT_DESC: "INDIRECT_DESC",
    F_EVENT_IDX: "EVENT_IDX",
    F_VERSION_1: "VERSION_1",
    1 << 33: "ACCESS_PLATFORM",
}
FEATURE_WINDOWS = 4  # 128 feature bits, 32 per select value

ISR_QUEUE = 1 << 0
ISR_CONFIG = 1 << 1


class Status(IntFlag):
    """Device status."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class CfgType(IntEnum):
    """`cfg_type` of a virtio vendor capability."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    PCI = 5


@dataclass(slots=True)
class PciCap(Record):
    """struct virtio_pci_cap, 16 bytes."""

    layout: ClassVar[Struct] = Struct("<BBBBBB2sII")
    cap_vndr: int
    cap_next: int
    cap_len: int
    cfg_type: int
    bar: int
    id: int
    padding: bytes
    offset: int
    length: int


PCI_CAP_NBYTES = PciCap.layout.size
CAP_BAR = 4  # offsets within struct virtio_pci_cap and virtio_pci_cfg_cap
CAP_OFFSET = 8
CAP_LENGTH = 12
CAP_PCI_CFG_DATA = 16
PCI_CFG_CAP_NBYTES = 20


@dataclass(slots=True)
class CommonCfg(Record):
    """struct virtio_pci_common_cfg, 64 bytes."""

    layout: ClassVar[Struct] = Struct("<IIIIHHBBHHHHHQQQHHHH")
    device_feature_select: int
    device_feature: int
    driver_feature_select: int
    driver_feature: int
    config_msix_vector: int
    num_queues: int
    device_status: int
    config_generation: int
    queue_select: int
    queue_size: int
    queue_msix_vector: int
    queue_enable: int
    queue_notify_off: int
    queue_desc: int
    queue_driver: int
    queue_device: int
    queue_notif_config_data: int
    queue_reset: int
    admin_queue_index: int
    admin_queue_num: int


# (offset, nbytes, name) of every field a driver may write, by rising offset; the others ignore writes.
COMMON_WRITABLE = (
    (0x00, 4, "device_feature_select"),
    (0x08, 4, "driver_feature_select"),
    (0x0C, 4, "driver_feature"),
    (0x10, 2, "config_msix_vector"),
    (0x14, 1, "device_status"),
    (0x16, 2, "queue_select"),
    (0x18, 2, "queue_size"),
    (0x1A, 2, "queue_msix_vector"),
    (0x1C, 2, "queue_enable"),
    (0x20, 8, "queue_desc"),
    (0x28, 8, "queue_driver"),
    (0x30, 8, "queue_device"),
)
COMMON_STATUS = 0x14
