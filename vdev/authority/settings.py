"""The administrator's file about a host's PASIDs, checked: errors name the key, the rule, the value and a cure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import msgspec

from vdev.config.load import EXAMPLES, named, read_text
from vdev.config.schema import SocketsConfig
from vdev.config.text import WHOLE, convert, parse_yaml
from vdev.errors import ConfigError
from vdev.host.policy import DEFAULT_QUOTA, FIRST_PASID, STOP_PASID, HostSettings

MOST = STOP_PASID - FIRST_PASID
MAX_RANGES = 256
MAX_VMS = 4096
MAX_RECORDS = 10_000_000
_RANGE = re.compile(r"(0[xX][0-9a-fA-F]{1,8}|[0-9]{1,8})(?:\.\.(0[xX][0-9a-fA-F]{1,8}|[0-9]{1,8}))?", re.ASCII)
_VM = re.compile(r"[\x21-\x7e]{1,64}", re.ASCII)
_CURES = {
    **EXAMPLES,
    "reserved": 'give a list such as ["0x1..0xf"], both inclusive',
    "vms": "such as vms: {vm1: {quota: 200}}",
    "quota": "a number of PASIDs, such as 1000",
}


class VmQuota(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one VM, by its name, is given whatever its own configuration says."""

    quota: int


class HostConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole file."""

    space: Literal["system", "per-vm"] = "per-vm"
    reserved: tuple[str, ...] = ()  # host PASIDs no guest gets: "FIRST..LAST" or one number
    capacity: int = MOST  # of all guests together
    overcommit: Literal["share", "reserve"] = "share"
    quota: int = DEFAULT_QUOTA  # of a VM that has none of its own
    max_quota: int = MOST
    vms: dict[str, VmQuota] = {}
    journal: int = 200_000  # grants and releases kept
    audit: int = 10_000  # changes by administrators kept
    sockets: SocketsConfig = SocketsConfig()  # who besides our own user may lease; nobody else administers

    def policy(self) -> HostSettings:
        """The rules of it."""
        reserved = tuple(_parse_range(text, f"reserved[{index}]") for index, text in enumerate(self.reserved))
        return HostSettings(self.space, reserved, self.capacity, self.overcommit, self.quota, self.max_quota)

    def quota_of(self, name: str, asked: int | None) -> int:
        """What VM `name` may have at first: what is said here of it, what it asks for, or what all get."""
        if name in self.vms:
            return self.vms[name].quota
        return self.quota if asked is None else asked


def load_host_config(path: Path | None) -> HostConfig:
    """The file at `path`, or what holds without one. ConfigError, whose key begins with the file's name."""
    if path is None:
        return HostConfig()
    text = read_text(path)
    with named(path.name):
        return host_config_from(parse_yaml(text) if text.strip() else {})


def host_config_from(data: Any) -> HostConfig:
    """The configuration that plain `data` says. ConfigError."""
    vms = data.get("vms") if isinstance(data, dict) else None
    for name, quota in vms.items() if isinstance(vms, dict) else ():
        try:
            convert(quota, VmQuota, _CURES)
        except ConfigError as error:
            key = f"vms.{name}" if error.key == WHOLE else f"vms.{name}.{error.key}"
            raise ConfigError(key, error.problem, error.cure) from None
    config: HostConfig = convert(data, HostConfig, _CURES)
    _check(config)
    return config


def plain(config: HostConfig) -> Any:
    """The inverse of `host_config_from`."""
    return msgspec.to_builtins(config)


def _check(config: HostConfig) -> None:
    _require(len(config.reserved) <= MAX_RANGES, "reserved", f"{len(config.reserved)} ranges", f"at most {MAX_RANGES}")
    _require(len(config.vms) <= MAX_VMS, "vms", f"{len(config.vms)} VMs", f"at most {MAX_VMS}")
    for key, value, low, most in (
        ("capacity", config.capacity, 1, MOST),
        ("max_quota", config.max_quota, 0, MOST),
        ("quota", config.quota, 0, config.max_quota),
        ("journal", config.journal, 1000, MAX_RECORDS),
        ("audit", config.audit, 100, MAX_RECORDS),
        *((f"vms.{name}.quota", vm.quota, 0, config.max_quota) for name, vm in config.vms.items()),
    ):
        _require(low <= value <= most, key, f"{value} is not in {low}..{most}", _range_cure(key))
    for name in config.vms:
        cure = "vm.name of its configuration"
        _require(_VM.fullmatch(name) is not None, "vms", f"{name!r:.80} is not the name of a VM", cure)
    supply = config.policy()
    taken = len({number for first, stop in supply.reserved for number in range(first, stop)})
    _require(taken < MOST, "reserved", "nothing is left for guests", "reserve less")


def _range_cure(key: str) -> str:
    return "max_quota bounds it" if key.endswith("quota") and key != "max_quota" else ""


def _require(holds: bool, key: str, problem: str, cure: str) -> None:
    if not holds:
        raise ConfigError(key, problem, cure)


def _parse_range(text: str, key: str) -> tuple[int, int]:
    """[start, stop) of "FIRST..LAST" or of one number."""
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(key, f"{text!r:.80} is not a range", 'write "0x1..0xf", both inclusive, or one number')
    first = int(match[1], 0 if match[1][:2].lower() == "0x" else 10)
    last = first if match[2] is None else int(match[2], 0 if match[2][:2].lower() == "0x" else 10)
    if not FIRST_PASID <= first <= last < STOP_PASID:
        raise ConfigError(key, f"{text} is empty or not within 0x1..0xfffff", "PASID 0 is nobody's anyway")
    return first, last + 1
