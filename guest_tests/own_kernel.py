"""A Linux kernel as a developer builds his own: small, everything built in, no modules. Built without root.

    python -m guest_tests.own_kernel [--without VIRTIO_IOMMU]

prints the path of the built tree; the bzImage is in its arch/x86/boot. `make demo KERNEL=PATH` boots either.
The source is Debian's linux-source package, the configuration own_kernel.config; gcc, make, binutils and the C
library's headers must be installed, what else a kernel is built with is fetched and unpacked privately.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vdev.errors import PartsError
from vdev.parts.apt import STABLE, Host, PrivateApt, host_mirror
from vdev.parts.cache import Cache, Manifest, digests
from vdev.parts.fetch import GUEST_ARCH, Recipe, fetch_packages, host_arch, only
from vdev.parts.kernel import image_version
from vdev.parts.progress import Say, to_stderr
from vdev.parts.sources import host_release

FRAGMENT = Path(__file__).with_name("own_kernel.config")
BZ_IMAGE = "arch/x86/boot/bzImage"
SOURCE = "linux-source-6.12"  # of STABLE
TARBALL = f"root/usr/src/{SOURCE}.tar.xz"
INSTALLED = ("gcc", "make", "ld", "perl", "tar", "xz")
TOOLS = ("flex", "bison", "m4", "bc", "libelf-dev")
# They run on the host, against its C library; of what they depend on only libraries a host may lack are taken.
_TOOL_PREFIXES = (*TOOLS, "libelf", "libreadline", "libtinfo", "libsigsegv", "libzstd1", "zlib1g")
NEEDED_NBYTES = 2 << 30  # source and objects
BUILD_SECONDS = 3600.0
PROGRESS_SECONDS = 15.0
NTAIL = 6
PART = "own kernel"


@dataclass(frozen=True)
class Workshop:
    """What a kernel is built from and with; `environ` goes on top of the process's own."""

    tarball: Path
    environ: Mapping[str, str]
    make_words: tuple[str, ...]
    name: str  # stands for all of it in the recipe's hash


def without(fragment: str, options: Iterable[str]) -> str:
    """The fragment with `options` (as `VIRTIO_IOMMU`) switched off.

    :raise PartsError: the fragment has no such option.
    """
    for option in options:
        line = re.compile(rf"^CONFIG_{re.escape(option)}=.*$", re.MULTILINE)
        if not line.search(fragment):
            raise PartsError(PART, f"{FRAGMENT.name} has no option {option}", "name one as it is there, less CONFIG_")
        fragment = line.sub(f"# CONFIG_{option} is not set", fragment)
    return fragment


def dropped(fragment: str, config: str) -> list[str]:
    """The fragment's lines that did not make it into `config`, which kconfig made of it."""
    have = set(config.splitlines())
    on = set(re.findall(r"^(CONFIG_\w+)=", config, re.MULTILINE))
    lost = [line for line in re.findall(r"^CONFIG_\w+=.*$", fragment, re.MULTILINE) if line not in have]
    # An option that cannot be chosen has no line at all; that is off, too.
    off = re.findall(r"^# (CONFIG_\w+) is not set$", fragment, re.MULTILINE)
    return lost + [f"# {name} is not set" for name in off if name in on]


def own_kernel(say: Say, fragment: str | None = None, cache: Cache | None = None) -> Path:
    """The tree of the built kernel, cached by its recipe. Blocks for minutes the first time.

    :raise PartsError: something cannot be fetched, is not installed, or the kernel does not build.
    """
    cache = cache or Cache()
    fragment = FRAGMENT.read_text() if fragment is None else fragment
    workshop = find_workshop(cache, say)
    digest = hashlib.sha256(f"{workshop.name}\n{fragment}".encode()).hexdigest()[:16]
    part = f"kernel-{digest}"
    built = Cache(cache.root / "own-kernels")  # a lock of its own: others may fetch while this compiles

    def build(directory: Path) -> Manifest:
        log = built.root / f"{part}.log"
        build_tree(workshop, fragment, directory, log, say)
        version = image_version(directory / "tree" / BZ_IMAGE)
        return Manifest(part, version, (), digests(directory, f"tree/{BZ_IMAGE}"))

    return built.get(part, build, say) / "tree"


def find_workshop(cache: Cache, say: Say) -> Workshop:
    """The kernel's source and the tools, fetched if need be. Raises PartsError."""
    missing = [tool for tool in INSTALLED if shutil.which(tool) is None]
    if missing:
        cure = "install them (on Debian: build-essential, perl and xz-utils)"
        raise PartsError(PART, f"not installed, but needed to build a kernel: {', '.join(missing)}", cure)
    if host_arch() != GUEST_ARCH:
        raise PartsError(PART, f"a {host_arch()} host would have to cross-compile", "build your kernel elsewhere")
    source, tools = _source(cache, say), _tools(cache, say)
    root = tools / "root"
    libraries = [str(root / name / "x86_64-linux-gnu") for name in ("usr/lib", "lib")]
    compiler = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return Workshop(
        tarball=source / TARBALL,
        environ={
            "PATH": f"{root / 'usr/bin'}:{os.environ.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": ":".join(libraries),
            "BISON_PKGDATADIR": str(root / "usr/share/bison"),
            "M4": str(root / "usr/bin/m4"),
        },
        # objtool, which every 64-bit x86 kernel is built with, looks for libelf where pkg-config says.
        make_words=(f"LIBELF_FLAGS=-I{root}/usr/include", f"LIBELF_LIBS=-L{libraries[0]} -lelf"),
        name=f"{source.name} {tools.name} {compiler}",
    )


def _source(cache: Cache, say: Say) -> Path:
    recipe = Recipe("linux-source", GUEST_ARCH, STABLE, (SOURCE,), SOURCE, keep=only((SOURCE,)))
    return cache.get(recipe.part, lambda directory: fetch_packages(recipe, cache, directory, say), say)


def _tools(cache: Cache, say: Say) -> Path:
    _, codename = host_release(Host().os_release)
    part = f"kernel-build-tools/{codename}"

    def fetch(directory: Path) -> Manifest:
        mirror = host_mirror()
        say(f"fetching {part} from Debian {codename} into {cache.root}")
        apt = PrivateApt(cache.root / "apt" / f"{GUEST_ARCH}-{codename}", GUEST_ARCH, mirror, say, suites=(codename,))
        apt.update()
        found = [row for row in apt.resolve(codename, TOOLS) if row[0].startswith(_TOOL_PREFIXES)]
        packages = apt.fetch(found, directory, "kernel build tools")
        return Manifest(part, dict(found)["libelf-dev"], tuple(packages), digests(directory, "root/usr/bin/flex"))

    return cache.get(part, fetch, say)


def build_tree(workshop: Workshop, fragment: str, directory: Path, log: Path, say: Say) -> None:
    """Build `fragment`'s kernel in `directory`/tree; all that the build says goes to `log`.

    :raise PartsError: an option cannot be had, or the build fails or takes too long.
    """
    if (free := shutil.disk_usage(directory).free) < NEEDED_NBYTES:
        problem = f"{directory} has {free >> 20} MiB free; building needs {NEEDED_NBYTES >> 20} MiB"
        raise PartsError(PART, problem, "free space there, or set VDEV_CACHE to another disk")
    source, tree, wanted = directory / "source", directory / "tree", directory / "fragment"
    source.mkdir()
    tree.mkdir()
    wanted.write_text(fragment)
    make = ["make", "-C", str(source), f"O={tree}", f"-j{os.cpu_count() or 1}", *workshop.make_words]
    run = _Run(workshop.environ, log, say)
    say(f"unpacking {workshop.tarball.name}")
    run(["tar", "-xf", str(workshop.tarball), "-C", str(source), "--strip-components=1"])
    run([*make, f"KCONFIG_ALLCONFIG={wanted}", "allnoconfig"])
    if lost := dropped(fragment, (tree / ".config").read_text()):
        cure = "what they depend on is off, another option switches them on, or this kernel has no such options"
        raise PartsError(PART, f"kconfig dropped {', '.join(lost)}", cure)
    say("building the kernel: some minutes")
    run([*make, "bzImage"])
    if not (tree / BZ_IMAGE).is_file():
        raise PartsError(PART, f"make ended well and left no {BZ_IMAGE}", f"see {log}")
    shutil.rmtree(source)
    (tree / "source").unlink(missing_ok=True)  # kbuild's link to it


class _Run:
    """Runs commands one after another at low priority, their output in one log, with a word of progress."""

    def __init__(self, environ: Mapping[str, str], log: Path, say: Say) -> None:
        self._environ = {**os.environ, "LC_ALL": "C", **environ}
        for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):  # of the make that started us: no job server of its
            self._environ.pop(name, None)
        self._log = log
        self._say = say
        self._started = time.monotonic()
        log.write_bytes(b"")

    def __call__(self, command: Sequence[str]) -> None:
        with self._log.open("ab") as file:
            process = subprocess.Popen(
                ["nice", "-n", "10", *command], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                env=self._environ, start_new_session=True,
            )  # fmt: skip
            try:
                self._wait(process)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # make's children too
                process.wait()
                raise
        if process.returncode != 0:
            problem = f"{command[0]} ended with status {process.returncode}:\n    {self._tail()}"
            raise PartsError(PART, problem, f"the whole build is in {self._log}")

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        while time.monotonic() - self._started < BUILD_SECONDS:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PROGRESS_SECONDS)
                return
            lines = self._log.read_text(errors="replace").splitlines()
            ncompiled = sum(line.startswith("  CC ") for line in lines)
            self._say(f"{time.monotonic() - self._started:4.0f} s: {ncompiled} files compiled")
        raise PartsError(PART, f"not built within {BUILD_SECONDS:.0f} s", f"see {self._log}; is the host overloaded?")

    def _tail(self) -> str:
        """The lines that look like the cause, else the last ones."""
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        guilty = [line for line in lines if re.search(r"error:|not found|No space left", line)]
        return "\n    ".join((guilty or lines)[-NTAIL:])


def main(argv: Sequence[str] | None = None) -> int:
    """Build, and print where."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m guest_tests.own_kernel", description=about)
    parser.add_argument("--without", action="append", default=[], metavar="OPTION", help="leave this option out")
    arguments = parser.parse_args(argv)
    try:
        tree = own_kernel(to_stderr, without(FRAGMENT.read_text(), arguments.without))
    except PartsError as error:
        to_stderr(f"{error}")
        return 1
    except KeyboardInterrupt:
        to_stderr("stopped")
        return 130
    sys.stdout.write(f"{tree}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
