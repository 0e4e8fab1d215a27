"""Probing QEMU and KVM, with scripts that answer as QEMU does."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdev.errors import PartsError
from vdev.parts import accel
from vdev.parts.accel import choose_accel, device_problem, probe_kvm, read_verdicts
from vdev.parts.cache import Cache, Manifest, digests
from vdev.parts.kernel import Kernel
from vdev.parts.progress import quiet
from vdev.parts.qemu import BINARY, Qemu, Unfit, find_qemu, probe, unpacked_qemu

QEMU_7_2 = "QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7+deb12u13)"
QEMU_11_1 = "QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)"
WITH_VFIO_USER = 'echo "vfio-user-pci options:"; echo "  socket=<SocketAddress>"'
WITHOUT_VFIO_USER = (
    "echo \"$0: -device vfio-user-pci,help: 'vfio-user-pci' is not a valid device model name\" >&2; exit 1"
)


def fake_qemu(directory: Path, version: str, device_help: str = WITH_VFIO_USER, boot: str = "exit 1") -> Path:
    """A script that answers --version, -device ...,help, and boots as `boot` says."""
    path = directory / BINARY
    path.write_text(
        f'#!/bin/sh\ncase "$*" in\n--version) echo "{version}" ;;\n*,help) {device_help} ;;\n*) {boot} ;;\nesac\n'
    )
    path.chmod(0o755)
    return path


def at(path: Path) -> Qemu:
    return Qemu([str(path)], {}, "11.1.3", "configured", path)


def test_a_fit_system_qemu_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake_qemu(tmp_path, QEMU_11_1)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    found = find_qemu(None, quiet, Cache(tmp_path / "cache"))

    assert (found.argv_prefix, found.version, found.origin) == ([str(path)], "11.1.3", "system")


def test_an_old_system_qemu_gives_one_line_of_notice_and_the_packaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_qemu(tmp_path, QEMU_7_2, WITHOUT_VFIO_USER)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    said: list[str] = []
    cache = Cache(tmp_path / "cache")

    def packaged(directory: Path) -> Manifest:
        (directory / "root/usr/bin").mkdir(parents=True)
        (directory / f"root/usr/bin/{BINARY}").touch()
        return Manifest("qemu", "11.1.3", (), digests(directory, f"root/usr/bin/{BINARY}"))

    cache.get("qemu", packaged, quiet)

    # The cached part is hollow, so that the choice shows without a real QEMU.
    with pytest.raises(PartsError, match="the packaged QEMU in"):
        find_qemu(None, said.append, cache)

    assert len(said) == 1
    assert "7.2.17" in said[0]
    assert "vfio-user-pci" in said[0]


def test_a_configured_qemu_that_is_unfit_is_refused_in_one_line(tmp_path: Path) -> None:
    path = fake_qemu(tmp_path, QEMU_7_2, WITHOUT_VFIO_USER)

    with pytest.raises(PartsError) as caught:
        find_qemu(str(path), quiet)

    assert str(caught.value).startswith(f"vm.qemu: {path}: QEMU 7.2.17")
    assert "\n" not in str(caught.value)


def test_a_configured_qemu_that_does_not_exist_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(PartsError, match=r"vm\.qemu: .* is not a program") as caught:
        find_qemu(str(tmp_path / "absent"), quiet)

    assert "\n" not in str(caught.value)


def test_a_new_qemu_built_without_vfio_user_is_unfit(tmp_path: Path) -> None:
    with pytest.raises(Unfit, match="built without vfio-user-pci"):
        probe(at(fake_qemu(tmp_path, QEMU_11_1, WITHOUT_VFIO_USER)))


def test_a_program_that_is_no_qemu_is_unfit(tmp_path: Path) -> None:
    with pytest.raises(Unfit, match="does not run"):
        probe(at(fake_qemu(tmp_path, "hello")))


def test_an_unpacked_qemu_is_started_by_its_own_loader(tmp_path: Path) -> None:
    qemu = unpacked_qemu(tmp_path, "amd64")

    libraries = f"{tmp_path}/usr/lib/x86_64-linux-gnu"
    assert qemu.argv_prefix[:3] == [f"{libraries}/ld-linux-x86-64.so.2", "--library-path", libraries]
    assert qemu.env == {"QEMU_MODULE_DIR": f"{libraries}/qemu"}


def test_a_cache_path_that_a_library_path_cannot_hold_is_refused_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(PartsError, match="contains ':'"):
        find_qemu(None, quiet, Cache(tmp_path / "cache:two"))

    assert not (tmp_path / "cache:two").exists()


@pytest.mark.parametrize(
    ("boot", "problem"),
    [
        ('echo "[    0.000000] Linux version 6.12"; exec sleep 5', ""),
        (
            'echo "KVM internal error. Suberror: 1"; exec sleep 5',
            "the kernel does not start: KVM internal error. Suberror: 1",
        ),
        ('echo "could not open kvm"; exit 1', "QEMU ended before the kernel said anything: could not open kvm"),
        ("exec sleep 5", "the kernel said nothing within 0 s"),
    ],
)
def test_kvm_is_judged_by_the_kernels_first_line(tmp_path: Path, boot: str, problem: str) -> None:
    path = fake_qemu(tmp_path, QEMU_11_1, boot=boot)

    assert probe_kvm(at(path), tmp_path / "image", 0.3) == problem


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kvm"
    path.touch()
    monkeypatch.setattr(accel, "DEVICE", path)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return path


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    (tmp_path / "image").touch()
    return Kernel(tmp_path / "image", None, "6.12")


def test_auto_falls_back_to_tcg_says_why_and_remembers(tmp_path: Path, device: Path, kernel: Kernel) -> None:
    said: list[str] = []
    tried = tmp_path / "tried"
    qemu = at(fake_qemu(tmp_path, QEMU_11_1, boot=f'echo x >> {tried}; echo "KVM internal error. Suberror: 1"'))

    chosen = [choose_accel(qemu, kernel, "auto", Cache(tmp_path), said.append) for _ in range(2)]

    assert chosen[0] == chosen[1]
    assert chosen[0].name == "tcg"
    assert "KVM internal error" in chosen[0].reason
    assert any(line.startswith("using TCG") for line in said)
    assert tried.read_text() == "x\n"


def test_auto_takes_kvm_where_the_kernel_boots(tmp_path: Path, device: Path, kernel: Kernel) -> None:
    qemu = at(fake_qemu(tmp_path, QEMU_11_1, boot='echo "Linux version 6.12"'))

    assert choose_accel(qemu, kernel, "auto", Cache(tmp_path), quiet).name == "kvm"


def test_kvm_asked_for_and_unusable_is_refused(tmp_path: Path, device: Path, kernel: Kernel) -> None:
    device.unlink()
    with pytest.raises(PartsError, match=r"vm\.accel: kvm was asked for, but there is no"):
        choose_accel(at(fake_qemu(tmp_path, QEMU_11_1)), kernel, "kvm", Cache(tmp_path), quiet)


def test_tcg_asked_for_tries_nothing(tmp_path: Path, kernel: Kernel) -> None:
    assert choose_accel(at(tmp_path / "absent"), kernel, "tcg", Cache(tmp_path), quiet).name == "tcg"


def test_verdicts_of_another_boot_of_the_host_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.json"
    path.write_text('{"boot_id": "one", "verdicts": {"key": "broken"}}')

    assert read_verdicts(path, "one") == {"key": "broken"}
    assert read_verdicts(path, "two") == {}
    path.write_text("damaged")
    assert read_verdicts(path, "one") == {}


def test_a_host_of_another_architecture_has_no_kvm_for_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")

    assert "aarch64" in device_problem(Path("/dev/null"))


def test_a_qemu_in_the_home_of_nobody_is_refused_by_name() -> None:
    with pytest.raises(PartsError, match=r"vm\.qemu: ~nosuchuser/qemu: there is no such user"):
        find_qemu("~nosuchuser/qemu", quiet)
