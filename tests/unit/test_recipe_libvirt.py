"""The libvirt domain in docs/recipes: what it hands to QEMU is what `vdev qemu-args` says, and has room for it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from vdev.config import load_config
from vdev.qemu.args import LIBVIRT_NAMESPACE, launcher_arguments

ROOT = Path(__file__).parents[2]
DOMAIN = ElementTree.parse(ROOT / "docs" / "recipes" / "libvirt" / "domain.xml").getroot()
RUNTIME_DIR = "/run/vdev/first-light"


def test_its_arguments_are_those_of_the_example() -> None:
    config = load_config(ROOT / "configs" / "first-light.yaml")
    arguments = [row.get("value") for row in DOMAIN.iter(f"{{{LIBVIRT_NAMESPACE}}}arg")]
    assert arguments == launcher_arguments(config, RUNTIME_DIR, machine=False)


def test_its_ram_is_a_shared_memfd_on_q35() -> None:
    backing = DOMAIN.find("memoryBacking")
    assert backing is not None
    assert [(child.tag, dict(child.attrib)) for child in backing] == [
        ("source", {"type": "memfd"}), ("access", {"mode": "shared"}),
    ]  # fmt: skip
    machine = DOMAIN.find("os/type")
    assert machine is not None
    assert machine.get("machine") == "q35"


def test_what_libvirt_places_itself_is_above_our_slots() -> None:
    slots = [int(str(address.get("slot")), 16) for address in DOMAIN.iter("address") if address.get("type") == "pci"]
    assert slots
    assert all(0x18 <= slot <= 0x1E for slot in slots)


def test_every_device_with_a_slot_has_one_written_down() -> None:
    # What has no address gets the lowest free slot from libvirt, which does not see ours.
    needy = {"interface", "disk", "video", "sound", "rng", "hostdev", "vsock"}
    devices = DOMAIN.find("devices")
    assert devices is not None
    controllers = [c for c in devices.iter("controller") if (c.get("type"), c.get("model")) not in
                   {("pci", "pcie-root"), ("usb", "none")}]  # fmt: skip
    balloon = devices.find("memballoon")
    assert balloon is not None
    assert balloon.get("model") == "none"
    assert all(device.find("address") is not None for device in [*controllers, *(d for d in devices if d.tag in needy)])
