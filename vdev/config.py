"""The user's YAML, parsed once into frozen typed objects; errors name the key path, the rule and the cure.

`load_config` reads a file; what it returns is checked by `vdev.config_check` against itself, not against the host:
whether a QEMU or a kernel exists is known to `vdev.parts` alone.
"""

from __future__ import annotations

from typing import Literal

import msgspec


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
    max_pending_faults: int = 1024
    max_request_nbytes: int = 65536


class UnitConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One virtio-iommu unit."""

    name: str
    bdf: str = "00:10.0"
    attach: Literal["vfio-user"] = "vfio-user"
    mode: Literal["compat", "strict"] = "compat"
    granule: int | str = "4K"  # lowest set bit of page_size_mask; 1 is legal
    input_range: tuple[int, int] = (0, (1 << 39) - 1)  # inclusive
    domain_range: tuple[int, int] = (0, (1 << 32) - 1)  # inclusive
    bypass: Literal["on", "off", "not-offered"] = "on"  # boot value of the bypass byte; not-offered hides BYPASS_CONFIG
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
    options: dict[str, int | str | bool] = {}


class VmConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The machine QEMU emulates."""

    name: str = "vm"
    memory: str = "512M"
    cpus: int = 1
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    qemu: str | None = None  # path of the QEMU to use; None: the system's if fit, else the packaged one
    kernel: str = "cloud"  # cloud | generic | cloud-backports | generic-backports | a path
    initrd: str | None = None
    append: str = ""
    boot_timeout: float = 180.0
    identity: Literal["peer", "unchecked"] = "peer"
    extra_args: tuple[str, ...] = ()


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole file."""

    vm: VmConfig = VmConfig()
    units: tuple[UnitConfig, ...]
    endpoints: tuple[EndpointConfig, ...] = ()
