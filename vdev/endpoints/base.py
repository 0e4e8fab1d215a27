"""What the app and an endpoint model agree on, and how a model reads its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from vdev.errors import ConfigError
from vdev.events import Trace
from vdev.functions.base import Worker
from vdev.functions.dma import DmaDoor
from vdev.pci.base import PciFunction
from vdev.pci.function import Function
from vdev.virtio.ordering import Ordering

OpenDoor = Callable[[PciFunction], DmaDoor]  # the app knows the unit and the endpoint id; the model asks once
Wake = Callable[[Worker], None]
WakeAt = Callable[[Worker, int], None]  # at a time of the clock `run_slice` is given, in ns; the last one counts
Entropy = Callable[[int], bytes]  # so many random bytes
OptionValue = int | str | bool


@dataclass(frozen=True, slots=True)
class Bay:
    """What a model may use of the machine around it: the place it is plugged into."""

    open_door: OpenDoor
    wake: Wake
    wake_at: WakeAt  # a reset of the function forgets the time
    ordering: Ordering  # the host's fence
    entropy: Callable[[int | None], Entropy]  # opens a source: the host's generator (None) or that of a seed


_SUFFIXES = {"K": 10, "M": 20, "G": 30}


class Endpoint(Function, Worker, Protocol):
    """A `PciFunction` that runs in slices."""

    was_reset: Callable[[], None]  # set by the app: called after every reset
    was_device_reset: Callable[[], None]  # set by the machine: called after those that QEMU asked for
    was_sized: Callable[[], None]  # set by the machine: called when the guest asks for the size of a BAR
    trace: Trace | None  # set while somebody traces
    translate_message: Callable[[int], int | None]  # set by the machine: where an MSI-X message leads; None: refused

    @property
    def pasid_control(self) -> int:
        """What of its PASID capability the guest's driver has enabled, as `wire.pci.PasidControl`."""

    @property
    def pasid_bits(self) -> int:
        """The width of its PASID capability; 0 for none."""

    @property
    def pasid_rights(self) -> int:
        """Which requests it can make with a PASID: PASID_EXECUTE, PASID_PRIVILEGED."""

    def on_kernel_pasid(self, pasid: int) -> None:
        """The host has attached `pasid` for what the guest's kernel maps for it; 0: it has none."""

    def keep_msix_table(self) -> None:
        """Keep the MSI-X table itself: QEMU can unplug the function then, and sends no message of it. Before QEMU
        connects."""

    def quiesce(self) -> None:
        """Stop all DMA because the IOMMU is about to be reset; nothing lands after this returns."""

    def freeze(self, frozen: bool) -> None:
        """Hold all DMA where it is (QMP `stop`), or let it go on; the guest notices nothing."""

    def retire(self) -> None:
        """It was unplugged and is never used again: let go of large memory."""

    def describe(self) -> dict[str, int | bool]:
        """State for queries: plain data."""


class EndpointModel(Protocol):
    """A class in `table.MODELS`."""

    @property
    def option_help(self) -> Mapping[str, str]:
        """Option key -> one line about it."""

    @property
    def in_linux(self) -> bool:
        """Whether Linux has a driver for it that binds by itself."""

    def __call__(self, name: str, bay: Bay, options: Mapping[str, OptionValue]) -> Endpoint:
        """Build the endpoint. ConfigError for options it does not know or take."""


class Options:
    """One endpoint's options, checked as they are read; every error names `endpoints[NAME].options.KEY`."""

    def __init__(self, name: str, given: Mapping[str, OptionValue], known: Mapping[str, str]) -> None:
        """Raises ConfigError for the first key that is not in `known` (key -> help)."""
        self._name = name
        self._given = given
        for key in given:
            if key not in known:
                raise self.error(key, "is not an option of this model", "known: " + ", ".join(sorted(known)))

    def error(self, key: str, problem: str, cure: str = "") -> ConfigError:
        """A ConfigError about option `key`, to be raised by the caller."""
        return ConfigError(f"endpoints[{self._name}].options.{key}", problem, cure)

    def text(self, key: str, default: str) -> str:
        """The option as a word."""
        value = self._given.get(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"{value!r} is not a word")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        """The option as true or false."""
        value = self._given.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"{value!r} is neither true nor false")
        return value

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """The option as a number in [low, high]."""
        value = self._given.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, f"{value!r} is not a number in {low}..{high}")
        return value

    def power_of_two_nbytes(self, key: str, default: int, low: int, high: int) -> int:
        """The option as a size: a number of bytes, or one with K, M or G; a power of two in [low, high]."""
        value = self._given.get(key, default)
        nbytes = _size(value) if isinstance(value, str) else value
        if nbytes is None or isinstance(nbytes, bool) or not low <= nbytes <= high or nbytes & (nbytes - 1):
            raise self.error(key, f"{value!r} is not a power of two in {low:#x}..{high:#x} bytes", "such as 1M")
        return nbytes


def _size(text: str) -> int | None:
    """`4096`, `64K`, `1M` as bytes; None for anything else."""
    shift = _SUFFIXES.get(text[-1:].upper(), 0)
    digits = text[:-1] if shift else text
    return int(digits) << shift if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
