"""Debian packages without root: apt with a private root, signatures checked by apt, unpacked by dpkg-deb.

Nothing of the host changes: lists, caches and the (empty) list of installed packages are ours; proxies and time-outs
of the host's apt configuration stay in force.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vdev.errors import PartsError
from vdev.parts.cache import Package, sha256_of
from vdev.parts.progress import Percent, Say
from vdev.parts.sources import OWN_PARTS, Mirror, choose_mirror, host_release, read_sources

STABLE = "trixie"  # Debian's current stable: the one place that names it
BACKPORTS = f"{STABLE}-backports"
LISTS_FRESH_SECONDS = 900  # several parts fetched in one go read the lists once
TAIL_NLINES = 6
DISK_FULL = "No space left on device"  # LC_ALL is ours, so tools say it in English

# The host's hooks belong to the host's own cache, and its default release to its own sources.
_CONFIG = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Default-Release;
#clear APT::Architectures;
APT::Architecture "{arch}";
APT::Architectures {{ "{arch}"; }};
APT::Sandbox::User "root";
APT::Get::Show-User-Simulation-Note "false";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::Etc "{root}/etc";
Dir::Etc::sourcelist "{root}/etc/sources.list";
Dir::Etc::sourceparts "{root}/etc/sources.list.d";
Dir::Etc::preferences "{root}/etc/preferences";
Dir::Etc::preferencesparts "{root}/etc/preferences.d";
Dir::Etc::trusted "{root}/etc/trusted.gpg";
Dir::Etc::trustedparts "{root}/etc/trusted.gpg.d";
Dir::Etc::netrc "/etc/apt/auth.conf";
Dir::Etc::netrcparts "/etc/apt/auth.conf.d";
Dir::State "{root}/state";
Dir::State::status "{root}/dpkg/status";
Dir::Cache "{root}/cache";
Dir::Cache::srcpkgcache "";
"""
_DIRECTORIES = (
    "etc/sources.list.d",
    "etc/preferences.d",
    "etc/trusted.gpg.d",
    "state/lists/partial",
    "cache/archives/partial",
    "dpkg",
)


@dataclass(frozen=True)
class Host:
    """Where the host's own files are; tests point it elsewhere."""

    os_release: Path = Path("/etc/os-release")
    etc_apt: Path = Path("/etc/apt")


def host_mirror(host: Host | None = None) -> Mirror:
    """The Debian mirror of this host.

    :raise PartsError: not a Debian host, no apt, no source or no keyring; the cure names the config's keys.
    """
    host = host or Host()
    identity, codename = host_release(host.os_release)
    if identity != "debian":
        raise PartsError("apt", f"this host is {identity or 'unknown'}, not Debian: no parts can be fetched", OWN_PARTS)
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise PartsError("apt", f"{tool} is not installed: no parts can be fetched", OWN_PARTS)
    return choose_mirror(read_sources(host.etc_apt), codename)


class PrivateApt:
    """One private apt root for packages of one architecture, from `suites` of the mirror."""

    def __init__(
        self, root: Path, arch: str, mirror: Mirror, say: Say, suites: Sequence[str] = (STABLE, BACKPORTS)
    ) -> None:
        self._root = root
        self._say = say
        self._config = root / "apt.conf"
        if '"' in str(root):
            raise PartsError("cache", f"{root}: apt cannot have a quote in a path", "set VDEV_CACHE elsewhere")
        for name in _DIRECTORIES:
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "dpkg" / "status").write_text("")
        self._config.write_text(_CONFIG.format(root=root, arch=arch))
        source = (
            f"Types: deb\nURIs: {mirror.uri}\nSuites: {' '.join(suites)}\n"
            f"Components: main\nSigned-By: {mirror.signed_by}\n"
        )
        path = root / "etc/sources.list.d/vdev.sources"
        if not path.is_file() or path.read_text() != source:
            path.write_text(source)
            self._stamp.unlink(missing_ok=True)

    @property
    def _stamp(self) -> Path:
        return self._root / "lists-fresh"

    def update(self) -> None:
        """Read the archive's lists, unless that was done minutes ago."""
        if self._stamp.is_file() and 0 <= time.time() - self._stamp.stat().st_mtime < LISTS_FRESH_SECONDS:
            return
        self._say("reading Debian's package lists")
        self._run(["apt-get", "update", "-q"])
        self._stamp.touch()

    def resolve(self, suite: str, names: Sequence[str]) -> list[tuple[str, str]]:
        """(name, version) of `names` and all they depend on, as apt would install them from `suite`."""
        command = ["apt-get", "install", "-s", "-qq", "-y", "--no-install-recommends", "-t", suite, *names]
        try:
            output = self._run(command)
        except PartsError:
            self._say("the package lists do not do; reading them anew")  # damaged, or of another day
            self._forget_lists()
            self.update()
            output = self._run(command)
        return re.findall(r"^Inst (\S+) \((\S+) ", output, re.MULTILINE)

    def _forget_lists(self) -> None:
        self._stamp.unlink(missing_ok=True)
        for path in (self._root / "state/lists").glob("*_*"):
            path.unlink(missing_ok=True)

    def fetch(self, wanted: Sequence[tuple[str, str]], directory: Path, what: str) -> list[Package]:
        """Download the packages into `directory` and unpack them there below `root/`; the .debs are removed.

        :raise PartsError: a download failed, or a file is not what the signed lists say.
        """
        with tempfile.TemporaryDirectory(dir=directory) as downloads:
            packages = self.download(wanted, Path(downloads), what)
            self._say(f"unpacking {what} ({len(packages)} packages)")
            for deb in sorted(Path(downloads).glob("*.deb")):
                self._run(["dpkg-deb", "-x", str(deb), str(directory / "root")])
        return packages

    def download(self, wanted: Sequence[tuple[str, str]], directory: Path, what: str) -> list[Package]:
        """Download the packages into `directory`, as .debs.

        :raise PartsError: a download failed, or a file is not what the signed lists say.
        """
        exact = [f"{name}={version}" for name, version in wanted]
        stanzas = self._run(["apt-cache", "show", "--no-all-versions", *exact])
        percent = Percent(f"downloading {what}", self._say)
        try:
            self._run(["apt-get", "download", "-q", *exact], directory, percent)
        except PartsError:
            self._stamp.unlink(missing_ok=True)  # the archive may have moved on since
            raise
        return check_debs(directory, stanzas)

    def _run(self, command: list[str], cwd: Path | None = None, percent: Percent | None = None) -> str:
        if command[0].startswith("apt"):
            command = [command[0], "-c", str(self._config), *command[1:]]
        environ = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        if percent is not None:
            command[1:1] = ["-o", "APT::Status-Fd=1"]
        tail: list[str] = []
        with subprocess.Popen(
            command, cwd=cwd, env=environ, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            try:
                output = _follow(process, tail, percent.update if percent else None)
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            detail = "\n    ".join(tail[-TAIL_NLINES:])
            problem = f"{command[0]} failed with status {process.returncode}:\n    {detail}"
            if DISK_FULL in output:
                raise PartsError("apt", problem, f"free space for {self._root}, or set VDEV_CACHE to another disk")
            raise PartsError("apt", problem, f"check the network and apt's configuration, or {OWN_PARTS}")
        return output


def _follow(process: subprocess.Popen[str], tail: list[str], update: Callable[[float], None] | None) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        status = re.match(r"dlstatus:[^:]*:([0-9.]+):", line)
        if status is not None and update is not None:
            update(float(status[1]))
            continue
        lines.append(line)
        if line.strip():
            tail.append(line.strip())
            del tail[:-TAIL_NLINES]
    return "".join(lines)


def check_debs(directory: Path, stanzas: str) -> list[Package]:
    """Compare every .deb in `directory` with the SHA-256 in `stanzas` (apt-cache show), both ways.

    :raise PartsError: one is missing, unknown, or differs.
    """
    expected: dict[str, tuple[str, str]] = {}
    for stanza in stanzas.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|SHA256): (\S+)$", stanza, re.MULTILINE))
        if len(fields) == 3:
            expected[fields["SHA256"]] = (fields["Package"], fields["Version"])
    found = {sha256_of(deb): deb.name for deb in sorted(directory.glob("*.deb"))}
    for digest in found.keys() - expected.keys():
        raise PartsError("apt", f"{found[digest]} is not the file that Debian's signed lists describe", "fetch again")
    for digest in expected.keys() - found.keys():
        raise PartsError("apt", f"{' '.join(expected[digest])} was not downloaded", "fetch again")
    return sorted((Package(*expected[digest], sha256=digest) for digest in found), key=lambda package: package.name)
