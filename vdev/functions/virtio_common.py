"""The common configuration structure of virtio-pci: feature windows, queue registers and the status machine as data.

Guest-written throughout: what is out of range is ignored or reads back as refused, nothing raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vdev.virtio.device import VirtioDevice
from vdev.wire import virtio_pci as wire
from vdev.wire.virtio_pci import Status

# The status machine: each bit a driver may set, and the bits that must be there first. A write names the bits to
# have; what is not legal is not taken, and nothing but a reset takes bits away.
STATUS_NEEDS: tuple[tuple[Status, Status], ...] = (
    (Status.ACKNOWLEDGE, Status(0)),
    (Status.DRIVER, Status.ACKNOWLEDGE),
    (Status.FEATURES_OK, Status.ACKNOWLEDGE | Status.DRIVER),
    (Status.DRIVER_OK, Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK),
    (Status.FAILED, Status(0)),
)


@dataclass(slots=True)
class QueueRegisters:
    """What the driver wrote about one queue."""

    max_size: int
    size: int
    vector: int = wire.NO_VECTOR
    enabled: bool = False
    desc: int = 0
    driver: int = 0
    device: int = 0


class CommonConfig:
    """struct virtio_pci_common_cfg of one function, and what the driver wrote into it."""

    def __init__(
        self,
        device: VirtioDevice,
        vectors: int,
        *,
        start: Callable[[], None],
        reset: Callable[[], None],
        required_features: int = 0,
    ) -> None:
        """`start` is called when DRIVER_OK has been set, `reset` when the driver wrote status 0 (it calls `clear`).
        FEATURES_OK is refused without VERSION_1 and `required_features`."""
        self._device = device
        # A modern device has no legacy to fall back to.
        self._required = wire.F_VERSION_1 | required_features
        self._vectors = vectors
        self._start = start
        self.written: Callable[[str, int], None] | None = None  # told of every register a driver wrote
        self._reset = reset
        self.generation = 0  # never goes back: a driver may compare across a reset
        self.clear()

    def clear(self) -> None:
        """Values after a reset."""
        self.status = Status(0)
        self.config_vector = wire.NO_VECTOR
        self.queues = [QueueRegisters(size, size) for size in self._device.queue_sizes]
        self._device_feature_select = self._driver_feature_select = 0
        self._driver_features = 0
        self._queue_select = 0

    @property
    def accepted_features(self) -> int:
        """What was negotiated; 0 before FEATURES_OK."""
        return self._driver_features if self.status & Status.FEATURES_OK else 0

    def read(self, offset: int, nbytes: int) -> bytes:
        """Any width; short at the end of the structure."""
        return self._record().pack()[offset : offset + nbytes]

    @property
    def selected_queue(self) -> int:
        """Number of the queue the queue registers show."""
        return self._queue_select

    def _selected(self) -> QueueRegisters:
        """The selected queue; one of size 0 where there is none."""
        if self._queue_select < len(self.queues):
            return self.queues[self._queue_select]
        return QueueRegisters(0, 0)

    def _record(self) -> wire.CommonCfg:
        queue = self._selected()
        return wire.CommonCfg(
            device_feature_select=self._device_feature_select,
            device_feature=_window(self._device.offered_features, self._device_feature_select),
            driver_feature_select=self._driver_feature_select,
            driver_feature=_window(self._driver_features, self._driver_feature_select),
            config_msix_vector=self.config_vector,
            num_queues=len(self.queues),
            device_status=int(self.status),
            config_generation=self.generation,
            queue_select=self._queue_select,
            queue_size=queue.size,
            queue_msix_vector=queue.vector,
            queue_enable=int(queue.enabled),
            queue_notify_off=self._queue_select if queue.max_size else 0,
            queue_desc=queue.desc,
            queue_driver=queue.driver,
            queue_device=queue.device,
            queue_notif_config_data=0,  # NOTIF_CONFIG_DATA, RING_RESET and ADMIN_VQ are not offered
            queue_reset=0,
            admin_queue_index=0,
            admin_queue_num=0,
        )

    def write(self, offset: int, data: bytes) -> None:
        """Any width: a part of a register keeps the rest of it, what spans registers writes them in order."""
        stop = offset + len(data)
        for start, nbytes, name in wire.COMMON_WRITABLE:
            if start >= stop or start + nbytes <= offset:
                continue
            value = bytearray(getattr(self._record(), name).to_bytes(nbytes, "little"))
            for at in range(max(start, offset), min(start + nbytes, stop)):
                value[at - start] = data[at - offset]
            number = int.from_bytes(value, "little")
            _SETTERS[name](self, number)
            if self.written is not None:
                self.written(name, number)

    def _set_device_feature_select(self, value: int) -> None:
        self._device_feature_select = value

    def _set_driver_feature_select(self, value: int) -> None:
        self._driver_feature_select = value

    def _set_driver_feature(self, value: int) -> None:
        select = self._driver_feature_select
        if select < wire.FEATURE_WINDOWS and not self.status & Status.FEATURES_OK:
            self._driver_features &= ~(0xFFFFFFFF << 32 * select)
            self._driver_features |= value << 32 * select

    def _set_config_vector(self, value: int) -> None:
        self.config_vector = self._vector(value)

    def _set_queue_select(self, value: int) -> None:
        self._queue_select = value

    def _set_queue_size(self, value: int) -> None:
        queue = self._selected()
        if not queue.enabled and 0 < value <= queue.max_size and not value & (value - 1):
            queue.size = value

    def _set_queue_vector(self, value: int) -> None:
        self._selected().vector = self._vector(value)

    def _set_queue_enable(self, value: int) -> None:
        # A driver cannot disable a queue this way, nor enable one after DRIVER_OK (RING_RESET is not offered).
        if value == 1 and not self.status & Status.DRIVER_OK:
            self._selected().enabled = True

    def _set_queue_address(self, name: str, value: int) -> None:
        queue = self._selected()
        if not queue.enabled:
            setattr(queue, name, value)

    def _vector(self, value: int) -> int:
        """A vector that does not exist reads back as NO_VECTOR: the driver learns that it has none."""
        return value if value < self._vectors else wire.NO_VECTOR

    def _set_status(self, value: int) -> None:
        if value == 0:
            self._reset()
            return
        for bit, needs in STATUS_NEEDS:
            if not value & bit or self.status & bit:
                continue
            legal = self.status & needs == needs and not self.status & Status.FAILED
            if not legal or (bit is Status.FEATURES_OK and not self._features_fit()):
                continue
            self.status |= bit
            if bit is Status.DRIVER_OK:
                self._start()

    def _features_fit(self) -> bool:
        """Only offered features, and all required ones among them; then the device has its say."""
        given = self._driver_features
        if given & ~self._device.offered_features or self._required & ~given:
            return False
        return self._device.features_ok(given)


_SETTERS: dict[str, Callable[[CommonConfig, int], None]] = {
    "device_feature_select": CommonConfig._set_device_feature_select,
    "driver_feature_select": CommonConfig._set_driver_feature_select,
    "driver_feature": CommonConfig._set_driver_feature,
    "config_msix_vector": CommonConfig._set_config_vector,
    "device_status": CommonConfig._set_status,
    "queue_select": CommonConfig._set_queue_select,
    "queue_size": CommonConfig._set_queue_size,
    "queue_msix_vector": CommonConfig._set_queue_vector,
    "queue_enable": CommonConfig._set_queue_enable,
    "queue_desc": lambda function, value: function._set_queue_address("desc", value),
    "queue_driver": lambda function, value: function._set_queue_address("driver", value),
    "queue_device": lambda function, value: function._set_queue_address("device", value),
}


def _window(features: int, select: int) -> int:
    return features >> 32 * select & 0xFFFFFFFF if select < wire.FEATURE_WINDOWS else 0
