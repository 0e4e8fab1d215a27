"""What a VM boots from: which keys of `vm` go together, and the options of the command line that stand for them."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from qmp_bridge.vm_options import add_vm_options, apply_vm_options, file_for_backend
from vdev.config import Config, PasidsConfig, boot_kernel, override_vm, parse_config
from vdev.errors import ConfigError

UNIT = "units: [{name: iommu0}]\n"


def config(words: str = "") -> Config:
    return parse_config(f"{UNIT}vm: {{{words}}}", "x.yaml")


def on_the_command_line(*words: str, **defaults: str) -> Config:
    parser = argparse.ArgumentParser()
    add_vm_options(parser, defaults)
    return apply_vm_options(config("extra_args: [-S]"), parser.parse_args(words))


@pytest.mark.parametrize(
    ("words", "kernel"),
    [
        ("", "cloud"),
        ("kernel: generic", "generic"),
        ("disk: d.img", None),
        ("disk: d.img, kernel: none", None),
        ("disk: d.img, kernel: ./bzImage", "./bzImage"),
    ],
)
def test_a_disk_without_a_kernel_boots_itself(words: str, kernel: str | None) -> None:
    assert boot_kernel(config(words).vm) == kernel


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        ("kernel: none", "vm.kernel: none, and there is no disk to boot (set vm.disk,"),
        ('disk: ""', "vm.disk: is empty (name a raw or qcow2 image"),
        ('initrd: ""', "vm.initrd: is empty (name a file, say none"),
        ("kernel: nonne, disk: d", "vm.kernel: 'nonne' is neither a flavour nor a path (did you mean none?"),
        ("disk: d, initrd: i", "vm.initrd: there is no kernel for it: the disk's own boot loader brings its own"),
        ("disk: d, append: quiet", "vm.append: there is no kernel to take it"),
        ("disk_writable: true, disk_format: raw", "vm.disk_writable: there is no disk"),
        ("disk_format: raw", "vm.disk_format: there is no disk"),
        ("disk: d, disk_writable: true", "vm.disk_format: a guest that may write could make a raw image look like"),
        ("firmware: bios", "vm.firmware: 'bios' is neither a firmware's name nor a path"),
        ("extra_args: [-bios, x]", "vm.extra_args[0]: -bios is decided by vdev"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(words: str, refusal: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(words)
    assert str(caught.value).startswith(f"x.yaml: {refusal}")
    assert str(caught.value).endswith(")")  # there is a cure


def test_what_the_command_line_says_wins_over_the_file() -> None:
    vm = on_the_command_line(
        "--disk", "d.img", "--firmware", "ovmf", "--memory", "1G", "--cpus", "2", "--qemu-arg=-device", "--qemu-arg=x"
    ).vm
    assert (vm.disk, vm.firmware, vm.memory, vm.cpus) == ("d.img", "ovmf", "1G", 2)
    assert vm.extra_args == ("-S", "-device", "x")


def test_the_command_line_is_checked_like_the_file() -> None:
    with pytest.raises(ConfigError, match=r"vm\.cpus: 1000 is not in 1\.\.64"):
        on_the_command_line("--cpus", "1000")
    with pytest.raises(ConfigError, match=r"vm\.disk_format: a guest that may write"):
        on_the_command_line("--disk", "d.img", "--disk-writable")


def test_defaults_of_the_options_may_come_from_elsewhere_and_give_way() -> None:
    assert on_the_command_line(kernel="generic", cpus="3").vm.cpus == 3
    assert on_the_command_line("--kernel", "cloud", kernel="generic").vm.kernel == "cloud"


def test_an_override_of_the_wrong_type_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"vm\.cpus"):
        override_vm(config(), {"cpus": "many"})


def test_pasids_of_the_command_line_are_added_to_those_of_the_file() -> None:
    parser = argparse.ArgumentParser()
    add_vm_options(parser)
    words = parser.parse_args(["--pasid-quota", "7", "--pasid-authority", "here"])

    without = apply_vm_options(config(""), words).vm.pasids
    with_some = apply_vm_options(config("pasids: {quota: 5, authority_config: host.yaml}"), words).vm.pasids

    assert without == PasidsConfig(quota=7, authority=str(Path("here").absolute()))
    assert with_some == PasidsConfig(quota=7, authority=str(Path("here").absolute()), authority_config="host.yaml")


@pytest.mark.parametrize(
    ("words", "has_its_own"),
    [([], True), (["--memory", "1G"], True), (["--pasid-quota", "5"], False), (["--pasid-authority", "a"], False)],
)
def test_the_backend_gets_what_the_options_say_about_pasids(words: list[str], has_its_own: bool) -> None:
    parser = argparse.ArgumentParser()
    add_vm_options(parser)
    parser.add_argument("config", type=Path)
    arguments = parser.parse_args(["vm.yaml", *words])

    assert file_for_backend(arguments) == (Path("vm.yaml").absolute() if has_its_own else None)
