"""Options of a command line that stand for keys of `vm`: whatever is given there wins over the file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from vdev.config import Config, override_vm


def add_vm_options(parser: argparse.ArgumentParser, defaults: Mapping[str, str] | None = None) -> None:
    """Add them to `parser`; `defaults` (by key) come from where the caller likes, such as the environment."""
    group = parser.add_argument_group("the machine, instead of what the file says")
    group.add_argument(
        "--kernel", help="cloud, generic, cloud-backports, generic-backports, a bzImage, a kernel build tree, or none"
    )
    group.add_argument("--initrd", metavar="PATH", help="instead of vdev's own; none")
    group.add_argument("--disk", metavar="IMAGE", help="raw or qcow2; without --kernel the firmware boots it")
    group.add_argument("--disk-format", choices=["auto", "raw", "qcow2"])
    group.add_argument("--disk-writable", action="store_true", default=None, help="let the guest change the image")
    group.add_argument("--firmware", metavar="NAME", help="seabios, ovmf or a path")
    group.add_argument("--memory", metavar="SIZE", help="such as 1G")
    group.add_argument("--cpus", type=int, metavar="N")
    group.add_argument("--accel", choices=["auto", "kvm", "tcg"])
    group.add_argument("--pasid-quota", type=int, metavar="N", help="the VM has PASIDs, at most so many")
    group.add_argument("--pasid-authority", metavar="DIR", help="the VM has PASIDs, of the host's authority there")
    group.add_argument(
        "--qemu-arg", action="append", default=[], metavar="ARG", help="one more argument for QEMU; may be repeated"
    )
    parser.set_defaults(**(defaults or {}))


def apply_vm_options(config: Config, arguments: argparse.Namespace) -> Config:
    """`config` as the command line wants it. Raises ConfigError."""
    keys = (
        "kernel", "initrd", "disk", "disk_format", "disk_writable", "firmware", "memory", "cpus", "accel",
    )  # fmt: skip
    changes: dict[str, object] = {key: value for key in keys if (value := getattr(arguments, key)) is not None}
    quota, authority = arguments.pasid_quota, arguments.pasid_authority
    if quota is not None or authority is not None:
        changes["pasids"] = {
            **(msgspec.to_builtins(config.vm.pasids) or {}),
            **({} if quota is None else {"quota": quota}),
            **({} if authority is None else {"authority": os.path.abspath(authority)}),
        }
    if arguments.qemu_arg:
        changes["extra_args"] = [*config.vm.extra_args, *arguments.qemu_arg]
    return override_vm(config, changes)


def file_for_backend(arguments: argparse.Namespace) -> Path | None:
    """The configuration's own file, for the backend to read; None where an option that it must know changed what the
    file says (it gets a copy then)."""
    is_changed = arguments.pasid_quota is not None or arguments.pasid_authority is not None
    return None if is_changed else arguments.config.absolute()
