"""`vdev doctor` of a QEMU that somebody else starts (a process, a script, a libvirt log), and of a configuration."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vdev import __main__ as command_line
from vdev.__main__ import main
from vdev.errors import ConfigError
from vdev.parts import doctor_qemu
from vdev.parts.doctor_qemu import doctor_file, doctor_process, words_of
from vdev.qemu.options import parse_command

GOOD = (
    "-m 512M -object memory-backend-memfd,id=r,size=512M,share=on -machine q35,memory-backend=r "
    "-device vfio-user-pci,id=iommu0,x-msg-timeout=30000 -acpitable file=/v/viot.bin"
)
# As libvirt 11.3 writes it: two starts, of which the last one counts.
LOG = f"""\
2026-01-01 10:00:00.000+0000: starting up libvirt version: 11.3.0, qemu version: 9.2.0Debian 1, kernel: 6
LC_ALL=C \\
/usr/bin/qemu-system-x86_64 \\
-device intel-iommu
2026-01-01 10:00:01.000+0000: shutting down, reason=failed
2026-01-01 11:00:00.000+0000: starting up libvirt version: 11.3.0, qemu version: 11.1.3Debian 1, kernel: 6
LC_ALL=C \\
HOME=/var/lib/libvirt/qemu \\
/usr/bin/qemu-system-x86_64 \\
-name guest=it,debug-threads=on \\
{GOOD} \\
-device '{{"driver": "vfio-user-pci", "id": "accel0", "x-msg-timeout": 5000}}' \\
-msg timestamp=on
char device redirected to /dev/pts/3 (label charserial0) don't quote
"""


def doctored(tmp_path: Path, text: str) -> tuple[int, list[str]]:
    path = tmp_path / "command"
    path.write_text(text)
    said: list[str] = []
    return doctor_file(str(path), said.append), said


def test_a_good_script_is_left_with_a_note_on_the_version_alone(tmp_path: Path) -> None:
    status, said = doctored(tmp_path, f"#!/bin/sh\n# mine\n./none/qemu-system-x86_64 \\\n  {GOOD}\n")
    assert status == 0
    assert said[0].endswith("the version of its QEMU is not known; it must be 10.2 or newer")
    assert said[1].endswith(": vdev can work behind this command line")


def test_a_warning_has_thing_rule_value_and_cure(tmp_path: Path) -> None:
    status, said = doctored(tmp_path, f"qemu-system-none {GOOD} -device virtio-iommu-pci,id=v")
    assert status == 1
    assert said[1:3] == [
        "warning  virtio-iommu-pci v: is an IOMMU of QEMU's, and vdev is the IOMMU",
        "         -> leave it out",
    ]
    assert said[3].endswith(": 1 warning(s)")


def test_the_last_start_in_a_libvirt_log_counts_with_its_version(tmp_path: Path) -> None:
    status, said = doctored(tmp_path, LOG)
    assert status == 1
    assert [line for line in said if line.startswith("warning")] == [
        "warning  vfio-user-pci accel0: x-msg-timeout is 5000; below 30000 ms a busy backend is cut off for good"
    ]
    assert not any("not known" in line for line in said)


def test_an_old_qemu_in_a_libvirt_log_is_warned_of(tmp_path: Path) -> None:
    status, said = doctored(tmp_path, LOG.replace("11.1.3Debian", "10.1.0Debian"))
    assert status == 1
    assert "warning  QEMU: version 10.1 is older than 10.2 and has no usable vfio-user-pci" in said


def test_standard_input_is_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"qemu-system-none {GOOD}".encode())))
    said: list[str] = []
    assert doctor_file("-", said.append) == 0
    assert said[-1] == "standard input: vdev can work behind this command line"


def test_a_running_process_is_read_from_proc() -> None:
    code = "import sys; print(flush=True); sys.stdin.read()"
    argv = ["qemu-system-x86_64", "-c", code, *GOOD.split(), "-incoming", "defer"]
    with subprocess.Popen(
        argv, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            process.stdout.readline()
            said: list[str] = []
            status = doctor_process(process.pid, said.append)
        finally:
            process.kill()
    assert status == 1
    assert any(line.startswith("warning  -incoming: defer") for line in said)


def test_a_process_that_has_ended_and_was_not_waited_for_has_no_command_line() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ConfigError, match="has no command line: it has ended"):
            doctor_process(process.pid, print)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--qemu", "999999999"], "--qemu: the command line of process 999999999 cannot be read"),
        (["--command", "/nowhere"], "--command: /nowhere cannot be read"),
        (["--command", "/dev/null"], "/dev/null: there is no QEMU command line in it"),
    ],
)
def test_what_is_no_qemu_is_wrong_input(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *argv]) == 2
    assert words in capsys.readouterr().err


def test_a_quote_that_is_never_closed_is_said() -> None:
    with pytest.raises(ConfigError, match="not a command line"):
        words_of("qemu-system-x86_64 -append 'x")


def test_a_configuration_is_looked_at_with_its_extra_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "doctor", lambda say: 0)  # this host is another matter
    path = tmp_path / "x.yaml"
    path.write_text(
        "vm: {extra_args: [-chardev, 'socket,id=c,path=/p,reconnect=1', -device, 'vhost-user-fs-pci,chardev=c']}\n"
        "units: [{name: iommu0, granule: 64K}]\n"
    )

    assert main(["doctor", str(path)]) == 1

    said = capsys.readouterr().err
    assert "   note  units[iommu0].granule: 64K is above the guest's page" in said
    assert "warning  chardev c: reconnect=1; a vhost-user device that reconnects makes QEMU abort" in said
    assert said.count("warning  ") == 1


def test_a_good_configuration_is_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "doctor", lambda say: 0)
    path = tmp_path / "x.yaml"
    path.write_text("units: [{name: iommu0}]\n")
    assert main(["doctor", str(path)]) == 0
    assert capsys.readouterr().err == f"{path}: vdev can work behind this command line\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["./qemu-system-x86_64", "-S"],  # of whatever directory we are in
        ["/bin/sh", "-c", "exit", "qemu-system-x86_64", "-S"],
        ["/nowhere/qemu-system-x86_64", "-S"],
        ["-S"],
    ],
)
def test_a_program_from_somebody_elses_text_is_not_run(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("it was run")

    monkeypatch.setattr(subprocess, "run", run)
    assert doctor_qemu.version_of(argv) is None


def test_the_commands_own_qemu_says_its_version(tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\necho QEMU emulator version 10.0.3\n")
    program.chmod(0o755)
    assert doctor_qemu.version_of([str(program), "-S"]) == (10, 0)
    assert parse_command([str(program), "-S"]).program == [str(program)]
