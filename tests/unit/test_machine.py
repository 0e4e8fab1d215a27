"""QEMU's arguments and the VIOT table, read back by the rules their readers follow."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from struct import unpack_from
from typing import Any

import pytest

from vdev.config import Config, override_vm, parse_config
from vdev.errors import ConfigError
from vdev.qemu.machine import (
    Disk,
    MachinePaths,
    expected_functions,
    kernel_append,
    qemu_arguments,
    socket_path,
    viot_table,
)

TEXT = """
vm: {name: test, memory: 1G, cpus: 2, append: "quiet x=1", extra_args: [-S]}
units:
  - {name: iommu0, bdf: 00:10.0}
  - {name: iommu1, bdf: 00:11.0}
endpoints:
  - {name: two, unit: iommu1, bdf: 02:00.0}
  - {name: one, unit: iommu0, bdf: 01:00.0}
  - {name: flat, unit: iommu1, bdf: 00:1e.0}
"""


@pytest.fixture
def config() -> Config:
    return parse_config(TEXT, "x.yaml")


def arguments(config: Config, initrd: str | None = "/boot/initrd") -> list[str]:
    return qemu_arguments(config, MachinePaths.in_directory("/run/v", "/boot/vmlinuz", initrd), "tcg")


def device(value: str) -> dict[str, Any]:
    """A -device in JSON or in QEMU's own syntax, where every value is text."""
    if value.startswith("{"):
        parsed = json.loads(value)
        assert isinstance(parsed, dict)
        return parsed
    driver, *words = value.split(",")
    return {"driver": driver, **dict(word.split("=", 1) for word in words)}


def devices(argv: list[str], driver: str) -> list[dict[str, Any]]:
    found = [device(value) for option, value in pairwise(argv) if option == "-device"]
    return [device for device in found if device["driver"] == driver]


def option(argv: list[str], name: str) -> str:
    assert argv.count(name) == 1
    return argv[argv.index(name) + 1]


def test_viot_is_a_well_formed_acpi_table(config: Config) -> None:
    table = viot_table(config)
    assert table[:4] == b"VIOT"
    assert unpack_from("<I", table, 4)[0] == len(table)
    assert table[8] == 0  # revision
    assert sum(table) % 256 == 0


def test_viot_has_a_node_for_each_unit_and_a_range_for_each_endpoint(config: Config) -> None:
    table = viot_table(config)
    count, offset = unpack_from("<HH", table, 36)
    units: dict[int, int] = {}
    ranges: list[tuple[int, int, int, int]] = []
    for _ in range(count):
        kind, length = unpack_from("<BxH", table, offset)
        if kind == 3:
            segment, units[offset] = unpack_from("<HH", table, offset + 4)
            assert (length, segment) == (16, 0)
        else:
            start, first_segment, last_segment, first, last, output = unpack_from("<IHHHHH", table, offset + 4)
            assert (kind, length, first_segment, last_segment) == (1, 24, 0, 0)
            ranges.append((start, first, last, output))
        offset += length
    assert offset == len(table)
    assert list(units.values()) == [0x80, 0x88]
    assert [(start, first, last, units[output]) for start, first, last, output in ranges] == [
        (0x200, 0x200, 0x200, 0x88),
        (0x100, 0x100, 0x100, 0x80),
        (0xF0, 0xF0, 0xF0, 0x88),
    ]


def test_every_function_is_expected_at_its_configured_address(config: Config) -> None:
    assert expected_functions(config) == {"iommu0": 0x80, "iommu1": 0x88, "two": 0x200, "one": 0x100, "flat": 0xF0}


def test_ram_is_a_shared_memfd(config: Config) -> None:
    argv = arguments(config)
    ram = json.loads(option(argv, "-object"))
    assert ram == {"qom-type": "memory-backend-memfd", "id": "vdev.ram", "size": 1 << 30, "share": True}
    assert option(argv, "-machine") == "q35,memory-backend=vdev.ram"
    assert option(argv, "-m") == "size=1024M"


def test_root_ports_rise_with_their_buses(config: Config) -> None:
    ports = devices(arguments(config), "pcie-root-port")
    assert [(port["id"], port["addr"], port["multifunction"]) for port in ports] == [
        ("vdev.port1", "02.0", "off"),
        ("vdev.port2", "03.0", "off"),
    ]


def test_functions_are_vfio_user_devices_with_a_patient_client(config: Config) -> None:
    functions = {device["id"]: device for device in devices(arguments(config), "vfio-user-pci")}
    assert {name: (device["bus"], device["addr"]) for name, device in functions.items()} == {
        "iommu0": ("pcie.0", "10.0"),
        "iommu1": ("pcie.0", "11.0"),
        "two": ("vdev.port2", "00.0"),
        "one": ("vdev.port1", "00.0"),
        "flat": ("pcie.0", "1e.0"),
    }
    assert functions["one"]["socket"] == {"type": "unix", "path": "/run/v/one.sock"}
    assert {device["x-msg-timeout"] for device in functions.values()} == {30000}


def test_many_endpoints_share_the_slots_of_the_root_ports() -> None:
    endpoints = "".join(f"- {{name: e{bus}, bdf: '{bus:02x}:00.0'}}\n" for bus in range(1, 113))
    config = parse_config(f"units: [{{name: iommu0}}]\nendpoints:\n{endpoints}", "x.yaml")
    ports = devices(arguments(config), "pcie-root-port")
    addresses = [tuple(int(part, 16) for part in port["addr"].split(".")) for port in ports]
    assert addresses == sorted(set(addresses))
    assert (addresses[0], addresses[-1]) == ((2, 0), (15, 7))
    assert all(port["multifunction"] for port in ports)


def test_the_kernels_words_end_with_the_users(config: Config) -> None:
    append = option(arguments(config), "-append")
    assert append == kernel_append(config)
    assert append.startswith("console=ttyS0 panic=-1 ")
    assert "vfio_iommu_type1.allow_unsafe_interrupts=1" in append
    assert append.endswith(" quiet x=1")


def test_the_users_arguments_come_last(config: Config) -> None:
    assert arguments(config)[-1] == "-S"


def test_there_is_no_initrd_without_one(config: Config) -> None:
    assert "-initrd" not in arguments(config, initrd=None)


def test_there_is_a_monitor_for_us_and_one_for_the_user(config: Config) -> None:
    argv = arguments(config)
    monitors = [value for name, value in pairwise(argv) if name == "-qmp"]
    assert monitors == ["unix:/run/v/qmp.sock,server=on,wait=off", "unix:/run/v/qemu-monitor.sock,server=on,wait=off"]


def test_the_payloads_port_has_its_name(config: Config) -> None:
    argv = arguments(config)
    (port,) = devices(argv, "virtserialport")
    (serial,) = devices(argv, "virtio-serial-pci")
    assert port["name"] == "org.vdev.agent"
    assert (serial["addr"], serial["disable-legacy"]) == ("01.0", "on")


def test_a_comma_in_a_path_does_not_end_an_option(config: Config) -> None:
    argv = qemu_arguments(config, MachinePaths.in_directory("/run/a,b", "k", None), "kvm")
    assert option(argv, "-acpitable") == "file=/run/a,,b/viot.bin"
    assert "socket,id=vdev.channel,path=/run/a,,b/channel.sock,server=on,wait=off" in argv


def test_a_socket_path_that_cannot_be_bound_is_refused() -> None:
    with pytest.raises(ConfigError, match="107 bytes"):
        socket_path("/" + "x" * 100, "iommu0")


def test_a_disk_is_qemus_own_at_a_fixed_place_and_boots_by_firmware(config: Config) -> None:
    paths = replace(MachinePaths.in_directory("/run/v", None, None), disk=Disk("/a,b.img", "qcow2", False))
    argv = qemu_arguments(config, paths, "tcg")

    (disk,), (serial,) = devices(argv, "virtio-blk-pci"), devices(argv, "virtio-serial-pci")
    assert (disk["addr"], disk["bootindex"]) == ("01.1", "1")
    assert (serial["addr"], serial["multifunction"]) == ("01.0", "on")
    assert option(argv, "-drive") == "file=/a,,b.img,if=none,id=vdev.image,format=qcow2,snapshot=on"
    assert not {"-kernel", "-append", "-initrd", "-bios"} & set(argv)
    assert "graphics=off" in option(argv, "-machine")


def test_a_writable_disk_and_firmware_of_ones_own_are_given_as_they_are(config: Config) -> None:
    paths = replace(
        MachinePaths.in_directory("/run/v", "k", None), disk=Disk("/d", "raw", True), firmware="/fw/OVMF.fd"
    )
    argv = qemu_arguments(config, paths, "tcg")

    assert "snapshot" not in option(argv, "-drive")
    assert option(argv, "-bios") == "/fw/OVMF.fd"
    assert option(argv, "-kernel") == "k"


def test_our_devices_come_before_any_of_the_users_and_those_in_json_last(config: Config) -> None:
    """QEMU makes those in its own syntax first, a device of the user without an address among them."""
    config = override_vm(config, {"extra_args": ["-device", "virtio-rng-pci"]})
    given = [value for name, value in pairwise(arguments(config)) if name == "-device" and value[0] != "{"]

    assert given[-1] == "virtio-rng-pci"
    assert [value.split(",")[0] for value in given[:-1]] == [
        "virtio-serial-pci",
        "virtserialport",
        *["pcie-root-port"] * 2,
    ]


def test_a_unit_over_vhost_user_is_qemus_generic_device_and_comes_after_everything() -> None:
    config = parse_config(
        "units: [{name: one, attach: vhost-user}, {name: two, bdf: '00:11.0'}]\nendpoints: [{name: accel0, unit: one}]",
        "x",
    )
    argv = qemu_arguments(config, MachinePaths.in_directory("/run/a,b", "k", None), "tcg")

    (unit,) = devices(argv, "vhost-user-test-device-pci")
    assert (unit["id"], unit["bus"], unit["addr"], unit["chardev"]) == ("one", "pcie.0", "10.0", "vdev.one")
    assert (unit["virtio-id"], unit["num_vqs"], unit["vq_size"], unit["config_size"]) == (23, 2, 256, 64)
    assert "socket,id=vdev.one,path=/run/a,,b/one.sock" in argv
    ids = [json.loads(value)["id"] for name, value in pairwise(argv) if name == "-device" and '"id"' in value]
    assert ids[-1] == "one"
    assert [function["id"] for function in devices(argv, "vfio-user-pci")] == ["two", "accel0"]
    assert set(expected_functions(config)) == {"one", "two", "accel0"}
