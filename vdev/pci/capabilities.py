"""The capabilities our functions have, each as a builder that returns a placed-anywhere `Capability`.

Standard ones go to `ConfigSpace.add_capability`, extended ones to `add_extended`. What a control register lets a
driver set is limited by what the capability register next to it says.
"""

from __future__ import annotations

from vdev.pci.config_space import Capability, ConfigSpace, Field
from vdev.wire import pci


def pcie_endpoint() -> Capability:
    """PCI Express capability, version 2, of an endpoint with function-level reset and one end-to-end TLP prefix.

    The FLR bit is stored for a moment so that the function's watcher sees it; the watcher clears it.
    """
    return Capability(
        pci.CapId.PCIE,
        pci.PCIE_NBYTES,
        (
            Field(0x02, 2, pci.PCIE_VERSION | pci.PCIE_TYPE_ENDPOINT << 4),
            Field(pci.DEVCAP, 4, pci.DEVCAP_EXTENDED_TAG | pci.DEVCAP_ROLE_BASED_ERRORS | pci.DEVCAP_FLR),
            Field(pci.DEVCTL, 2, pci.DEVCTL_POWER_ON, writable=pci.DEVCTL_WRITABLE | pci.DEVCTL_FLR),
            Field(pci.DEVSTA, 2, w1c=pci.DEVSTA_ERRORS),
            Field(pci.LNKCAP, 4, pci.LINK_2_5GT_X1),
            Field(pci.LNKCTL, 2, writable=pci.LNKCTL_WRITABLE),
            Field(pci.LNKSTA, 2, pci.LINK_2_5GT_X1),
            Field(
                pci.DEVCAP2,
                4,
                pci.DEVCAP2_TIMEOUT_DISABLE | pci.DEVCAP2_END_TO_END_PREFIX | pci.DEVCAP2_ONE_PREFIX,
            ),
            Field(pci.DEVCTL2, 2, writable=pci.DEVCTL2_WRITABLE),
            Field(pci.LNKCAP2, 4, pci.LNKCAP2_2_5GT),
            Field(pci.LNKCTL2, 2, 1, writable=pci.LNKCTL2_SPEED),
        ),
    )


def msix(vectors: int, table: tuple[int, int], pba: tuple[int, int]) -> Capability:
    """MSI-X; `table` and `pba` are (BAR index, offset), the offsets multiples of 8."""
    return Capability(
        pci.CapId.MSIX,
        pci.MsixCapability.layout.size,
        (
            Field(pci.MSIX_CONTROL, 2, vectors - 1, writable=pci.MSIX_ENABLE | pci.MSIX_FUNCTION_MASK),
            Field(0x04, 4, table[1] | table[0]),
            Field(0x08, 4, pba[1] | pba[0]),
        ),
    )


def vendor(body: bytes, writable: bytes = b"") -> Capability:
    """A vendor-specific capability; `body` is what follows the id and next bytes, `writable` its mask."""
    mask = int.from_bytes(writable, "little")
    fields = (Field(2, len(body), int.from_bytes(body, "little"), writable=mask),)
    return Capability(pci.CapId.VENDOR, 2 + len(body), fields)


def aer() -> Capability:
    """Advanced Error Reporting: statuses are write-1-to-clear and, as masks and severity, survive an FLR."""
    return Capability(
        pci.ExtCapId.AER,
        pci.AER_NBYTES,
        (
            Field(pci.AER_UNCORRECTABLE_STATUS, 4, w1c=pci.AER_UNCORRECTABLE_BITS, sticky=True),
            Field(pci.AER_UNCORRECTABLE_MASK, 4, writable=pci.AER_UNCORRECTABLE_BITS, sticky=True),
            Field(
                pci.AER_UNCORRECTABLE_SEVERITY,
                4,
                pci.AER_SEVERITY_POWER_ON,
                writable=pci.AER_UNCORRECTABLE_BITS,
                sticky=True,
            ),
            Field(pci.AER_CORRECTABLE_STATUS, 4, w1c=pci.AER_CORRECTABLE_BITS, sticky=True),
            Field(
                pci.AER_CORRECTABLE_MASK,
                4,
                pci.AER_CORRECTABLE_MASK_POWER_ON,
                writable=pci.AER_CORRECTABLE_BITS,
                sticky=True,
            ),
            Field(pci.AER_CONTROL, 4, sticky=True),
            Field(0x1C, 16, sticky=True),  # header log
            Field(0x38, 16, sticky=True),  # TLP prefix log
        ),
        version=2,
    )


def ats(queue_depth: int = 0) -> Capability:
    """Address Translation Services; `queue_depth` 0 means 32 invalidations. Untranslated requests are page aligned."""
    return Capability(
        pci.ExtCapId.ATS,
        pci.ATS_NBYTES,
        (
            Field(pci.ATS_CAPABILITY, 2, queue_depth | pci.ATS_PAGE_ALIGNED),
            Field(pci.ATS_CONTROL, 2, writable=pci.ATS_ENABLE | pci.ATS_STU),
        ),
    )


def pri(capacity: int = 32, *, response_pasid: bool = True) -> Capability:
    """Page Request Interface with room for `capacity` outstanding requests."""
    required = pci.PRI_RESPONSE_PASID_REQUIRED if response_pasid else 0
    return Capability(
        pci.ExtCapId.PRI,
        pci.PRI_NBYTES,
        (
            Field(pci.PRI_CONTROL, 2, writable=pci.PRI_ENABLE | pci.PRI_RESET, on_write=_pri_control),
            Field(
                pci.PRI_STATUS,
                2,
                pci.PRI_STOPPED | required,
                w1c=pci.PRI_RESPONSE_FAILURE | pci.PRI_UNEXPECTED_GROUP,
            ),
            Field(pci.PRI_CAPACITY, 4, capacity),
            Field(pci.PRI_ALLOCATION, 4, writable=0xFFFFFFFF),
        ),
    )


def pasid(width: int = pci.PASID_WIDTH_MAX, *, execute: bool = False, privileged: bool = False) -> Capability:
    """PASID of `width` bits; the execute and privileged enables are writable only where offered."""
    if not 1 <= width <= pci.PASID_WIDTH_MAX:
        raise ValueError(f"PASID width {width} is not within 1..{pci.PASID_WIDTH_MAX}")
    rights = (pci.PASID_EXECUTE if execute else 0) | (pci.PASID_PRIVILEGED if privileged else 0)
    return Capability(
        pci.ExtCapId.PASID,
        pci.PASID_NBYTES,
        (
            Field(pci.PASID_CAPABILITY, 2, width << pci.PASID_WIDTH_SHIFT | rights),
            Field(pci.PASID_CONTROL, 2, writable=pci.PASID_ENABLE | rights),
        ),
    )


def acs(
    controls: int = pci.ACS_REQUEST_REDIRECT | pci.ACS_COMPLETION_REDIRECT | pci.ACS_DIRECT_TRANSLATED,
) -> Capability:
    """Access Control Services; every control offered is writable."""
    fields = (Field(pci.ACS_CAPABILITY, 2, controls), Field(pci.ACS_CONTROL, 2, writable=controls))
    return Capability(pci.ExtCapId.ACS, pci.ACS_NBYTES, fields)


def _pri_control(config: ConfigSpace, base: int, before: int, after: int) -> None:
    """Reset acts only while the interface is disabled and reads 0; Stopped follows Enable.

    Nothing is outstanding yet, so a disabled interface has stopped at once: Linux refuses to enable PRI otherwise.
    """
    status = config.get(base + pci.PRI_STATUS, 2)
    if after & pci.PRI_RESET and not before & pci.PRI_ENABLE:
        status &= ~(pci.PRI_RESPONSE_FAILURE | pci.PRI_UNEXPECTED_GROUP)
    enabled = after & pci.PRI_ENABLE
    status = status & ~pci.PRI_STOPPED if enabled else status | pci.PRI_STOPPED
    config.set(base + pci.PRI_CONTROL, 2, enabled)
    config.set(base + pci.PRI_STATUS, 2, status)
