"""QEMU's option syntax, both ways, and a command line taken apart."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdev.qemu.options import is_on, join_value, parse_command, parse_option, quote_value, split_value

KEYS = st.from_regex(r"[a-z][a-z0-9.-]{0,8}", fullmatch=True)
VALUES = st.text(st.sampled_from("a,=/ {}\"'-"), max_size=12)
KINDS = st.text(st.sampled_from("a,/ -"), min_size=1, max_size=8)


@given(kind=st.just("") | KINDS, properties=st.lists(st.tuples(KEYS, VALUES), max_size=4))
def test_what_was_joined_is_split_into_the_same(kind: str, properties: list[tuple[str, str]]) -> None:
    assert split_value(join_value(kind, properties)) == (kind, properties)


@given(VALUES)
def test_a_quoted_value_never_ends_early(value: str) -> None:
    assert split_value(f"file={quote_value(value)},last=1")[1] == [("file", value), ("last", "1")]


@given(st.dictionaries(KEYS, VALUES | st.booleans() | st.integers()))
def test_json_comes_back_as_it_was(properties: dict[str, object]) -> None:
    assert parse_option("device", json.dumps(properties)).properties == properties


@pytest.mark.parametrize(
    ("text", "kind", "properties"),
    [
        ("q35,memory-backend=ram0", "q35", [("memory-backend", "ram0")]),
        ("socket,id=c,path=/a,,b,server", "socket", [("id", "c"), ("path", "/a,b"), ("server", "on")]),
        ("type=q35,iommu=x", "", [("type", "q35"), ("iommu", "x")]),
        ("512M", "512M", []),
        ("", "", []),
    ],
)
def test_the_comma_form_is_split_as_qemu_does(text: str, kind: str, properties: list[tuple[str, str]]) -> None:
    assert split_value(text) == (kind, properties)


def test_a_device_has_its_driver_as_kind_in_every_form() -> None:
    forms = ['{"driver": "edu", "id": "e"}', "edu,id=e", "driver=edu,id=e"]
    assert [parse_option("device", form).label for form in forms] == ["edu e"] * 3


def test_damaged_json_is_a_word() -> None:
    assert parse_option("device", '{"driver": ').properties == {}


def test_a_command_is_taken_apart() -> None:
    argv = [
        "LC_ALL=C",
        "/lib/ld.so",
        "--library-path",
        "/l",
        "/usr/bin/qemu-system-x86_64",
        "-L",
        "/x",
        "-S",
        "disk.img",
    ]
    argv += ["-append", "-quiet x", "--machine", "q35", "-M", "iommu=y", "-snapshot", "-"]
    command = parse_command(argv)

    assert command.program == ["/lib/ld.so", "--library-path", "/l", "/usr/bin/qemu-system-x86_64"]
    assert [(option.name, option.value) for option in command.options] == [
        ("L", "/x"), ("S", ""), ("append", "-quiet x"), ("machine", "q35"), ("machine", "iommu=y"), ("snapshot", ""),
    ]  # fmt: skip
    assert command.merged("machine") == {"iommu": "y"}


def test_a_part_of_a_command_has_no_program() -> None:
    command = parse_command(["-device", "edu", "-nodefaults", "-m", "1G"])
    assert command.program == []
    assert [option.name for option in command.named("device", "m")] == ["device", "m"]


@pytest.mark.parametrize(
    ("value", "default", "on"),
    [
        (None, True, True),
        (None, False, False),
        (True, False, True),
        ("on", False, True),
        ("off", True, False),
        ("no", True, False),
    ],
)
def test_on_and_off_have_many_spellings(value: object, default: bool, on: bool) -> None:
    assert is_on(value, default) is on
