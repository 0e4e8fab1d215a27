"""host.yaml: what an administrator can say of a host's PASIDs, and what is said where that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdev.authority.desk import Desk
from vdev.authority.ledger import Ledger
from vdev.authority.settings import HostConfig, VmQuota, host_config_from, load_host_config, plain
from vdev.errors import ConfigError


def load(tmp_path: Path, text: str) -> HostConfig:
    path = tmp_path / "host.yaml"
    path.write_text(text)
    return load_host_config(path)


def test_without_a_file_each_vm_numbers_its_own_thousand() -> None:
    config = load_host_config(None)

    assert (config.space, config.quota, config.overcommit, config.capacity) == ("per-vm", 1000, "share", 0xFFFFF)


def test_an_empty_file_says_the_same_as_none(tmp_path: Path) -> None:
    assert load(tmp_path, "\n") == load_host_config(None)


def test_a_whole_file_becomes_the_policys_rules(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        'space: system\nreserved: ["0x1..0xf", 1048575]\ncapacity: 5000\nquota: 10\n'.replace("1048575", '"1048575"')
        + "max_quota: 50\novercommit: reserve\nvms: {big: {quota: 50}}\n",
    )

    policy = config.policy()

    assert policy.space == "system"
    assert policy.reserved == ((1, 16), (0xFFFFF, 0x100000))
    assert (policy.ceiling, policy.overcommit, policy.max_quota) == (5000, "reserve", 50)


def test_the_hosts_word_on_a_vm_goes_before_the_vms_own_and_that_before_the_default() -> None:
    config = HostConfig(quota=10, vms={"big": VmQuota(quota=50)})

    assert [config.quota_of("big", 3), config.quota_of("other", 3), config.quota_of("other", None)] == [50, 3, 10]


def test_plain_data_makes_the_same_configuration_again(tmp_path: Path) -> None:
    config = load(tmp_path, 'reserved: ["5"]\nvms: {a: {quota: 1}}\nsockets: {group: 12}\n')

    assert host_config_from(plain(config)) == config


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("spce: system", r"host.yaml: spce: there is no such key \(did you mean space\?\)"),
        ("space: shared", r"host.yaml: space: 'shared' is not a possible value \(one of system, per-vm\)"),
        ("quota: -1", r"host.yaml: quota: -1 is not in 0..1048575 \(max_quota bounds it\)"),
        ("max_quota: 5", r"host.yaml: quota: 1000 is not in 0..5 \(max_quota bounds it\)"),
        ("capacity: 0", "host.yaml: capacity: 0 is not in 1..1048575"),
        ("journal: 1", "host.yaml: journal: 1 is not in 1000..10000000"),
        ("vms: {a: {quota: 2000000}}", "host.yaml: vms.a.quota: 2000000 is not in 0..1048575"),
        ("vms: {a: 5}", "host.yaml: vms.a: 5 is a whole number, not keys with values"),
        ("vms: {a: {quta: 5}}", r"host.yaml: vms.a.quta: there is no such key \(did you mean quota\?\)"),
        ("vms: {a b: {quota: 1}}", "host.yaml: vms: 'a b' is not the name of a VM"),
        ("reserved: [5]", "reserved"),
        ('reserved: ["0..5"]', r"host.yaml: reserved\[0\]: 0..5 is empty or not within 0x1..0xfffff"),
        ('reserved: ["1", "9..8"]', r"host.yaml: reserved\[1\]: 9..8 is empty"),
        ('reserved: ["1-5"]', r"host.yaml: reserved\[0\]: '1-5' is not a range \(write"),
        ('reserved: ["1..0xfffff"]', r"host.yaml: reserved: nothing is left for guests \(reserve less\)"),
        ("- a", "host.yaml: the file"),
    ],
)
def test_what_is_wrong_is_named_with_its_key_rule_value_and_cure(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(tmp_path, text)


def test_guests_of_a_system_space_are_told_the_numbers_between_the_reserved_ends(tmp_path: Path) -> None:
    config = HostConfig(space="system", reserved=("0x10..0x1f", "1..0xf", "0x100", "0xff000..0xfffff"))
    desk = Desk(config, Ledger(tmp_path / "ledger"), lambda: 0)

    assert desk.bounds == (0x20, 0xFF000)
