"""What a driver's writes to a virtio function mean, in words: for the trace, so called only while there is one."""

from __future__ import annotations

from vdev.events import RegisterWritten, flag_words
from vdev.functions.virtio_common import CommonConfig
from vdev.wire import viommu, viommu_pasid, virtio_pci
from vdev.wire.virtio_pci import Status

# By virtio device id. A device that is not here has no names of its own.
FEATURE_NAMES: dict[int, dict[int, str]] = {viommu.DEVICE_ID: {**viommu.FEATURE_NAMES, **viommu_pasid.FEATURE_NAMES}}
CONFIG_NAMES: dict[int, dict[int, str]] = {viommu.DEVICE_ID: {viommu.BYPASS_OFFSET: "bypass"}}
QUEUE_NAMES: dict[int, tuple[str, ...]] = {
    viommu.DEVICE_ID: ("requests", "events"),
    virtio_pci.ENTROPY_DEVICE_ID: ("requests",),
}


def common_written(function: str, device_id: int, common: CommonConfig, register: str, value: int) -> list[object]:
    """The events of one write to the common configuration; none for what only selects or is looked at later."""
    if register == "device_status" and value:  # status 0 is a reset, and traced as one
        events: list[object] = []
        if common.status & Status.FEATURES_OK and not value & Status.DRIVER_OK:
            features = common.accepted_features
            words = feature_words(device_id, features)
            events.append(RegisterWritten(function, "driver_features", features, words))
        events.append(RegisterWritten(function, register, value, _status_words(value, common.status)))
        return events
    if register == "queue_enable":
        return [RegisterWritten(function, register, value, _queue_words(device_id, common))]
    if register == "config_msix_vector":
        granted = common.config_vector
        words = "" if granted == value else "there is no such vector"
        return [RegisterWritten(function, register, value, "no vector" if value == virtio_pci.NO_VECTOR else words)]
    return []


def config_written(function: str, device_id: int, offset: int, data: bytes, now: bytes) -> RegisterWritten:
    """The event of one write to the device configuration; `now` is what those bytes read back as."""
    name = CONFIG_NAMES.get(device_id, {}).get(offset, f"config[{offset:#x}]")
    words = "" if data == now else f"ignored, reads back {int.from_bytes(now, 'little'):#x}"
    return RegisterWritten(function, name, int.from_bytes(data, "little"), words)


def config_rewritten(
    function: str, device_id: int, offset: int, data: bytes, before: bytes, now: bytes
) -> list[object]:
    """The event of a write that carries bytes nobody changed along; none when it changes nothing at all."""
    changed = [at for at, (old, new) in enumerate(zip(before, data, strict=True)) if old != new]
    if not changed:
        return []
    start, stop = changed[0], changed[-1] + 1
    return [config_written(function, device_id, offset + start, data[start:stop], now[start:stop])]


def notified(function: str, device_id: int, queue: int) -> RegisterWritten:
    """The event of one doorbell."""
    return RegisterWritten(function, "notify", queue, queue_name(device_id, queue))


def feature_words(device_id: int, features: int) -> str:
    """`VERSION_1|EVENT_IDX|MAP_UNMAP`; a bit without a name as its number."""
    names = {**FEATURE_NAMES.get(device_id, {}), **virtio_pci.FEATURE_NAMES}
    bits = [bit for bit in range(features.bit_length()) if features >> bit & 1]
    return "|".join(names.get(1 << bit, f"bit {bit}") for bit in bits) or "none"


def _status_words(wanted: int, now: Status) -> str:
    refused = Status(wanted) & ~now
    words = flag_words(now)
    return f"{words} ({flag_words(refused)} not taken)" if refused else words


def queue_name(device_id: int, queue: int) -> str:
    """`queue 0 (requests)`; the number alone where it has no name."""
    names = QUEUE_NAMES.get(device_id, ())
    return f"queue {queue} ({names[queue]})" if queue < len(names) else f"queue {queue}"


def ring_words(device_id: int, number: int, size: int, desc: int, driver: int, device: int) -> str:
    """A ring's name, size and addresses."""
    places = f"desc {desc:#x}, driver {driver:#x}, device {device:#x}"
    return f"{queue_name(device_id, number)}: {size} entries, {places}"


def _queue_words(device_id: int, common: CommonConfig) -> str:
    number = common.selected_queue
    if number >= len(common.queues):
        return f"there is no queue {number}"
    queue = common.queues[number]
    if not queue.enabled:
        return f"{queue_name(device_id, number)} stays off"
    vector = "no vector" if queue.vector == virtio_pci.NO_VECTOR else f"vector {queue.vector}"
    return f"{ring_words(device_id, number, queue.size, queue.desc, queue.driver, queue.device)}, {vector}"
