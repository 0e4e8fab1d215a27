"""The bootstrap's stamp, what it may import, and the doctor's report."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from vdev.parts import doctor as doctor_module
from vdev.parts.cache import Cache
from vdev.parts.doctor import Finding, doctor

ROOT = Path(__file__).parent.parent.parent
BUNDLED = Path(os.__file__).parent / "ensurepip" / "_bundled"
PYPROJECT = '[project]\nname = "tool"\ndependencies = ["other==1"]\n'


@pytest.fixture(scope="module")
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "scripts" / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_stamp_holds_for_the_same_project_and_python_only(bootstrap: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    wanted = bootstrap.fingerprint(tmp_path, "3.11.2")
    stamp = tmp_path / "stamp"
    stamp.write_text(bootstrap.json.dumps(wanted))

    assert bootstrap.is_stamped(stamp, wanted)
    assert not bootstrap.is_stamped(stamp, bootstrap.fingerprint(tmp_path, "3.13.0"))
    (tmp_path / "pyproject.toml").write_text(PYPROJECT + "[tool.ruff]\nline-length = 80\n")
    assert bootstrap.is_stamped(stamp, bootstrap.fingerprint(tmp_path, "3.11.2"))
    (tmp_path / "pyproject.toml").write_text(PYPROJECT.replace("==1", "==2"))
    assert not bootstrap.is_stamped(stamp, bootstrap.fingerprint(tmp_path, "3.11.2"))


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_stamp_does_not_hold(bootstrap: ModuleType, tmp_path: Path, text: str) -> None:
    (tmp_path / "stamp").write_text(text)

    assert not bootstrap.is_stamped(tmp_path / "stamp", {"script": 1})
    assert not bootstrap.is_stamped(tmp_path / "absent", {"script": 1})


def test_two_bootstraps_of_one_tree_take_turns(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    waiter = threading.Thread(target=bootstrap.take_turn)

    waiter.start()
    waiter.join(0.2)
    waited = waiter.is_alive()
    os.close(handle)
    waiter.join(5)

    assert waited
    assert not waiter.is_alive()
    assert "waiting" in capsys.readouterr().err


def test_a_started_environment_is_taken_over_and_a_directory_of_files_is_not(
    bootstrap: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    assert bootstrap.is_environment(tmp_path)
    (tmp_path / "bin/mine").touch()
    assert not bootstrap.is_environment(tmp_path)
    (tmp_path / "pyvenv.cfg").touch()
    assert bootstrap.is_environment(tmp_path)


def test_a_host_without_pip_and_apt_is_told_to_install_pip_and_nothing_else(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("VDEV_CACHE", str(tmp_path / "cache"))

    with pytest.raises(SystemExit):
        bootstrap.fetch_pip_wheel(tmp_path)

    said = capsys.readouterr().err
    assert "apt install python3-venv" in said
    assert "vm.qemu" not in said


def test_an_interpreter_that_is_gone_has_no_version(bootstrap: ModuleType, tmp_path: Path) -> None:
    assert bootstrap.version_of(tmp_path / "python") == ""
    assert bootstrap.version_of(Path(sys.executable)) == ".".join(map(str, sys.version_info[:3]))


def test_the_newest_pip_wheel_is_taken(bootstrap: ModuleType, tmp_path: Path) -> None:
    for name in ("pip-23.0.1-py3-none-any.whl", "pip-25.1.1-py3-none-any.whl", "wheel-1-py3-none-any.whl"):
        (tmp_path / name).touch()

    assert bootstrap.find_pip_wheel((tmp_path,)) == tmp_path / "pip-25.1.1-py3-none-any.whl"
    assert bootstrap.find_pip_wheel((tmp_path / "absent",)) is None


@pytest.mark.skipif(not list(BUNDLED.glob("pip-*.whl")), reason="this Python comes without a pip wheel")
@pytest.mark.parametrize("host_has_certificates", [False, True])
def test_an_environment_without_ensurepip_gets_its_pip_from_a_wheel(
    host_has_certificates: bool, bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap.make_environment(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run = bootstrap._output
    monkeypatch.setattr(bootstrap, "_output", lambda command: "" if "ensurepip" in command else run(command))
    monkeypatch.setattr(bootstrap, "WHEELS", (BUNDLED,))
    monkeypatch.setattr(bootstrap, "HOST_CERTIFICATES", tmp_path if host_has_certificates else tmp_path / "absent")

    bootstrap.ensure_pip(python)

    where = run([str(python), "-c", "import pip._vendor.certifi as certifi; print(certifi.where())"])
    assert Path(where).is_file()
    assert run([str(python), "-m", "pip", "--version"])
    assert ("vdev" in (Path(where).parent / "core.py").read_text()) is not host_has_certificates


@pytest.mark.parametrize("host_has_some", [False, True])
def test_debians_pip_uses_the_certificates_it_brings_only_where_the_host_has_none(
    host_has_some: bool, bootstrap: ModuleType, tmp_path: Path
) -> None:
    host = tmp_path / "host.crt"
    certifi = tmp_path / "pip" / "_vendor" / "certifi"
    certifi.mkdir(parents=True)
    (certifi / "cacert.pem").touch()
    (certifi / "core.py").write_text(f"def where() -> str:\n    return {str(host)!r}\n")
    if host_has_some:
        host.touch()

    bootstrap.use_own_certificates(tmp_path, host)

    code = "import core; print(core.where())"
    asked = subprocess.run([sys.executable, "-B", "-c", code], cwd=certifi, capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == str(host if host_has_some else certifi / "cacert.pem")


def test_an_old_python_is_refused_in_one_line(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "NEEDED", (99, 0))

    with pytest.raises(SystemExit) as caught:
        bootstrap.check_python()

    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_parts_need_no_installed_package() -> None:
    # bootstrap.py fetches pip through them before anything is installed: -S hides site-packages.
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import vdev.parts.doctor, vdev.parts.initramfs"

    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_the_doctor_fails_only_for_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(doctor_module, "CHECKS", (lambda cache: iter([Finding("note", "a", "b")]),))
    assert doctor(said.append, Cache(tmp_path)) == 0
    assert said[:2] == ["   note  a", "         -> b"]

    monkeypatch.setattr(doctor_module, "CHECKS", (lambda cache: iter([Finding("missing", "c")]),))
    assert doctor(said.append, Cache(tmp_path)) == 1
    assert said[-1] == "1 thing(s) missing"


def test_the_doctor_reports_on_an_empty_cache_without_filling_it(tmp_path: Path) -> None:
    said: list[str] = []

    doctor(said.append, Cache(tmp_path / "cache"))

    assert any("guest kernel cloud: not in the cache" in line for line in said)
    assert not (tmp_path / "cache").exists()


def test_the_doctor_names_each_parts_own_key_where_nothing_can_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setenv("PATH", str(tmp_path))

    assert doctor(said.append, Cache(tmp_path / "cache")) == 1

    for key in ("vm.qemu", "vm.kernel", "vm.initrd"):
        assert any(line.endswith(f"-> set {key} in the config to your own") for line in said)


def test_the_doctor_tells_a_damaged_part_from_an_absent_one(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "kernel/cloud/6.12").mkdir(parents=True)
    (tmp_path / "kernel/cloud/6.12/manifest.json").write_text("{")

    doctor(said.append, Cache(tmp_path))

    assert any("guest kernel cloud: not used: " in line and "manifest.json" in line for line in said)
