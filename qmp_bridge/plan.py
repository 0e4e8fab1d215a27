"""What would run: the parts found for a configuration, and the two command lines made of them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from vdev.config import KERNEL_NAMES, NONE, Config, VmConfig, boot_kernel
from vdev.config.checks import check_config
from vdev.config.schema import ATTACHMENTS, Attach
from vdev.config.text import closest
from vdev.errors import ConfigError, PartsError
from vdev.parts.accel import choose_accel
from vdev.parts.cache import Cache
from vdev.parts.disk import disk_format
from vdev.parts.firmware import find_firmware
from vdev.parts.initramfs import build_initramfs
from vdev.parts.kernel import Kernel, find_kernel
from vdev.parts.paths import own_path
from vdev.parts.progress import quiet
from vdev.parts.qemu import find_qemu
from vdev.qemu.machine import Disk, MachinePaths, qemu_arguments
from vdev.qemu.restorable import restored_arguments

MODULES = ("virtio_pci?", "virtio_console?", "virtio_iommu", "virtio_rng?", "vfio_pci", "vfio_iommu_type1")
CHECKS = Path(__file__).parent.parent / "guest_tests" / "payload"
TRACE_LOG = "trace.jsonl"
CONFIG_COPY = "config.json"  # JSON is YAML, too
_EXIT_WITH_PARENT = 11  # the first major version of QEMU whose -run-with knows it

# /payload/main.py of the guest: our checks are a package, and "all" is no check's name.
CHECKS_MAIN = b"""\
import sys

sys.path.insert(0, "/payload")
from guest_payload.main import main

sys.argv[1:] = [name for name in sys.argv[1].split(",") if name != "all"]
sys.exit(main())
"""


@dataclass(frozen=True)
class Parts:
    """Everything from outside that one VM needs."""

    qemu: tuple[str, ...]  # QEMU's command, before its arguments
    env: Mapping[str, str]  # added to the environment for it
    version: str
    kernel: str | None  # None: the firmware boots the disk
    initrd: str | None
    accel: str
    accel_reason: str = ""
    disk: Disk | None = None
    firmware: str | None = None


@dataclass(frozen=True)
class Options:
    """What a caller of `bring_up` may choose beyond the configuration."""

    kernel: str | None = None  # instead of vm.kernel
    accel: str | None = None  # instead of vm.accel
    attach: Attach | None = None  # instead of every unit's attach
    append: str = ""  # after vm.append
    payload: str | None = "all"  # checks to run, with commas between; None: the guest need say nothing
    payload_files: Mapping[str, Path | bytes] | None = None  # another payload: paths below /payload, main.py among them
    modules: tuple[str, ...] = MODULES
    # The file the configuration came from. Without it, or where options override it, the backend is given a copy.
    config_path: Path | None = None
    timeout: float | None = None  # seconds the VM may live; None: as long as it likes
    restore: Path | None = None  # a guest saved by qmp_bridge.snapshot: restore it instead of booting one
    trace: str | None = None  # vdev serve --trace: a file, or memory; "logs": trace.jsonl among the logs
    faults: Path | None = None  # vdev serve --faults: the file of a plan
    logs: Path | None = Path("logs")  # where logs go after a failure; None: nowhere
    follow: Callable[[bytes], None] | None = None  # is given all console output
    say: Callable[[str], None] = quiet  # is given progress, a line at a time
    parts: Parts | None = None  # None: looked for, which may download and takes its time
    backend: tuple[str, ...] = field(default=(sys.executable, "-m", "vdev"))


@dataclass(frozen=True)
class Plan:
    """The two processes of one VM."""

    backend: list[str]
    qemu: list[str]
    env: Mapping[str, str]
    paths: MachinePaths

    def shown(self) -> str:
        """All of it as one block of shell, to be pasted or saved as a script: directory, backend, QEMU."""
        directory, log = (shlex.quote(path) for path in (self.paths.socket_dir, self._log))
        env = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return (
            "(set -e\n"
            f"cd {shlex.quote(str(Path.cwd()))}\n"
            f"mkdir -m 700 {directory}\n"
            f"mkdir {directory}/logs\n"
            "# the backend; once it has printed a line QEMU can connect, and the ACPI table it is given is there\n"
            f"{shlex.join(self.backend)} > {directory}/ready &\n"
            "backend=$!; trap 'kill $backend; wait $backend || :' EXIT; trap 'exit 1' HUP INT TERM\n"
            f"until [ -s {directory}/ready ]; do kill -0 $backend; sleep 0.1; done\n"
            f"# QEMU; the guest's console is written to {log}\n"
            f"{' '.join([*env, shlex.join(self.qemu)])}\n"
            f")  # to be able to do it again: rm -r {directory}\n"
        )

    @property
    def _log(self) -> str:
        return self.paths.console_log

    def write(self, config: Config, logs: Path) -> None:
        """Write the files both commands name, and the commands themselves among the logs."""
        (Path(self.paths.socket_dir) / CONFIG_COPY).write_bytes(msgspec.json.encode(config))
        (logs / "commands.txt").write_text(self.shown(), encoding="utf-8")


def overridden(config: Config, options: Options) -> Config:
    """`config` with what `options` say instead of it and the backend must know, too. Raises ConfigError."""
    if options.attach is None:
        return config
    attach = options.attach
    if attach not in ATTACHMENTS:  # it may come from the environment
        raise ConfigError("attach", f"{attach!r} is not a way to attach a unit", closest(attach, list(ATTACHMENTS)))
    units = tuple(msgspec.structs.replace(unit, attach=attach) for unit in config.units)
    config = msgspec.structs.replace(config, units=units)
    check_config(config)
    return config


def find_parts(config: Config, options: Options) -> Parts:
    """The parts for `config`, found, fetched or built. Blocks, for minutes when it downloads. Raises PartsError."""
    vm, say, cache = config.vm, options.say, Cache()
    wanted = options.kernel or boot_kernel(vm)
    if wanted is None and options.append:
        problem = f"there is no kernel to take {options.append!r}: the disk's own boot loader brings its own"
        raise ConfigError("append", problem, "leave it out, or set vm.kernel")
    _check_paths(wanted, vm.initrd)  # before anything is downloaded
    disk = _disk(vm)
    qemu = find_qemu(vm.qemu, say, cache)
    firmware = find_firmware(vm.firmware, say, cache)
    kernel = find_kernel(wanted, say, cache) if wanted is not None else None
    initrd = _initrd(vm, kernel, options, cache)
    accel = choose_accel(qemu, kernel, options.accel or vm.accel, cache, say)
    return Parts(
        qemu=tuple(qemu.argv_prefix),
        env=qemu.env,
        version=qemu.version,
        kernel=str(kernel.image) if kernel is not None else None,
        initrd=initrd,
        accel=accel.name,
        accel_reason=accel.reason,
        disk=disk,
        firmware=str(firmware) if firmware is not None else None,
    )


def _disk(vm: VmConfig) -> Disk | None:
    if vm.disk is None:
        return None
    path = own_path("vm.disk", vm.disk)
    return Disk(str(path), disk_format(path, vm.disk_format), vm.disk_writable)


def _initrd(vm: VmConfig, kernel: Kernel | None, options: Options, cache: Cache) -> str | None:
    if kernel is None or vm.initrd == NONE:
        return None
    if vm.initrd is not None:
        return str(own_path("vm.initrd", vm.initrd))
    if kernel.modules_dir is None:
        options.say(f"kernel {kernel.version} comes without modules: virtio_iommu and VFIO must be built into it")
    files = options.payload_files or {"main.py": CHECKS_MAIN, "guest_payload": CHECKS}
    return str(build_initramfs(kernel, options.modules, files, options.say, cache))


def _check_paths(kernel: str | None, initrd: str | None) -> None:
    if kernel is not None and "/" in kernel and not own_path("vm.kernel", kernel).exists():
        cure = f"give a bzImage, a kernel build tree or one of {', '.join(KERNEL_NAMES)}"
        raise PartsError("vm.kernel", f"{kernel} does not exist", cure)
    if initrd is not None and initrd != NONE and not own_path("vm.initrd", initrd).is_file():
        raise PartsError("vm.initrd", f"{initrd} is not a file", "leave it out for vdev's own")


def make_plan(config: Config, parts: Parts, options: Options, directory: Path) -> Plan:
    """The commands for a VM in `directory`. Pure. Raises ConfigError when the directory's name is too long."""
    config = overridden(config, options)
    paths = paths_in(directory, parts)
    of_machine = qemu_arguments if options.restore is None else restored_arguments
    arguments = of_machine(with_append(config, options), paths, parts.accel)
    config_path = directory / CONFIG_COPY
    if options.config_path is not None and options.attach is None:
        config_path = options.config_path.absolute()
    trace = str(directory / "logs" / TRACE_LOG) if options.trace == "logs" else options.trace
    return Plan(
        backend=[
            *options.backend,
            "serve",
            "--exit-with-vm",
            str(config_path),
            "--runtime-dir",
            str(directory),
            *(["--trace", trace] if trace else []),
            *(["--faults", str(options.faults.absolute())] if options.faults else []),
        ],
        qemu=qemu_command(parts, arguments),
        env=parts.env,
        paths=paths,
    )


def with_append(config: Config, options: Options) -> Config:
    """`config` with all that the kernel command line says besides what every machine's does."""
    words = [config.vm.append, options.append, f"vdev.payload={options.payload}" if options.payload else ""]
    vm = msgspec.structs.replace(config.vm, append=" ".join(word for word in words if word))
    return msgspec.structs.replace(config, vm=vm)


def paths_in(directory: Path, parts: Parts) -> MachinePaths:
    """The usual arrangement in `directory`, with these parts."""
    paths = MachinePaths.in_directory(str(directory), parts.kernel, parts.initrd)
    return replace(paths, disk=parts.disk, firmware=parts.firmware)


def qemu_command(parts: Parts, arguments: Sequence[str]) -> list[str]:
    """QEMU with `arguments`, and ended by the kernel when we are killed without a chance to clean up."""
    major = parts.version.partition(".")[0]
    dies_with_us = major.isdigit() and int(major) >= _EXIT_WITH_PARENT
    return [*parts.qemu, *arguments, *(["-run-with", "exit-with-parent=on"] if dies_with_us else [])]
