"""virtio-rng: random bytes for the guest's kernel, from a backend, no more of them a period than the options say.

The period starts with its first byte. Used lengths are exact; a buffer longer than what may be given now gets what may
be given ("it MAY use less than the entire buffer length"). The specification forbids device-readable buffers here and
does not say what comes of them: they are ignored, counted, and a chain with nothing else is returned with length 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from vdev.endpoints.base import Bay, Entropy, Options, OptionValue
from vdev.endpoints.virtio import ENDPOINT_FEATURES, VirtioEndpoint
from vdev.errors import ConfigError
from vdev.functions.base import Progress, Worker
from vdev.functions.virtio_device import QueueDevice
from vdev.virtio.queue import Chain, Queue
from vdev.wire.virtio_pci import ENTROPY_DEVICE_ID

QUEUE_SIZES = (8,)  # the driver has one buffer under way; QEMU's virtio-rng has as many
CLASS_UNCLASSIFIED = 0x00FF00  # as QEMU's virtio-rng-pci: there is no class for entropy sources
SLICE_NBYTES = 1 << 16  # what one slice gives: a millisecond of SHA-256
UNLIMITED = (1 << 63) - 1
DEFAULT_PERIOD_MS = 1 << 16
NS_PER_MS = 1_000_000


class RngDevice(QueueDevice):
    """The virtio half."""

    device_id = ENTROPY_DEVICE_ID
    queue_sizes: tuple[int, ...] = QUEUE_SIZES

    def __init__(
        self,
        name: str,
        entropy: Entropy,
        *,
        wake: Callable[[Worker], None],
        wake_at: Callable[[int], None],
        max_bytes: int = UNLIMITED,
        period_ns: int = DEFAULT_PERIOD_MS * NS_PER_MS,
    ) -> None:
        """At most `max_bytes` in `period_ns`, across resets: a driver cannot buy more with one."""
        super().__init__(name, offered_features=ENDPOINT_FEATURES, wake=wake)
        self.given_nbytes = 0
        self.readable_parts = 0  # chains with what the driver must not put there
        self._entropy = entropy
        self._wake_at = wake_at
        self._max_bytes = max_bytes
        self._period_ns = period_ns
        self._period_stop_ns: int | None = None  # None: no byte was given since the last period
        self._left = max_bytes  # in this period
        self._now_ns = self._slice_left = 0

    def run_slice(self, now_ns: int) -> Progress:
        """Nothing while the period has no bytes left; the device is woken when it is over."""
        stop = self._period_stop_ns
        if stop is not None and now_ns >= stop:
            self._period_stop_ns, self._left = None, self._max_bytes
        if self._period_stop_ns is not None and not self._left:
            self._wake_at(self._period_stop_ns)
            return Progress.IDLE
        self._now_ns = now_ns
        self._slice_left = min(self._left, SLICE_NBYTES)
        return super().run_slice(now_ns)

    def take(self, ring: Queue, chain: Chain, index: int) -> bool:
        """Fill what may be filled now; False when this slice or period has no more to give."""
        self.readable_parts += bool(chain.readable_nbytes)
        nbytes = chain.write(self._entropy(min(chain.writable_nbytes, self._slice_left)))
        ring.push(chain, nbytes)
        if nbytes and self._period_stop_ns is None:
            self._period_stop_ns = self._now_ns + self._period_ns
        self.given_nbytes += nbytes
        self._left -= nbytes
        self._slice_left -= nbytes
        return self._slice_left > 0

    def describe(self) -> dict[str, int | bool]:
        """State for queries: plain data."""
        more = {"bytes": self.given_nbytes, "readable-parts": self.readable_parts}
        return {**super().describe(), **more}


class Rng(VirtioEndpoint):
    """The endpoint: options in, device on the function."""

    in_linux: ClassVar[bool] = True
    option_help: ClassVar[Mapping[str, str]] = {
        "source": "host (default), or seed:N for a stream that is the same in every run",
        "max_bytes": "most bytes a period (default: no limit)",
        "period": "length of the period in milliseconds (default 65536)",
    }

    def __init__(self, name: str, bay: Bay, options: Mapping[str, OptionValue]) -> None:
        """Raises ConfigError for a wrong option."""
        read = Options(name, options, self.option_help)
        device = RngDevice(
            name,
            bay.entropy(_seed(read)),
            wake=self.wake_device,
            wake_at=self.wake_device_at,
            max_bytes=read.integer("max_bytes", UNLIMITED, 1, UNLIMITED),
            period_ns=read.integer("period", DEFAULT_PERIOD_MS, 1, UNLIMITED // NS_PER_MS) * NS_PER_MS,
        )
        super().__init__(device, bay, class_code=CLASS_UNCLASSIFIED)


def _seed(read: Options) -> int | None:
    """The N of `source: seed:N`; None for the host's generator."""
    source = read.text("source", "host")
    if source == "host":
        return None
    word, _, number = source.partition(":")
    if word != "seed" or not (number.isascii() and number.isdigit()) or len(number) > 20:
        raise _bad_source(read, source)
    return int(number)


def _bad_source(read: Options, source: str) -> ConfigError:
    return read.error("source", f"{source!r} is neither host nor seed:N", "such as seed:1, N a decimal number")
