"""Errors as a function records them: Advanced Error Reporting and the Device Status of the PCI Express capability.

PCI Express Base Specification, "Advanced Error Reporting Extended Capability" and "Device Status Register". That a root
port is told is not here: that is a message on a link that QEMU has.
"""

from __future__ import annotations

from dataclasses import dataclass

from vdev.pci.config_space import ConfigSpace
from vdev.wire import pci


@dataclass(frozen=True, slots=True)
class Error:
    """`bit` of the correctable or of the uncorrectable status."""

    bit: int
    is_correctable: bool


ERRORS: dict[str, Error] = {
    "receiver": Error(0, True),
    "bad-tlp": Error(6, True),
    "bad-dllp": Error(7, True),
    "rollover": Error(8, True),
    "replay-timer": Error(12, True),
    "advisory-nonfatal": Error(13, True),
    "poisoned-tlp": Error(12, False),
    "completion-timeout": Error(14, False),
    "completer-abort": Error(15, False),
    "unexpected-completion": Error(16, False),
    "unsupported-request": Error(20, False),
}


def set_error(config: ConfigSpace, error: Error) -> bool:
    """Record `error`; False for a function without the capability. A mask keeps the message, not the status."""
    at = config.find(pci.ExtCapId.AER, extended=True)
    if at is None:
        return False
    register = at + _status(error)
    before = config.get(register, 4)
    if not error.is_correctable and not before:
        kept = config.get(at + pci.AER_CONTROL, 4) & ~pci.AER_FIRST_ERROR
        config.set(at + pci.AER_CONTROL, 4, kept | error.bit)
    config.set(register, 4, before | 1 << error.bit)
    _set_device_status(config, _device_bits(config, at, error), on=True)
    return True


def clear_error(config: ConfigSpace, error: Error) -> bool:
    """As a driver that writes 1 to what `set_error` set; whether it was still there."""
    at = config.find(pci.ExtCapId.AER, extended=True)
    if at is None:
        return False
    register = at + _status(error)
    before = config.get(register, 4)
    config.set(register, 4, before & ~(1 << error.bit))
    _set_device_status(config, _device_bits(config, at, error), on=False)
    return bool(before >> error.bit & 1)


def _status(error: Error) -> int:
    return pci.AER_CORRECTABLE_STATUS if error.is_correctable else pci.AER_UNCORRECTABLE_STATUS


def _device_bits(config: ConfigSpace, at: int, error: Error) -> int:
    if error.is_correctable:
        return pci.DEVSTA_CORRECTABLE
    is_fatal = config.get(at + pci.AER_UNCORRECTABLE_SEVERITY, 4) >> error.bit & 1
    bits = pci.DEVSTA_FATAL if is_fatal else pci.DEVSTA_NONFATAL
    return bits | (pci.DEVSTA_UNSUPPORTED if error is ERRORS["unsupported-request"] else 0)


def _set_device_status(config: ConfigSpace, bits: int, *, on: bool) -> None:
    at = config.find(pci.CapId.PCIE)
    if at is not None:
        before = config.get(at + pci.DEVSTA, 2)
        config.set(at + pci.DEVSTA, 2, before | bits if on else before & ~bits)
