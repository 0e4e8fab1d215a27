"""The machine that is saved without our functions, and restored with them: same layout, everything plugged in."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from qmp_bridge.plan import Options, Parts, make_plan
from vdev.config import Config, parse_config
from vdev.errors import ConfigError
from vdev.qemu.machine import MachinePaths
from vdev.qemu.restorable import late_units, restored_arguments, restored_functions, source_arguments

TEXT = """
vm: {name: test, memory: 256M, append: mine}
units:
  - {name: iommu0, bdf: 00:10.0}
  - {name: iommu1, bdf: 00:11.0}
endpoints:
  - {name: one, unit: iommu0, bdf: 01:00.0}
  - {name: two, unit: iommu1, bdf: 02:00.0}
"""
PATHS = MachinePaths.in_directory("/run/v", "/boot/vmlinuz", "/boot/initrd")
PARTS = Parts(("/q",), {}, "11.1.3", "/k", "/i", "tcg")


def machine(**attach: str) -> Config:
    config = parse_config(TEXT, "x.yaml")
    units = tuple(msgspec.structs.replace(unit, attach=attach.get(unit.name, "vfio-user")) for unit in config.units)
    return msgspec.structs.replace(config, units=units)


def devices(argv: list[str], driver: str) -> list[str]:
    return [value for option, value in pairwise(argv) if option == "-device" and driver in value]


def without_functions(argv: list[str]) -> list[str]:
    """The arguments but for our functions and the wait for state."""
    ours = devices(argv, "vfio-user-pci")
    return [word for word in argv if word not in (*ours, "-device", "-incoming", "defer")]


def test_the_saved_machine_has_no_function_of_ours_and_no_socket_of_one() -> None:
    argv = source_arguments(machine(), PATHS, "tcg")
    assert devices(argv, "user") == []
    assert not any("iommu0" in word or "/one" in word for word in argv)
    assert "-incoming" not in argv


@pytest.mark.parametrize("attach", [{}, {"iommu0": "vhost-user"}, {"iommu0": "vhost-user", "iommu1": "vhost-user"}])
def test_one_saved_guest_serves_every_attachment(attach: dict[str, str]) -> None:
    assert source_arguments(machine(**attach), PATHS, "tcg") == source_arguments(machine(), PATHS, "tcg")


@pytest.mark.parametrize("attach", [{}, {"iommu0": "vhost-user"}])
def test_the_restored_machine_has_the_same_ports_and_memory(attach: dict[str, str]) -> None:
    source, restored = source_arguments(machine(), PATHS, "tcg"), restored_arguments(machine(**attach), PATHS, "tcg")
    assert without_functions(restored) == without_functions(source)
    assert devices(restored, "pcie-root-port") == devices(source, "pcie-root-port") != []
    assert restored[-2:] == ["-incoming", "defer"]


def test_functions_over_vfio_user_are_there_from_the_start() -> None:
    found = devices(restored_arguments(machine(iommu1="vhost-user"), PATHS, "tcg"), "vfio-user-pci")
    assert [name for name in ("iommu0", "iommu1", "one", "two") if any(f"/{name}" in text for text in found)] == [
        "iommu0",
        "one",
        "two",
    ]


def test_a_unit_over_vhost_user_is_plugged_in_at_its_spare_port() -> None:
    (late,) = late_units(machine(iommu1="vhost-user"), "/run/v")

    assert late.chardev["id"] == "vdev.iommu1"
    assert "/run/v/iommu1" in json.dumps(late.chardev)
    assert late.device["bus"] == "vdev.port4"
    assert late.device["chardev"] == "vdev.iommu1"


def test_nothing_is_plugged_in_late_where_all_is_vfio_user() -> None:
    assert list(late_units(machine(), "/run/v")) == []


def test_a_plugged_unit_moves_and_endpoints_keep_their_addresses() -> None:
    assert restored_functions(machine()) == {"iommu0": 0x80, "iommu1": 0x88, "one": 0x100, "two": 0x200}
    assert restored_functions(machine(iommu1="vhost-user")) == {
        "iommu0": 0x80, "iommu1": 0x400, "one": 0x100, "two": 0x200,
    }  # fmt: skip


def test_a_path_too_long_for_a_socket_is_refused() -> None:
    with pytest.raises(ConfigError):
        list(late_units(machine(iommu0="vhost-user"), "/" + "x" * 110))


def test_the_kernel_leaves_empty_ports_alone() -> None:
    argv = source_arguments(machine(), PATHS, "tcg")
    assert "pcie_ports=compat mine" in argv[argv.index("-append") + 1]


def test_a_plan_restores_where_it_is_told_to() -> None:
    booted = make_plan(machine(), PARTS, Options(), Path("/run/v"))
    restored = make_plan(machine(), PARTS, replace(Options(), restore=Path("/saved")), Path("/run/v"))

    assert "-incoming" not in booted.qemu
    assert restored.qemu[restored.qemu.index("-incoming") + 1] == "defer"
    assert restored.backend == booted.backend
