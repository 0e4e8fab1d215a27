"""The builder of a kernel of one's own, on a source package whose Makefile only pretends."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from guest_tests import own_kernel
from guest_tests.own_kernel import BZ_IMAGE, FRAGMENT, Workshop, build_tree, dropped, main, without
from vdev.errors import PartsError
from vdev.parts.kernel import image_version
from vdev.parts.progress import quiet

# kconfig knows the options A and B; bzImage is a boot header as far as image_version reads it.
MAKEFILE = """\
allnoconfig:
\tgrep -E '^(# )?CONFIG_[AB]\\b' $(KCONFIG_ALLCONFIG) > $(O)/.config
bzImage:
\t$(EXTRA)
\tmkdir -p $(O)/arch/x86/boot
\t{ head -c 514 /dev/zero; printf 'HdrS'; head -c 8 /dev/zero; printf '\\000\\004'; head -c 1008 /dev/zero; \\
\t  printf '6.12.0-fake (me@here) #1\\000'; head -c 300 /dev/zero; } > $(O)/arch/x86/boot/bzImage
"""


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """Source of the pretended kernel; `make_words` are its Makefile's variables."""
    source = tmp_path / "linux"
    source.mkdir()
    (source / "Makefile").write_text(MAKEFILE)
    tarball = tmp_path / "linux.tar"
    subprocess.run(["tar", "-cf", str(tarball), "-C", str(tmp_path), "linux"], check=True)
    return Workshop(tarball, {}, (), "pretended")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where it is built."""
    (tmp_path / "build").mkdir()
    return tmp_path / "build"


def _failing(workshop: Workshop, command: str) -> Workshop:
    return Workshop(workshop.tarball, {}, (f"EXTRA={command}",), "failing")


def _runs(pid: int) -> bool:
    """Whether the process is there and neither ended nor about to: SIGKILL takes effect when it is next scheduled."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state in "ZX":
            return False
        time.sleep(0.01)
    return True


def test_the_tree_holds_a_bootable_image_and_no_source(workshop: Workshop, directory: Path) -> None:
    build_tree(workshop, "CONFIG_A=y\n", directory, directory / "log", quiet)

    assert image_version(directory / "tree" / BZ_IMAGE) == "6.12.0-fake"
    assert not (directory / "source").exists()


def test_an_option_that_kconfig_drops_is_an_error_that_names_it(workshop: Workshop, directory: Path) -> None:
    with pytest.raises(PartsError, match="kconfig dropped CONFIG_C=m"):
        build_tree(workshop, "CONFIG_A=y\nCONFIG_C=m\n", directory, directory / "log", quiet)


def test_a_failed_build_shows_the_cause_and_names_the_log(workshop: Workshop, directory: Path) -> None:
    broken = _failing(workshop, "echo 'x.c:1: error: no such thing'; exit 3")

    with pytest.raises(PartsError, match=r"error: no such thing") as caught:
        build_tree(broken, "CONFIG_A=y\n", directory, directory / "log", quiet)

    assert str(directory / "log") in caught.value.cure


def test_a_build_that_takes_too_long_is_ended_with_its_children(
    workshop: Workshop, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = directory / "child"

    def clock() -> float:
        """Time stands still until the child runs; then it is too late."""
        return own_kernel.BUILD_SECONDS if pid_file.exists() and pid_file.read_text() else 0.0

    monkeypatch.setattr(own_kernel, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(own_kernel, "PROGRESS_SECONDS", 0.05)
    sleeping = _failing(workshop, f"echo $$$$ > {pid_file}; exec sleep 60")

    with pytest.raises(PartsError, match="not built within"):
        build_tree(sleeping, "CONFIG_A=y\n", directory, directory / "log", quiet)

    assert not _runs(int(pid_file.read_text()))


def test_a_full_disk_is_told_before_anything_is_unpacked(
    workshop: Workshop, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_kernel, "NEEDED_NBYTES", 1 << 60)

    with pytest.raises(PartsError, match="MiB free; building needs"):
        build_tree(workshop, "CONFIG_A=y\n", directory, directory / "log", quiet)

    assert list(directory.iterdir()) == []


def test_a_missing_compiler_is_named_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("VDEV_CACHE", str(tmp_path / "cache"))

    status = main([])

    assert status == 1
    said = capsys.readouterr().err
    assert "gcc, make" in said
    assert "build-essential" in said


def test_an_option_left_out_is_switched_off() -> None:
    fragment = without(FRAGMENT.read_text(), ["VIRTIO_IOMMU"])

    assert "# CONFIG_VIRTIO_IOMMU is not set" in fragment.splitlines()
    assert "CONFIG_VIRTIO_IOMMU=y" not in fragment


def test_an_option_that_is_not_there_cannot_be_left_out() -> None:
    with pytest.raises(PartsError, match="no option VIRTIO_IOMU"):
        without(FRAGMENT.read_text(), ["VIRTIO_IOMU"])


def test_an_option_that_another_one_switches_on_again_counts_as_dropped() -> None:
    fragment = "CONFIG_A=y\n# CONFIG_B is not set\n# CONFIG_C is not set\n# a remark\n"

    assert dropped(fragment, "CONFIG_A=y\nCONFIG_B=y\n") == ["# CONFIG_B is not set"]
    assert dropped(fragment, "CONFIG_A=y\n# CONFIG_B is not set\n") == []
