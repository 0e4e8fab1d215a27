"""`vdev qemu-args`: each format read back by what reads it, what is left out, and QEMU itself taking it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vdev.__main__ import main
from vdev.config import parse_config
from vdev.errors import ConfigError
from vdev.qemu.args import FORMATS, LIBVIRT_NAMESPACE, launcher_arguments, memory_advice
from vdev.qemu.machine import MachinePaths, qemu_arguments
from vdev.qemu.options import parse_command
from vdev.qemu.rules import check_command

TEXT = "units: [{name: iommu0}]\nendpoints: [{name: accel0}]\n"
CONFIG = parse_config(TEXT, "x.yaml")
AWKWARD = ["-a", 'it\'s "b", <c> & {d}', "", "e,,f", "$x `y`"]


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(TEXT)
    return path


def printed(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[str, str]:
    assert main(["qemu-args", *map(str, argv)]) == 0
    return capsys.readouterr()


def test_the_arguments_are_a_part_of_the_launchers_own() -> None:
    own = qemu_arguments(CONFIG, MachinePaths.in_directory("/run/v", "k", None), "tcg")
    pairs = list(pairwise(own))
    arguments = launcher_arguments(CONFIG, "/run/v")

    assert all(pair in pairs for pair in zip(arguments[::2], arguments[1::2], strict=True))
    assert set(arguments[::2]) == {"-machine", "-m", "-object", "-device", "-acpitable"}


def test_what_they_make_breaks_no_rule_of_the_doctor() -> None:
    assert check_command(parse_command(launcher_arguments(CONFIG, "/run/v"))) == []


def test_ram_and_machine_can_be_left_out() -> None:
    without = launcher_arguments(CONFIG, "/run/v", memory=False)
    devices = launcher_arguments(CONFIG, "/run/v", machine=False)

    assert without == ["-machine", "q35", *devices]
    assert set(devices[::2]) == {"-device", "-acpitable"}


def test_whoever_makes_the_ram_is_told_how() -> None:
    text = "\n".join(memory_advice(CONFIG))
    assert "memory-backend-memfd,id=ram0,size=512M,share=on" in text
    assert "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>" in text


def test_a_shell_reads_back_what_was_written_for_it() -> None:
    command = 'eval "set -- $1"; for word; do printf "%s\\n" "$word"; done'
    done = subprocess.run(
        ["sh", "-c", command, "sh", FORMATS["shell"](AWKWARD)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == AWKWARD
    assert shlex.split(FORMATS["shell"](AWKWARD)) == AWKWARD


def test_lines_and_json_are_the_arguments() -> None:
    assert FORMATS["lines"](AWKWARD).split("\n") == AWKWARD
    assert json.loads(FORMATS["json"](AWKWARD)) == AWKWARD


def test_libvirts_element_is_xml_with_its_namespace() -> None:
    element = ElementTree.fromstring(FORMATS["libvirt"](AWKWARD))
    assert element.tag == f"{{{LIBVIRT_NAMESPACE}}}commandline"
    assert [row.get("value") for row in element.iter(f"{{{LIBVIRT_NAMESPACE}}}arg")] == AWKWARD


def test_the_command_prints_arguments_only_on_standard_output(
    config_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = printed(capsys, config_path, "--runtime-dir", "/run/v")
    assert shlex.split(out) == launcher_arguments(CONFIG, "/run/v")
    assert err == ""


def test_without_memory_the_advice_goes_to_standard_error(
    config_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = printed(capsys, config_path, "--runtime-dir", "/run/v", "--no-memory", "--format", "lines")
    assert out.splitlines() == launcher_arguments(CONFIG, "/run/v", memory=False)
    assert "share=on" in err


def test_only_devices_and_libvirt_leave_out_the_machine(config_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    devices = launcher_arguments(CONFIG, "/run/v", machine=False)
    out, _ = printed(capsys, config_path, "--runtime-dir", "/run/v", "--only", "devices", "--format", "json")
    assert json.loads(out) == devices
    out, err = printed(capsys, config_path, "--runtime-dir", "/run/v", "--format", "libvirt")
    assert [row.get("value") for row in ElementTree.fromstring(out)] == devices
    assert "<memoryBacking>" in err


def test_the_runtime_directory_is_systemds_or_given_and_absolute(
    config_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/vdev/a")
    assert "/run/vdev/a/viot.bin" in printed(capsys, config_path)[0]
    assert f"{os.getcwd()}/here/viot.bin" in printed(capsys, config_path, "--runtime-dir", "here")[0]


@pytest.mark.parametrize(
    ("directory", "words"),
    [
        ("", "--runtime-dir: is missing, and RUNTIME_DIRECTORY is not set (give a directory, such as /tmp/vm1)"),
        ("/run/a:/run/b", "RUNTIME_DIRECTORY: /run/a:/run/b is more than one directory (give one with --runtime-dir)"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "qemu-args"])
def test_a_runtime_directory_that_cannot_be_known_is_wrong_input(
    command: str, directory: str, words: str, config_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("RUNTIME_DIRECTORY", directory)
    assert main([command, str(config_path)]) == 2
    assert capsys.readouterr().err == f"vdev: {words}\n"


def test_a_directory_that_would_break_a_line_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not print"):
        launcher_arguments(CONFIG, "/run/a\nb")
