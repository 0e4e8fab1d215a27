"""The guest's userland: busybox and a trimmed Python from Debian packages, kept as one ready cpio archive."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vdev.parts.apt import STABLE
from vdev.parts.cache import Cache, Manifest, digests
from vdev.parts.cpio import CpioWriter
from vdev.parts.fetch import GUEST_ARCH, Recipe, fetch_packages, only
from vdev.parts.progress import Say

PART = "guest-python"
PYTHON = "python3.13"  # the Python of STABLE
ARCHIVE = "userland.cpio"
ROOT = "root"
COMPILE_SECONDS = 300
_PACKAGES = (
    "busybox-static", f"{PYTHON}-minimal", f"lib{PYTHON}-minimal", f"lib{PYTHON}-stdlib",
    "libc6", "libexpat1", "zlib1g", "libffi8", "libbz2-1.0", "liblzma5", "libuuid1",
)  # fmt: skip
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
# What a payload can need of the shared libraries; the rest of libc6 (gconv, audit, profiling) stays behind.
_KEPT_LIBRARIES = re.compile(r"(ld-linux-x86-64|lib(c|m|dl|pthread|rt|util|z|expat|ffi|bz2|lzma|uuid))[.-].*")
_DROPPED_MODULES = (
    "_pyrepl", "config-3.13-x86_64-linux-gnu", "curses", "dbm", "ensurepip", "idlelib", "lib2to3", "pydoc_data",
    "sqlite3", "test", "tkinter", "turtledemo", "venv", "wsgiref", "xmlrpc", "EXTERNALLY-MANAGED", "LICENSE.txt",
    "antigravity.py", "pydoc.py", "sitecustomize.py", "turtle.py", "this.py", "_pydecimal.py",
)  # fmt: skip
# Extension modules whose libraries are not shipped, or which only test the interpreter.
_DROPPED_EXTENSIONS = re.compile(
    r"(_ssl|_hashlib|_sqlite3|_dbm|_curses\w*|readline|_codecs_(?!iso)\w+|_?xx\w+|_(ctypes_)?test\w*)\."
)
_DROPPED_ENCODINGS = re.compile(
    r"(big5|cp(?!437|1252)\d|euc_|gb|hz|iso2022|johab|koi8|mac_|ptcp|shift_jis|tis_|kz1048).*"
)


def guest_userland(cache: Cache, say: Say) -> Path:
    """The directory of the userland part; `ARCHIVE` in it is a complete cpio archive without /init.

    `ROOT` in it is the same as files, because the guest's Python runs on this host, too: see `GuestPython`.

    :raise PartsError: it cannot be had.
    """
    recipe = Recipe(PART, GUEST_ARCH, STABLE, _PACKAGES, f"{PYTHON}-minimal", keep=only(_PACKAGES))

    def fetch(directory: Path) -> Manifest:
        manifest = fetch_packages(recipe, cache, directory, say)
        root = directory / ROOT
        trim(root)
        compile_stdlib(root, say)
        with (directory / ARCHIVE).open("wb") as file:
            write_archive(root, CpioWriter(file))
        return replace(manifest, files=digests(directory, ARCHIVE, f"{ROOT}/usr/bin/{PYTHON}"))

    return cache.get(PART, fetch, say)


@dataclass(frozen=True)
class GuestPython:
    """The guest's Python as a command of this host: `argv`, then arguments, with `env` for its whole environment.

    What it compiles is good in the guest, and what it collects is what the guest would.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]

    @classmethod
    def in_root(cls, root: Path) -> GuestPython:
        """Of an unpacked userland; through its own loader, as the host's libraries may be older."""
        libraries = root / _LIBRARIES
        loader = str(libraries / "ld-linux-x86-64.so.2")
        argv = (loader, "--library-path", str(libraries), str(root / "usr/bin" / PYTHON))
        return cls(argv, {"PYTHONHOME": str(root / "usr"), "LC_ALL": "C.UTF-8"})

    def compile(self, root: Path, directory: Path, guest_root: str, seconds: float) -> str:
        """Compile all of `directory`, in which `root` will be `guest_root` in the guest; what went wrong, or nothing.

        Without .pyc files the guest spends many seconds compiling. Unchecked hashes: no time stamps to get stale.
        """
        command = [
            *self.argv, "-S", "-B", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash",
            "-s", str(root), "-p", guest_root, str(directory),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, env=dict(self.env), capture_output=True, text=True, timeout=seconds, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode == 0:
            return ""
        return done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"


def trim(root: Path) -> None:
    """Leave in the unpacked packages only what a guest payload can use."""
    stdlib = root / "usr/lib" / PYTHON
    keep = {root / "usr/bin", root / "usr/lib", root / "usr/lib64"}
    doomed = [path for path in (*root.glob("*"), *root.glob("usr/*")) if path not in keep and path != root / "usr"]
    doomed += [path for path in root.glob("usr/bin/*") if path.name not in ("busybox", PYTHON)]
    doomed += [path for path in root.glob("usr/lib/*") if path not in (stdlib, root / _LIBRARIES)]
    doomed += [path for path in (root / _LIBRARIES).glob("*") if not _KEPT_LIBRARIES.fullmatch(path.name)]
    doomed += [stdlib / name for name in _DROPPED_MODULES]
    doomed += [path for path in stdlib.glob("lib-dynload/*") if _DROPPED_EXTENSIONS.match(path.name)]
    doomed += [path for path in stdlib.glob("encodings/*") if _DROPPED_ENCODINGS.match(path.name)]
    for path in doomed:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def compile_stdlib(root: Path, say: Say) -> None:
    """Compile the stdlib by the guest's own Python, run here through its own loader."""
    say("compiling the guest's Python library")
    problem = GuestPython.in_root(root).compile(root, root / "usr/lib" / PYTHON, "/", COMPILE_SECONDS)
    if problem:
        say(f"the guest's Python does not run on this host, its guests will start slowly: {problem.splitlines()[-1]}")


def write_archive(root: Path, cpio: CpioWriter) -> None:
    """The userland as an archive: merged /usr, device nodes for the first moment, mount points."""
    for name in ("bin", "sbin", "lib", "lib64"):
        cpio.symlink(name, f"usr/{name}")
    cpio.tree(root)
    cpio.symlink("usr/sbin", "bin")
    cpio.symlink("usr/bin/sh", "busybox")
    cpio.symlink("usr/bin/python3", PYTHON)
    for name in ("proc", "sys", "dev/hugepages", "dev/pts", "run", "etc", "root", "payload", "modules"):
        cpio.directory(name)
    cpio.directory("tmp", 0o1777)
    cpio.device("dev/console", 5, 1)
    cpio.device("dev/null", 1, 3, 0o666)
    cpio.close()
