"""Sets up .venv with the project and its pinned dependencies. Needs Python >= 3.11 and nothing else.

No pip, ensurepip or virtualenv has to be installed: where Debian split them off, pip comes as a Debian package, checked
by apt and unpacked privately. A second run finds its stamp and touches neither the network nor the environment.
This file must stay readable by older Pythons up to check_python(), which tells their users what to do.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (3, 11)
STAMP = "bootstrap.json"
WHEELS = (Path("/usr/share/python-wheels"),)  # where Debian's python3-pip-whl puts pip
PIP_PACKAGE = "python3-pip-whl"
HOST_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
OWN_CERTIFICATES = """

# vdev's bootstrap: this host has no certificates
def where() -> str:
    return __file__.removesuffix("core.py") + "cacert.pem"
"""
SITE_PACKAGES = "import sysconfig; print(sysconfig.get_path('purelib'))"
SCRIPT_VERSION = 1  # raise it when an environment made by an older script must be made anew


def say(line: str) -> None:
    """One line of progress on stderr."""
    print(f"bootstrap: {line}", file=sys.stderr, flush=True)


def fail(line: str) -> None:
    """End with status 2 and one line that says what to do."""
    say(line)
    sys.exit(2)


def check_python() -> None:
    """Refuse a Python that is too old or comes without the venv module."""
    if sys.version_info < NEEDED:
        found = ".".join(str(part) for part in sys.version_info[:3])
        fail(f"Python {found} is too old, 3.11 or newer is needed; if you have one: make PYTHON=python3.12 ...")
    try:
        __import__("venv")
    except ImportError:
        fail(f"{sys.executable} has no venv module; on Debian: apt install python3-venv")


def take_turn() -> None:
    """Wait until no other bootstrap works on this tree; the kernel ends our turn with the process."""
    handle = os.open(ROOT, os.O_RDONLY)  # kept open; the directory itself is locked, so no file is left behind
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another bootstrap is setting up this tree; waiting for it")
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        pass  # a file system without locks: as good as it gets


def fingerprint(root: Path, version: str) -> dict[str, object]:
    """What an environment was made from; any difference makes it stale. Settings of linters are no part of it."""
    import tomllib

    data = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    relevant = [data.get("build-system"), data.get("project"), data.get("tool", {}).get("setuptools")]
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()
    return {"script": SCRIPT_VERSION, "pyproject": digest, "python": version, "root": str(root)}


def is_stamped(stamp: Path, wanted: dict[str, object]) -> bool:
    """Whether `stamp` was written for exactly `wanted`; a damaged one was not."""
    try:
        return bool(json.loads(stamp.read_text()) == wanted)
    except (OSError, ValueError):
        return False


def version_of(python: Path) -> str:
    """The version of an interpreter, or "" if it does not run (a distribution upgrade took it away) or is too old."""
    code = f"import sys; sys.version_info >= {NEEDED} and print('%d.%d.%d' % sys.version_info[:3])"
    return _output([str(python), "-c", code])


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def make_environment(directory: Path) -> None:
    """Create or repair the virtual environment, without pip."""
    import venv

    stale = directory.exists()
    if stale and not is_environment(directory):
        fail(f"{directory} exists and is no virtual environment; move it away")
    say(f"{'renewing' if stale else 'creating'} {directory}")
    venv.EnvBuilder(symlinks=True, with_pip=False, clear=stale).create(directory)


def is_environment(directory: Path) -> bool:
    """Whether `directory` is an environment or the start of one: venv makes empty directories before pyvenv.cfg."""
    return (directory / "pyvenv.cfg").is_file() or not any(path.is_file() for path in directory.rglob("*"))


def ensure_pip(python: Path) -> None:
    """Give the environment a pip: its own, Python's bundled one, or Debian's wheel."""
    if _output([str(python), "-m", "pip", "--version"]):
        return
    say("installing pip into the environment")
    if _output([str(python), "-m", "ensurepip", "--default-pip"]):
        return
    with tempfile.TemporaryDirectory() as directory:
        wheel = find_pip_wheel(WHEELS) or fetch_pip_wheel(Path(directory))
        # A wheel is a zip: the pip inside installs itself.
        packages = Path(directory) / "packages"
        shutil.unpack_archive(wheel, packages, "zip")
        use_own_certificates(packages, HOST_CERTIFICATES)
        command = [str(python), str(packages / "pip"), "install", "--no-index", "--no-deps", "--quiet"]
        command += ["--ignore-installed", str(wheel)]  # or it finds itself installed: where it runs from
        if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
            fail(f"could not install pip from {wheel}")
    use_own_certificates(Path(_output([str(python), "-c", SITE_PACKAGES])), HOST_CERTIFICATES)


def use_own_certificates(packages: Path, host: Path) -> None:
    """Let the pip in the directory `packages` use the certificates that it brings, where there is no file `host`.

    Debian's pip looks at the host's only, cannot even be imported without, and is here without what it depends on.
    """
    certifi = packages / "pip" / "_vendor" / "certifi"
    if not host.exists() and (certifi / "cacert.pem").is_file():
        with (certifi / "core.py").open("a", encoding="utf-8") as file:
            file.write(OWN_CERTIFICATES)


def find_pip_wheel(directories: tuple[Path, ...]) -> Path | None:
    """The newest pip wheel in `directories`."""
    return max((wheel for directory in directories for wheel in directory.glob("pip-*.whl")), default=None)


def fetch_pip_wheel(directory: Path) -> Path:
    """Debian's pip wheel, fetched through apt without root into `directory`."""
    sys.path.insert(0, str(ROOT))
    from vdev.errors import PartsError
    from vdev.parts.apt import STABLE, PrivateApt, host_mirror
    from vdev.parts.cache import Cache
    from vdev.parts.fetch import host_arch

    say("this Python has no ensurepip; fetching pip from Debian")
    try:
        cache, arch = Cache(), host_arch()
        with cache.lock(say):
            apt = PrivateApt(cache.root / "apt" / arch, arch, host_mirror(), say)
            apt.update()
            wanted = [row for row in apt.resolve(STABLE, (PIP_PACKAGE,)) if row[0] == PIP_PACKAGE]
            apt.fetch(wanted, directory, PIP_PACKAGE)
    except (PartsError, OSError) as error:
        # The error's own cure is about QEMU and kernels; here only pip is wanted.
        problem = error.problem if isinstance(error, PartsError) else error
        fail(
            f"{sys.executable} has no ensurepip, and pip cannot be fetched: {problem}\n"
            "  cure: install Python's venv and pip (on Debian and Ubuntu: apt install python3-venv)"
        )
    wheel = find_pip_wheel((directory / "root/usr/share/python-wheels",))
    if wheel is None:
        fail(f"{PIP_PACKAGE} contains no pip wheel; on Debian: apt install python3-venv")
    assert wheel is not None
    return wheel


def install_project(python: Path) -> None:
    """Install the project editable with its pinned dependencies; pip's own output is the progress."""
    say("installing vdev and its pinned dependencies")
    command = [str(python), "-m", "pip", "install", "--progress-bar", "off", "--disable-pip-version-check"]
    if subprocess.run([*command, "-e", ".[dev]"], cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode:
        fail("pip failed, see above; the first run needs network and a reachable package index")


def main() -> int:
    """Bring .venv to what pyproject.toml asks for."""
    check_python()
    take_turn()
    directory = ROOT / ".venv"
    python = directory / "bin" / "python"
    version = version_of(python)
    if version and is_stamped(directory / STAMP, fingerprint(ROOT, version)):
        return 0
    if not version:
        make_environment(directory)
    ensure_pip(python)
    install_project(python)
    stamp = fingerprint(ROOT, version_of(python))
    (directory / STAMP).write_text(json.dumps(stamp, indent=1) + "\n")
    say("done")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("stopped; the next run goes on")
        sys.exit(130)
