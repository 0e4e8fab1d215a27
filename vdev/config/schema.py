"""The shape of a configuration: typed, frozen, one class per section of the YAML. What the values mean is checked in
`checks`.

Where things sit on bus 00: 00 and 1f are the chipset's, 01 has what QEMU itself emulates for us (function 0 the
virtio-serial, function 1 the disk, neither behind an IOMMU of ours), 02-0f hold the root ports (one
per slot and per endpoint on a bus of its own), 10-1e are free for IOMMU units and for endpoints without a root port.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

SERIAL_SLOT = 0x01
ROOT_PORT_SLOTS = range(0x02, 0x10)
FREE_SLOTS = range(0x10, 0x1F)
KERNEL_NAMES = ["cloud", "generic", "cloud-backports", "generic-backports"]
Attach = Literal["vfio-user", "vhost-user"]
Bypass = Literal["on", "off", "not-offered"]
Isolation = Literal["required", "preferred", "off"]
Dma = Literal["any", "pasid_only"]
ATTACHMENTS: tuple[Attach, ...] = get_args(Attach)


class Reserved(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A RESV_MEM region; `start`..`end` inclusive as in the specification's words."""

    start: int
    end: int
    kind: Literal["msi", "reserved"] = "reserved"


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Caps on what one guest can grow; every one of them answers NOMEM (events: dropped and counted)."""

    max_domains: int = 65536
    max_mappings_per_domain: int = 1 << 20
    max_mappings: int = 1 << 21
    max_pairs: int = 65536
    max_pending_faults: int = 1024
    max_request_nbytes: int = 65536


class UnitConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One virtio-iommu unit."""

    name: str
    bdf: str = "00:10.0"
    attach: Attach = "vfio-user"  # docs/attachments.md says what they differ in
    mode: Literal["compat", "strict"] = "compat"
    granule: int | str = "4K"  # lowest set bit of page_size_mask; 1 is legal
    input_range: tuple[int, int] = (0, (1 << 39) - 1)  # inclusive
    domain_range: tuple[int, int] = (0, (1 << 32) - 1)  # inclusive
    # What is left out follows from vm.isolation: vdev/config/isolation.py.
    bypass: Bypass | None = None  # boot value of the bypass byte; not-offered hides BYPASS_CONFIG
    force_aperture: bool | None = None  # whether accesses that bypass end with the input range
    mmio: bool = True
    probe_size: int = 512
    reserved: tuple[Reserved, ...] = (Reserved(start=0xFEE00000, end=0xFEEFFFFF, kind="msi"),)
    limits: Limits = Limits()


class EndpointConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One PCI endpoint behind a unit. A bus above 0 means an own pcie-root-port on pcie.0."""

    name: str
    model: str = "accelerator"
    unit: str = "iommu0"
    bdf: str = "01:00.0"
    reserved: tuple[Reserved, ...] = ()
    # These need vm.pasids, and a model with a PASID capability: docs/pasids.md.
    dma: Dma = "any"  # pasid_only: accesses without a PASID are refused
    kernel_pasid: bool = False  # whether the host attaches a PASID that follows what the guest's kernel maps
    reserved_pasids: tuple[int | str, ...] = ()  # the endpoint's own: "0x1..0xf", inclusive, or one number
    options: dict[str, int | str | bool] = {}


class SlotConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A place for an endpoint that comes while the VM runs: a root port and a range of VIOT (docs/hot-plug.md)."""

    bdf: str
    unit: str = "iommu0"


class PasidsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The VM has PASIDs, which an authority of the host grants (docs/pasids.md); `pasids: {}` takes what is usual."""

    authority: str | None = None  # its directory; relative: to the VM's runtime directory; None: the user's own
    authority_config: str | None = None  # its rules, if it has to be started; relative to where `vdev serve` was
    quota: int | None = None  # None: what the authority gives a VM that has none


class VmConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The machine QEMU emulates."""

    name: str = "vm"
    memory: int | str = "512M"
    cpus: int = 1
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    qemu: str | None = None  # path of the QEMU to use; None: the system's if fit, else the packaged one
    # cloud | generic | cloud-backports | generic-backports | a path | none; left out: cloud, and none with a disk
    kernel: str | None = None
    initrd: str | None = None  # a path, or none; left out: vdev's own
    append: str = ""
    disk: str | None = None  # path of an image; without a kernel the firmware boots it
    disk_format: Literal["auto", "raw", "qcow2"] = "auto"
    disk_writable: bool = False  # False: what the guest writes is thrown away at its end
    firmware: str = "seabios"  # seabios | ovmf | the path of an image for QEMU's -bios
    boot_timeout: float = 180.0
    identity: Literal["peer", "unchecked"] = "peer"
    isolation: Isolation = "preferred"  # docs/isolation.md
    pasids: PasidsConfig | None = None  # None: nothing of PASIDs is offered
    unsealed_ram: Literal["refuse", "allow"] = "refuse"  # allow: RAM files that may shrink and so kill vdev (hugetlbfs)
    extra_args: tuple[str, ...] = ()


class SocketsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who may reach the sockets besides our own user and root; names or numbers of this host."""

    owner: int | str | None = None
    group: int | str | None = None
    mode: str | None = None  # of the directory: "0700", or with a group "0750" (then the default) or "0770"


class TraceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The decoded trace from the start on (docs/trace.md); `trace: {}` records in memory."""

    file: str | None = None  # JSON lines; relative to where `vdev serve` was started
    max_bytes: int | str = "32M"  # of FILE and FILE.1 together
    records: int = 10_000  # kept in memory
    endpoints: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()


class FaultsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A fault plan (docs/faults.md): the key `faults`, or a file of its own. What is in a rule is known to
    `vdev.faults` alone, which checks it when the machine is built."""

    seed: int | None = None  # of the rules' probabilities; None: 0, or that of a plan before this one
    rules: tuple[dict[str, Any], ...] = ()


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole file."""

    vm: VmConfig = VmConfig()
    sockets: SocketsConfig = SocketsConfig()
    units: tuple[UnitConfig, ...]
    endpoints: tuple[EndpointConfig, ...] = ()
    slots: tuple[SlotConfig, ...] = ()
    trace: TraceConfig | None = None
    faults: FaultsConfig | None = None  # in place when the machine is
