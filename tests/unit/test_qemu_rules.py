"""Each rule about a QEMU command line: what breaks it, what it says, and what passes."""

from __future__ import annotations

import shlex

import pytest

from vdev.qemu.options import parse_command
from vdev.qemu.rules import check_command, check_version

RAM = "-object memory-backend-memfd,id=ram0,size=1G,share=on -machine q35,memory-backend=ram0"
IOMMU = "-device vfio-user-pci,id=iommu0,x-msg-timeout=30000"
TABLE = "-acpitable file=/v/viot.bin"
GOOD = f"qemu-system-x86_64 -m 1G {RAM} {IOMMU} {TABLE}"


def broken(text: str, *, whole: bool = True) -> list[str]:
    rules = check_command(parse_command(shlex.split(text)), whole=whole)
    assert all(rule.cure for rule in rules)
    return [f"{rule.thing}: {rule.problem}" for rule in rules]


def test_a_good_command_breaks_nothing() -> None:
    assert broken(GOOD) == []


@pytest.mark.parametrize(
    "device",
    [
        "vfio-user-pci,id=x", "vfio-user-pci,id=x,x-msg-timeout=5000", '\'{"driver": "vfio-user-pci", "id": "x"}\'',
        '\'{"driver": "vfio-user-pci", "id": "x", "x-msg-timeout": 29999}\'',
        "driver=vfio-user-pci,id=x,x-msg-timeout=0",
    ],
)  # fmt: skip
def test_a_short_time_out_is_named_with_its_device(device: str) -> None:
    (rule,) = broken(f"{GOOD} -device {device}")
    assert rule.startswith("vfio-user-pci x: ")
    assert "below 30000 ms a busy backend is cut off for good" in rule


def test_the_default_time_out_is_shown_where_none_is_given() -> None:
    (rule,) = broken(f"{GOOD} -device vfio-user-pci,id=x")
    assert "no x-msg-timeout, so 5000 ms" in rule


@pytest.mark.parametrize(
    "option",
    ["vfio-user-pci.x-msg-timeout=30000", "driver=vfio-user-pci,property=x-msg-timeout,value=60000"],
)
def test_a_time_out_given_for_all_of_them_counts(option: str) -> None:
    assert broken(f"{GOOD} -device vfio-user-pci,id=x -global {option}") == []


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("memory-backend-ram,id=b,size=1G", "no share=on, so the RAM is QEMU's alone"),
        ("memory-backend-file,id=b,mem-path=/f,size=1G", "no share=on, so the RAM is QEMU's alone"),
        ("memory-backend-memfd,id=b,size=1G,share=off", "share=off, so the RAM is QEMU's alone"),
        (
            '\'{"qom-type": "memory-backend-memfd", "id": "b", "share": false}\'',
            "share=False, so the RAM is QEMU's alone",
        ),
        ("memory-backend-memfd,id=b,size=1G,seal=off", "seal=off, so the RAM is not sealed"),
        ("memory-backend-file,id=b,mem-path=/f,size=1G,share=on", "a file cannot be sealed, so the RAM is not sealed"),
        ("memory-backend-shm,id=b,size=1G", "memory-backend-shm does not seal, so the RAM is not sealed"),
    ],
)
def test_ram_that_is_private_or_unsealed_is_named(backend: str, words: str) -> None:
    (rule,) = broken(f"{GOOD} -object {backend}")
    assert rule.startswith(f"memory-backend-{rule.split('-')[2].split()[0]} b: {words}")


def test_ram_without_a_backend_has_no_file() -> None:
    (rule,) = broken(f"qemu-system-x86_64 -m 1G -machine q35 {IOMMU} {TABLE}")
    assert rule == "-machine: no memory-backend, so guest RAM has no file and no DMA can reach it"


def test_a_backend_that_is_not_there_is_named() -> None:
    (rule,) = broken(f"qemu-system-x86_64 -machine q35,memory-backend=ram9 {IOMMU} {TABLE}")
    assert rule == "-machine: memory-backend=ram9 names no -object"


def test_ram_of_a_numa_node_is_ram_with_a_file() -> None:
    ram = "-object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem"
    assert broken(f"qemu-system-x86_64 -m 1G {ram} {IOMMU} {TABLE}") == []


def test_mem_path_is_private_ram() -> None:
    (rule,) = broken(f"qemu-system-x86_64 -m 1G -mem-path /hugepages {IOMMU} {TABLE}")
    assert rule == "-mem-path: /hugepages: RAM made by it is QEMU's alone (share=off)"


@pytest.mark.parametrize("key", ["reconnect", "reconnect-ms"])
def test_a_vhost_user_device_must_not_reconnect(key: str) -> None:
    device = "-device vhost-user-test-device-pci,chardev=c -chardev socket,id=c,path=/p"
    other = f"-chardev socket,id=other,path=/q,{key}=1"

    (rule,) = broken(f"{GOOD} {device},{key}=1 {other}")

    assert rule == f"chardev c: {key}=1; a vhost-user device that reconnects makes QEMU abort"
    assert broken(f"{GOOD} {device},{key}=0 {other}") == []


@pytest.mark.parametrize("driver", ["virtio-iommu-pci", "intel-iommu", "amd-iommu", "virtio-iommu"])
def test_an_iommu_of_qemus_is_one_too_many(driver: str) -> None:
    assert broken(f"{GOOD} -device {driver},id=i") == [f"{driver} i: is an IOMMU of QEMU's, and vdev is the IOMMU"]


def test_so_is_an_iommu_of_the_machine() -> None:
    (rule,) = broken(f"{GOOD} -machine iommu=smmuv3")
    assert rule == "-machine: iommu=smmuv3 adds an IOMMU of QEMU's, and vdev is the IOMMU"


@pytest.mark.parametrize(("option", "value"), [("incoming", "defer"), ("loadvm", "snap1")])
def test_a_guest_that_comes_from_elsewhere_is_warned_of(option: str, value: str) -> None:
    (rule,) = broken(f"{GOOD} -{option} {value}")
    assert rule == f"-{option}: {value}: QEMU does not migrate vfio-user devices, and does not say so"


def test_a_guest_without_the_table_finds_no_iommu() -> None:
    (rule,) = broken(f"qemu-system-x86_64 {RAM} {IOMMU}")
    assert rule == "-acpitable: not given, so the guest is told of no IOMMU (VIOT)"


def test_a_vm_without_our_functions_is_none_of_ours() -> None:
    (rule,) = broken(f"qemu-system-x86_64 {RAM} {TABLE}")
    assert rule == "-device: there is no vfio-user-pci, so nothing of vdev is in this VM"


def test_what_a_part_of_a_command_leaves_out_breaks_nothing() -> None:
    assert broken("-device virtio-rng-pci", whole=False) == []
    assert len(broken("-device intel-iommu", whole=False)) == 1


def test_an_old_qemu_is_named_with_its_version() -> None:
    (rule,) = check_version((10, 1))
    assert rule.problem == "version 10.1 is older than 10.2 and has no usable vfio-user-pci"
    assert check_version((10, 2)) == check_version(None) == []
