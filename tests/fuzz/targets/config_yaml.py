"""YAML: a file of any bytes is what it should be (`_KINDS`), or a ConfigError in words.

Input: one byte, of which two bits choose what the file should be, then the file. What is accepted must be good for all
that follows without an error: QEMU's arguments for the own launcher and for a person's, in every form they are printed
in, the VIOT table, the machine of cores, and the copy the backend reads, which says the same again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import msgspec

from guest_tests.runner.suite import load_suite
from guest_tests.scenario.model import Overrides, load_scenario, walk
from vdev.assemble import Machine
from vdev.config import Config, config_warnings, load_config, parse_config
from vdev.config.load import load_plan
from vdev.config.schema import FaultsConfig
from vdev.errors import ConfigError
from vdev.qemu.args import FORMATS, launcher_arguments
from vdev.qemu.machine import MachinePaths, kernel_append, qemu_arguments, viot_table
from vdev.virtio.ordering import NoOrdering

DIRECTORY = "/run/vdev/vm"
MAX_ERROR_NBYTES = 20_000  # of the text of an error: keys are as long as the file
MAX_BUILT = 3  # endpoints whose device memory is made
VIOT_FIXED_NBYTES = 36 + 12


def one_input(data: bytes) -> None:
    """Read one file."""
    _read(data[1:], _KINDS[data[0] & 3 if data else 0])


def _read(text: bytes, reader: Callable[[Path], None]) -> None:
    fd = os.memfd_create("yaml")
    try:
        os.write(fd, text)
        reader(Path(f"/proc/self/fd/{fd}"))
    except ConfigError as error:
        _check_words(error)
    finally:
        os.close(fd)


def _check_words(error: ConfigError) -> None:
    assert error.key
    assert error.problem
    assert len(str(error).encode()) < MAX_ERROR_NBYTES


def _machine(path: Path) -> None:
    config = load_config(path)
    config_warnings(config)
    _check_arguments(config)
    _check_viot(config)
    _check_copy(config)
    if len(config.endpoints) <= MAX_BUILT:
        _build(config)


def _suite(path: Path) -> None:
    suite = load_suite(cast(Path, _Directory(path)))
    assert suite.machines
    for machine in suite.machines:
        assert machine.id
        msgspec.json.encode(machine.facts())
        _check_arguments(machine.config)


def _scenario(path: Path) -> None:
    scenario = load_scenario(cast(Path, _File(path)), Overrides())
    assert scenario.steps
    assert all(step.key.startswith("steps[") and step.kind for step in walk(scenario.steps))
    _check_arguments(scenario.config)


def _plan(path: Path) -> None:
    plan = load_plan(path)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=FaultsConfig) == plan


_KINDS: tuple[Callable[[Path], None], ...] = (_machine, _suite, _scenario, _plan)


class _Directory:
    """A directory in which every name is one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __truediv__(self, name: str) -> Path:
        return self._path


class _File:
    """A file in such a directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.parent = _Directory(path)

    def read_text(self, encoding: str) -> str:
        return self._path.read_text(encoding)


def _check_arguments(config: Config) -> None:
    """They are words a process can be given, in every form."""
    arguments = launcher_arguments(config, DIRECTORY)
    for shown in FORMATS.values():
        shown(arguments).encode()
    paths = MachinePaths.in_directory(DIRECTORY, "/kernel", "/initrd")
    for argument in (*qemu_arguments(config, paths, "tcg"), kernel_append(config), *arguments):
        assert b"\0" not in argument.encode(), "no process can be given that"


def _check_viot(config: Config) -> None:
    table = viot_table(config)
    assert len(table) == VIOT_FIXED_NBYTES + 16 * len(config.units) + 24 * (len(config.endpoints) + len(config.slots))
    assert int.from_bytes(table[4:8], "little") == len(table)
    assert sum(table) % 256 == 0


def _check_copy(config: Config) -> None:
    copy = parse_config(msgspec.json.encode(config).decode(), "copy")
    assert copy == config, "the backend would read another configuration"


def _build(config: Config) -> None:
    """The cores; options of a model and what PROBE has room for are theirs to judge, with ConfigError."""
    nothing: Callable[..., None] = lambda *_: None  # noqa: E731
    machine = Machine(config, emit=nothing, wake=nothing, wake_at=nothing, ordering=NoOrdering())
    for unit in machine.units.values():
        unit.engine.config_bytes()


_WHOLE = """\
vm: {name: vm1, memory: 1G, cpus: 2, accel: tcg, append: quiet, boot_timeout: 60.5, identity: unchecked,
     unsealed_ram: allow, extra_args: [-device, virtio-rng-pci]}
sockets: {owner: 1000, group: kvm, mode: "0750"}
units:
  - {name: iommu0, bdf: "00:10.0", attach: vhost-user, mode: strict, granule: 4K, input_range: [0, 0x7fffffffff],
     domain_range: [0, 0xffff], bypass: off, mmio: false, probe_size: 512,
     reserved: [{start: 0xfee00000, end: 0xfeefffff, kind: msi}],
     limits: {max_domains: 4, max_mappings: 100, max_mappings_per_domain: 10, max_pending_faults: 3}}
  - {name: iommu1, bdf: 00:11.0, bypass: not-offered}
endpoints:
  - {name: accel0, options: {devmem: 1M}}
  - {name: rng0, model: rng, unit: iommu1, bdf: 02:00.0, reserved: [{start: 0x1000, end: 0x1fff}]}
slots:
  - {bdf: 03:00.0}
trace: {file: trace.jsonl, max_bytes: 1M, records: 100, endpoints: [iommu0], types: [MAP], statuses: ["!OK"]}
"""
_DISK = "units: [{name: a}]\nvm: {disk: image.raw, disk_format: raw, disk_writable: true, firmware: ovmf, kernel: none}"
_SUITE = """\
machines:
  - config: {units: [{name: iommu0}], endpoints: [{name: accel0}]}
    attach: [vfio-user, vhost-user]
    kernels: [cloud, generic]
    driver: stock
    modules: [vfio_pci]
  - {config: machine.yaml, name: big, append: debug, tier: soak}
timeout: 30
"""

_SCENARIO = """\
scenario: ask-and-look
about: what it shows
machine: {units: [{name: iommu0}], endpoints: [{name: accel0}]}
seed: 7
vars: {page: 1}
timeout: 60
steps:
  - inject: {id: late, at: request, do: hold, match: {type: MAP}, when: {nth: 2}}
  - repeat: {times: 2, steps: [{note: "page {{page}}"}]}
  - qmp: {execute: query-status, as: found}
  - wait: {event: FAULT_INJECTED, where: {rule: late}, within: 5}
  - expect: {that: found.status, is: running}
  - expect: {fired: {late: ">=1"}}
  - release: late
"""
_REPEATING = """\
scenario: again
driver: stock
machine: {units: [{name: iommu0}]}
steps:
  - repeat: {times: 3, steps: [{note: "round {{round}}"}, {inject: {at: timer, do: config-change}}, {clear: {}}]}
  - inject: {id: killed, at: timer, do: die}
    ends: backend
  - note: nothing of the VM is left
"""
_PLAN = """\
seed: 7
rules:
  - {id: a, at: request, do: status, with: {status: NOMEM}, when: {probability: 0.5}, match: {iova: 0x1000-0x1fff}}
  - {at: timer, do: stall, with: {seconds: 0.5}, when: {delay: 1, period: 2}, times: 3}
"""


def seeds() -> Iterator[bytes]:
    """Whole files, small ones, and YAML of the kinds that are refused."""
    yield b"\0" + _WHOLE.encode()
    yield b"\0units: [{name: iommu0}]\nendpoints: [{name: accel0}]\n"
    yield b"\0" + _DISK.encode()
    yield b'\0{"units":[{"name":"iommu0","bdf":"00:10.0"}],"vm":{"memory":"512M","append":"\\"a\\u0041"}}'
    yield b"\0a: &a [1, 2]\nunits: &u [{name: *a}]\nb: *u\n? [x]\n: !!binary aGFsbG8=\n"
    yield b"\0units:\n- name: x\n  granule: -1\n  probe_size: 0x10\n  mmio: null\n  domain_range: [1.5, 0b11]\n"
    yield b"\0# text\nunits: |\n  lines\n  of text\nvm: >-\n  more\n--- \nx: 1\n"
    yield b"\1" + _SUITE.encode()
    yield b"\2" + _SCENARIO.encode()
    yield b"\2" + _REPEATING.encode()
    yield b"\3" + _PLAN.encode()
