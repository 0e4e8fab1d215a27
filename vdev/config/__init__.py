"""The user's YAML: `schema` is its shape, `checks`, `boot` and `isolation` its rules, `text` its spelling, `load` reads
it, `change` is about endpoints that come and go."""

from vdev.config.boot import NONE, boot_kernel
from vdev.config.change import endpoint_named, slots_of, with_endpoint, without_endpoint
from vdev.config.isolation import UnitPolicy, isolation_line, unit_policy
from vdev.config.load import config_from, config_warnings, load_config, load_plan, override_vm, parse_config, with_plan
from vdev.config.pasids import pasid_ranges
from vdev.config.schema import (
    ATTACHMENTS,
    KERNEL_NAMES,
    ROOT_PORT_SLOTS,
    SERIAL_SLOT,
    Attach,
    Bypass,
    Config,
    Dma,
    EndpointConfig,
    FaultsConfig,
    Isolation,
    Limits,
    PasidsConfig,
    Reserved,
    SlotConfig,
    SocketsConfig,
    TraceConfig,
    UnitConfig,
    VmConfig,
)
from vdev.config.text import format_bdf, parse_bdf, parse_size

__all__ = [
    "ATTACHMENTS", "KERNEL_NAMES", "NONE", "ROOT_PORT_SLOTS", "SERIAL_SLOT", "Attach", "Bypass", "Config", "Dma",
    "EndpointConfig", "FaultsConfig", "Isolation", "Limits", "PasidsConfig", "Reserved", "SlotConfig", "SocketsConfig",
    "TraceConfig", "UnitConfig", "UnitPolicy", "VmConfig", "boot_kernel", "config_from", "config_warnings",
    "endpoint_named", "format_bdf", "isolation_line", "load_config", "load_plan", "override_vm", "parse_bdf",
    "parse_config", "parse_size", "pasid_ranges", "slots_of", "unit_policy", "with_endpoint", "with_plan",
    "without_endpoint",
]  # fmt: skip
