"""guest-suite.yaml: which machines it names, how they are called, and how each mistake in it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest_tests.runner.suite import FILE, Suite, load_suite
from vdev.errors import ConfigError

CONFIG = "{vm: {name: any}, units: [{name: iommu0}], endpoints: [{name: accel0, bdf: '01:00.0'}]}"
TWO_WAYS = """\
{units: [{name: a, bdf: '00:10.0'}, {name: b, bdf: '00:11.0', attach: vhost-user}],
 endpoints: [{name: accel0, unit: a, bdf: '01:00.0'}, {name: accel1, unit: b, bdf: '02:00.0'}]}"""


def suite(directory: Path, text: str, kernels: tuple[str, ...] = ()) -> Suite:
    (directory / FILE).write_text(text)
    return load_suite(directory, kernels)


def ids(directory: Path, entry: str, kernels: tuple[str, ...] = ()) -> list[str]:
    return [machine.id for machine in suite(directory, f"machines: [{{{entry}}}]", kernels).machines]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (f"config: {CONFIG}", ["vfio-user"]),
        (f"config: {TWO_WAYS}", ["vfio-user-and-vhost-user"]),
        (f"config: {CONFIG}, name: small", ["small-vfio-user"]),
        (f"config: {CONFIG}, attach: [vhost-user, vfio-user, vhost-user]", ["vhost-user", "vfio-user"]),
        (f"config: {CONFIG}, kernels: [cloud]", ["vfio-user"]),
        (f"config: {CONFIG}, kernels: [cloud, generic]", ["vfio-user", "vfio-user-generic"]),
        (f"config: {CONFIG}, kernels: [/a/bzImage]", ["vfio-user-bzImage"]),
    ],
)  # fmt: skip
def test_a_machine_is_called_by_what_tells_it_from_others(tmp_path: Path, entry: str, expected: list[str]) -> None:
    assert ids(tmp_path, entry) == expected


def test_kernels_of_the_command_line_replace_those_of_the_file(tmp_path: Path) -> None:
    assert ids(tmp_path, f"config: {CONFIG}, kernels: [generic]", ("cloud-backports",)) == ["vfio-user-cloud-backports"]


def test_a_configuration_may_be_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "machine.yaml").write_text("vm: {name: beside}\nunits: [{name: iommu0}]\n")
    machine = suite(tmp_path, "machines: [{config: machine.yaml}]").machines[0]
    assert machine.config.vm.name == "beside"


def test_what_is_not_said_has_its_default(tmp_path: Path) -> None:
    found = suite(tmp_path, f"machines: [{{config: {CONFIG}}}]")
    machine = found.machines[0]
    assert (found.timeout, machine.driver, machine.attach, machine.kernel, machine.append, machine.modules) == (
        60.0, "none", None, None, "", (),
    )  # fmt: skip


def test_a_test_is_told_what_its_machine_is(tmp_path: Path) -> None:
    entry = f"config: {CONFIG}, attach: [vhost-user], driver: stock, append: a=1"
    facts = suite(tmp_path, f"machines: [{{{entry}}}]").machines[0].facts()

    assert {key: facts[key] for key in ("name", "driver", "append", "attach")} == {
        "name": "vhost-user", "driver": "stock", "append": "a=1", "attach": "vhost-user",
    }  # fmt: skip
    assert facts["units"][0]["attach"] == "vhost-user"
    assert facts["endpoints"][0]["bdf"] == "01:00.0"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the file: is empty"),
        ("machines: [", "the file: not valid YAML at line 1, column 12"),
        ("timeout: 5", "machines: this key is missing (give a list such as - config: machine.yaml)"),
        ("machines: []", "machines: the list is empty (give a list such as - config: machine.yaml)"),
        ("machines: 5", "machines: 5 is a whole number, not a list"),
        ("machines: [{}]", "machines[0].config: this key is missing (the path of a vdev configuration"),
        ("machines: [{config: gone.yaml}]", "gone.yaml"),
        (f"machines: [{{config: {CONFIG}, driver: own}}]", "driver: 'own' is not a possible value (one of"),
        (f"machines: [{{config: {CONFIG}, attach: vfio-user}}]", "attach: 'vfio-user' is text, not a list"),
        (f"machines: [{{config: {CONFIG}, attach: [pci]}}]", "'pci' is not a possible value"),
        (f"machines: [{{config: {CONFIG}, kernel: cloud}}]", "kernel: there is no such key (did you mean kernels?)"),
        (f"machines: [{{config: {CONFIG}}}]\ntimeout: 0.5", "timeout: 0.5 is below 1 s (seconds, such as 30)"),
        (f"machines: [{{config: {CONFIG}}}]\ntimeout: soon", "timeout: 'soon' is text, not a number"),
        (f"machines: [{{config: {CONFIG}}}]\nretries: 3", "retries: there is no such key"),
        (f"machines: [{{config: {CONFIG}}}, {{config: {CONFIG}}}]", "two machines are called 'vfio-user' ("),
        (f"machines: [{{config: {CONFIG.replace('iommu0}', 'iommu0, bdf: nowhere}')}}}]", "'nowhere': not a PCI"),
    ],
)  # fmt: skip
def test_each_mistake_is_named_with_the_file(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        suite(tmp_path, text)

    assert str(caught.value).startswith(f"{tmp_path / FILE}: ")
    assert problem in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="make it readable UTF-8"):
        load_suite(tmp_path)
