"""What a QEMU command line must and must not say for vdev to work behind it. Pure; `vdev doctor` prints it.

A launcher of somebody else's makes the command line, and most of what is wrong with it shows late: as a backend cut
off after five seconds, or as DMA that reads zeros. Every rule here is one function of `RULES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vdev.qemu.options import CommandLine, Option, is_on

MESSAGE_TIMEOUT_MS = 30_000
DEFAULT_TIMEOUT_MS = 5_000  # QEMU's
NEEDED_VERSION = (10, 2)
DEVICE = "vfio-user-pci"
_CURE_RAM = "-object memory-backend-memfd,id=ram0,size=SIZE,share=on -machine memory-backend=ram0"
_CURE_LIBVIRT = "in libvirt <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
_IOMMUS = re.compile(r"(?:virtio-iommu|intel-iommu|amd-iommu|arm-smmuv3)(?:-.*)?", re.ASCII)
_PRIVATE_BY_DEFAULT = frozenset({"memory-backend-ram", "memory-backend-file"})


@dataclass(frozen=True, slots=True)
class RuleBroken:
    """One rule that is broken: the thing, the rule with the value found, and what to do."""

    thing: str
    problem: str
    cure: str


def check_command(command: CommandLine, *, whole: bool = True) -> list[RuleBroken]:
    """Every rule `command` breaks. `whole` is False for a part of a command line, where absence says nothing."""
    rules = (*RULES, *WHOLE_RULES) if whole else RULES
    return [warning for rule in rules for warning in rule(command)]


def check_version(version: tuple[int, int] | None) -> list[RuleBroken]:
    """QEMU before 10.2 has no usable vfio-user client; None, a version that is not known, breaks nothing."""
    if version is None or version >= NEEDED_VERSION:
        return []
    found, needed = (".".join(map(str, numbers)) for numbers in (version, NEEDED_VERSION))
    cure = "use a newer QEMU; vdev fetches one with: python -m vdev.parts fetch"
    return [RuleBroken("QEMU", f"version {found} is older than {needed} and has no usable {DEVICE}", cure)]


def _timeouts(command: CommandLine) -> Iterator[RuleBroken]:
    given = _globals(command, DEVICE, "x-msg-timeout")
    for device in command.named("device"):
        if device.kind != DEVICE:
            continue
        value = device.properties.get("x-msg-timeout", given)
        shown = f"x-msg-timeout is {value}" if value is not None else f"no x-msg-timeout, so {DEFAULT_TIMEOUT_MS} ms"
        if _number(value, DEFAULT_TIMEOUT_MS) < MESSAGE_TIMEOUT_MS:
            problem = f"{shown}; below {MESSAGE_TIMEOUT_MS} ms a busy backend is cut off for good"
            yield RuleBroken(device.label, problem, f"add x-msg-timeout={MESSAGE_TIMEOUT_MS}")


def _globals(command: CommandLine, driver: str, key: str) -> object:
    for option in command.named("global"):
        if option.properties.get("driver") == driver and option.properties.get("property") == key:
            return option.properties.get("value")
        if f"{driver}.{key}" in option.properties:
            return option.properties[f"{driver}.{key}"]
    return None


def _number(value: object, default: int) -> int:
    if value is None:
        return default
    try:
        return int(str(value), 0)
    except ValueError:
        return 0


def _backends(command: CommandLine) -> Iterator[RuleBroken]:
    for backend in command.named("object"):
        if not backend.kind.startswith("memory-backend-"):
            continue
        private = not is_on(backend.properties.get("share"), backend.kind not in _PRIVATE_BY_DEFAULT)
        if private:
            shown = f"share={backend.properties['share']}" if "share" in backend.properties else "no share=on"
            problem = f"{shown}, so the RAM is QEMU's alone and DMA of vdev would not be seen by the guest"
            yield RuleBroken(backend.label, problem, f"{_CURE_RAM}; {_CURE_LIBVIRT}")
        elif unsealed := _unsealed(backend):
            problem = f"{unsealed}, so the RAM is not sealed: if its file shrinks, vdev dies, and QEMU after it"
            yield RuleBroken(
                backend.label, problem, f"use memory-backend-memfd with seal=on, its default; {_CURE_LIBVIRT}"
            )


def _unsealed(backend: Option) -> str:
    if backend.kind != "memory-backend-memfd":
        return "a file cannot be sealed" if backend.kind == "memory-backend-file" else f"{backend.kind} does not seal"
    return "" if is_on(backend.properties.get("seal"), True) else f"seal={backend.properties['seal']}"


def _mem_path(command: CommandLine) -> Iterator[RuleBroken]:
    for option in command.named("mem-path"):
        problem = f"{option.value}: RAM made by it is QEMU's alone (share=off)"
        yield RuleBroken("-mem-path", problem, _CURE_RAM)


def _main_ram(command: CommandLine) -> Iterator[RuleBroken]:
    if command.named("mem-path") or any("memdev" in option.properties for option in command.named("numa")):
        return
    ids = [option.properties.get("id") for option in command.named("object")]
    backend = command.merged("machine").get("memory-backend")
    if backend is None:
        yield RuleBroken("-machine", "no memory-backend, so guest RAM has no file and no DMA can reach it", _CURE_RAM)
    elif backend not in ids:
        yield RuleBroken("-machine", f"memory-backend={backend} names no -object", f"give that id to one: {_CURE_RAM}")


def _reconnect(command: CommandLine) -> Iterator[RuleBroken]:
    used = {
        device.properties.get("chardev") for device in command.named("device") if device.kind.startswith("vhost-user-")
    }
    for chardev in command.named("chardev"):
        for key in ("reconnect", "reconnect-ms"):
            value = chardev.properties.get(key)
            if chardev.properties.get("id") in used and _number(value, 0) > 0:
                problem = f"{key}={value}; a vhost-user device that reconnects makes QEMU abort"
                yield RuleBroken(f"chardev {chardev.properties['id']}", problem, f"leave {key} out")


def _iommus(command: CommandLine) -> Iterator[RuleBroken]:
    for device in command.named("device"):
        if _IOMMUS.fullmatch(device.kind):
            yield RuleBroken(device.label, "is an IOMMU of QEMU's, and vdev is the IOMMU", "leave it out")
    iommu = command.merged("machine").get("iommu")
    if iommu not in (None, "none", "off", False):
        yield RuleBroken("-machine", f"iommu={iommu} adds an IOMMU of QEMU's, and vdev is the IOMMU", "leave it out")


def _incoming(command: CommandLine) -> Iterator[RuleBroken]:
    for option in command.named("incoming", "loadvm"):
        problem = f"{option.value or 'given'}: QEMU does not migrate vfio-user devices, and does not say so"
        yield RuleBroken(f"-{option.name}", problem, "start the guest anew; what vdev knows of it is not in that state")


def _viot(command: CommandLine) -> Iterator[RuleBroken]:
    if not command.named("acpitable"):
        problem = "not given, so the guest is told of no IOMMU (VIOT)"
        yield RuleBroken("-acpitable", problem, "add -acpitable file=DIR/viot.bin; vdev serve writes the file")


def _no_functions(command: CommandLine) -> Iterator[RuleBroken]:
    if not any(device.kind == DEVICE for device in command.named("device")):
        yield RuleBroken(
            "-device", f"there is no {DEVICE}, so nothing of vdev is in this VM", "see: vdev qemu-args CONFIG"
        )


Rule = Callable[[CommandLine], Iterator[RuleBroken]]
RULES: tuple[Rule, ...] = (_timeouts, _backends, _mem_path, _reconnect, _iommus, _incoming)
WHOLE_RULES: tuple[Rule, ...] = (_main_ram, _viot, _no_functions)
