"""The `sockets` section: every key, what it refuses and in which words."""

from __future__ import annotations

import pytest

from vdev.config import SocketsConfig, parse_config
from vdev.errors import ConfigError


def sockets(text: str) -> SocketsConfig:
    return parse_config(f"sockets: {{{text}}}\nunits: [{{name: iommu0}}]\n", "x.yaml").sockets


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        sockets(text)
    return str(error.value)


def test_without_the_section_the_sockets_are_ours_alone() -> None:
    assert parse_config("units: [{name: iommu0}]\n", "x.yaml").sockets == SocketsConfig(
        owner=None, group=None, mode=None
    )


def test_names_and_numbers_are_taken() -> None:
    assert sockets('owner: libvirt-qemu, group: 104, mode: "0770"') == SocketsConfig(
        owner="libvirt-qemu", group=104, mode="0770"
    )


def test_a_mode_needs_no_quotes_but_its_zero() -> None:
    assert sockets("group: kvm, mode: 0750").mode == "0750"
    assert "sockets.mode: 750 is a whole number, not text" in refusal("group: kvm, mode: 750")


@pytest.mark.parametrize("key", ["owner", "group"])
def test_a_number_with_a_leading_zero_is_neither_octal_nor_decimal(key: str) -> None:
    assert refusal(f"{key}: 0104") == (
        f"x.yaml: sockets.{key}: '0104' is neither a name nor a decimal number "
        "(write it as 990, without a leading zero or quotes)"
    )


@pytest.mark.parametrize("value", ['""', '"12"', "+12x", "1a"])
def test_what_starts_like_a_number_is_no_name(value: str) -> None:
    assert "is neither a name nor a decimal number" in refusal(f"owner: {value}")


@pytest.mark.parametrize(("key", "number"), [("owner", -1), ("group", (1 << 32) - 1)])
def test_a_number_that_is_no_id_is_refused(key: str, number: int) -> None:
    assert f"sockets.{key}: {number} is not in 0..4294967294" in refusal(f"{key}: {number}")


@pytest.mark.parametrize("mode", ["0777", "0755", "0660", "rwx", "0o750"])
def test_a_mode_that_lets_the_world_in_or_is_none_is_refused(mode: str) -> None:
    said = refusal(f"group: kvm, mode: {mode}")
    assert said.startswith(f"x.yaml: sockets.mode: '{mode}' is not a mode for the directory (one of 0700, 0750, 0770,")


def test_a_mode_for_a_group_needs_the_group() -> None:
    assert refusal("mode: 0750") == "x.yaml: sockets.mode: 0750 is for a group (name it: sockets.group)"
    assert sockets("mode: 0700").mode == "0700"


def test_a_group_that_could_not_enter_is_refused() -> None:
    said = refusal("group: kvm, mode: 0700")
    assert "sockets.group: 'kvm' could not enter a directory of mode 0700" in said


def test_an_unknown_key_is_refused_with_the_known_ones() -> None:
    assert "sockets.user: there is no such key (known here: owner, group, mode)" in refusal("user: kvm")
