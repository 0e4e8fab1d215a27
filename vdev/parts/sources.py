"""The host's own apt sources: which mirror of the Debian archive it uses, and the keyring that signs it.

Formats: sources.list(5), both the one-line style and the deb822 style.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vdev.errors import PartsError

OWN_PARTS = "give your own: set vm.qemu, vm.kernel and vm.initrd in the config"
KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
# Suites by which a host may call its release besides its code name.
ALIASES = ("stable", "oldstable", "oldoldstable", "testing", "unstable", "sid")
EMBEDDED_KEY = "-----BEGIN PGP"


@dataclass(frozen=True)
class Source:
    """One `deb` entry: URIs, suites and components as written; `signed_by` is a path or an embedded key block."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""


@dataclass(frozen=True)
class Mirror:
    """Where the Debian archive is fetched from and what proves it; `signed_by` is ready for a deb822 field."""

    uri: str
    signed_by: str


@dataclass
class _Stanza:
    fields: dict[str, str] = field(default_factory=dict)
    last: str = ""

    def add(self, line: str) -> None:
        if line[:1].isspace():
            self.fields[self.last] = self.fields.get(self.last, "") + "\n" + line.rstrip()
        elif ":" in line:
            name, _, value = line.partition(":")
            self.last = name.strip().lower()
            self.fields[self.last] = value.strip()


def parse_one_line(text: str) -> list[Source]:
    """Sources of a `.list` file. Lines that are not `deb URI SUITE COMPONENT...` are passed over."""
    found = []
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[([^]]*)\]\s*)?(\S+)\s+(\S+)\s*(.*)", line.split("#")[0].strip())
        if match is None:
            continue
        options = dict(item.split("=", 1) for item in (match[1] or "").split() if "=" in item)
        signed_by = {key.lower(): value for key, value in options.items()}.get("signed-by", "")
        found.append(Source((match[2],), (match[3],), tuple(match[4].split()), signed_by))
    return found


def parse_deb822(text: str) -> list[Source]:
    """Sources of a `.sources` file: enabled stanzas of type deb."""
    found = []
    for fields in _stanzas(text):
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        uris, suites = fields.get("uris", "").split(), fields.get("suites", "").split()
        if uris and suites:
            components = tuple(fields.get("components", "").split())
            found.append(Source(tuple(uris), tuple(suites), components, fields.get("signed-by", "").strip("\n")))
    return found


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    stanza = _Stanza()
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue  # a comment may stand inside a stanza
        if line.strip():
            stanza.add(line)
        elif stanza.fields:
            yield stanza.fields
            stanza = _Stanza()


def read_sources(etc_apt: Path) -> list[Source]:
    """All sources the host's apt would read below `etc_apt`."""
    found: list[Source] = []
    for path in [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        found += parse_deb822(text) if path.suffix == ".sources" else parse_one_line(text)
    return found


def choose_mirror(sources: Iterable[Source], codename: str, keyrings: Iterable[Path] = KEYRINGS) -> Mirror:
    """The mirror of Debian's main archive among `sources`, for a host whose release is `codename`.

    Security archives have no backports; third parties use Debian's suite names but sign with keys of their own.
    :raise PartsError: none found, or no keyring to check it with.
    """
    suites = {codename, *ALIASES} - {""}
    scored: list[tuple[bool, bool, bool, int, str, Source]] = []
    for source in sources:
        if "main" not in source.components or not suites & set(source.suites):
            continue
        debians_key = "debian-archive" in source.signed_by
        for uri in (uri.rstrip("/") for uri in source.uris):
            if "security" in uri.rsplit("/", 1)[-1] or uri.startswith("cdrom:"):
                continue
            scored.append((debians_key, not source.signed_by, uri.endswith("/debian"), -len(scored), uri, source))
    if not scored:
        problem = f"apt's sources name no Debian archive for {codename or 'this release'}"
        raise PartsError("apt", problem, f"add Debian's main archive to apt's sources, or {OWN_PARTS}")
    best = max(scored, key=lambda row: row[:4])
    return Mirror(best[4], _key_for(best[5].signed_by, keyrings))


def _key_for(signed_by: str, keyrings: Iterable[Path]) -> str:
    # A keyring of one release of Debian may lack the key of the newest, so Debian's whole keyring goes first.
    theirs = signed_by and "debian-archive" not in signed_by
    if theirs and (EMBEDDED_KEY in signed_by or Path(signed_by.split()[0]).is_file()):
        return signed_by
    for keyring in keyrings:
        if keyring.is_file():
            return str(keyring)
    problem = "no keyring to check Debian's signatures with"
    raise PartsError("apt", problem, f"install the package debian-archive-keyring, or {OWN_PARTS}")


def host_release(os_release: Path) -> tuple[str, str]:
    """(ID, VERSION_CODENAME) of os-release(5); empty strings where absent."""
    values = {}
    if os_release.is_file():
        for line in os_release.read_text().splitlines():
            name, _, value = line.partition("=")
            values[name.strip()] = value.strip().strip("\"'")
    return values.get("ID", ""), values.get("VERSION_CODENAME", "")
