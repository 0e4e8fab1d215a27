"""Reading the host's apt sources and choosing Debian's main archive among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdev.errors import PartsError
from vdev.parts.apt import Host, PrivateApt, check_debs, host_mirror
from vdev.parts.cache import sha256_of
from vdev.parts.progress import quiet
from vdev.parts.sources import Mirror, Source, choose_mirror, host_release, parse_deb822, parse_one_line, read_sources

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEB822 = f"""\
Types: deb deb-src
# a comment inside a stanza
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: {KEYRING}

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://src.example/debian
Suites: bookworm
Components: main
"""


@pytest.fixture
def keyring(tmp_path: Path) -> Path:
    path = tmp_path / "keyring.gpg"
    path.touch()
    return path


def test_a_deb822_file_gives_its_enabled_binary_stanzas() -> None:
    sources = parse_deb822(DEB822)

    assert [source.uris for source in sources] == [
        ("http://mirror.example/debian/",),
        ("http://mirror.example/debian-security",),
    ]
    assert sources[0].suites == ("bookworm", "bookworm-updates")
    assert sources[0].components == ("main", "contrib")
    assert sources[0].signed_by == KEYRING


def test_a_deb822_key_block_is_kept_whole() -> None:
    text = (
        "Types: deb\nURIs: http://m.example/debian\nSuites: sid\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP PUBLIC KEY BLOCK-----\n"
    )

    source = parse_deb822(text)[0]

    assert source.signed_by.splitlines()[0] == " -----BEGIN PGP PUBLIC KEY BLOCK-----"
    assert source.signed_by.splitlines()[-1] == " -----END PGP PUBLIC KEY BLOCK-----"


def test_one_line_entries_are_read_with_and_without_options() -> None:
    text = (
        "# deb http://off.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bookworm main contrib # why\n"
        "deb\thttp://b.example/debian\tbookworm-updates main\n"
        "deb-src http://a.example/debian bookworm main\n"
    )

    assert parse_one_line(text) == [
        Source(("http://a.example/debian",), ("bookworm",), ("main", "contrib"), "/k.gpg"),
        Source(("http://b.example/debian",), ("bookworm-updates",), ("main",), ""),
    ]


def test_both_styles_are_read_from_the_hosts_directory_and_other_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://one.example/debian trixie main\n")
    (tmp_path / "sources.list.d/two.sources").write_text(DEB822)
    (tmp_path / "sources.list.d/three.list.disabled").write_text("deb http://three.example/debian trixie main\n")

    uris = [source.uris[0] for source in read_sources(tmp_path)]

    assert uris[0] == "http://one.example/debian"
    assert len(uris) == 3


def test_the_security_archive_and_third_parties_are_passed_over(keyring: Path) -> None:
    third_party = Source(("http://third.example/apt",), ("bookworm",), ("main",), "/usr/share/keyrings/third.gpg")
    suite_of_its_own = Source(("http://vendor.example/apt",), ("vendor",), ("main",))

    mirror = choose_mirror([third_party, suite_of_its_own, *parse_deb822(DEB822)], "bookworm", [keyring])

    assert mirror.uri == "http://mirror.example/debian"
    assert mirror.signed_by == str(keyring)


def test_a_release_named_by_its_alias_is_found(keyring: Path) -> None:
    source = Source(("http://m.example/debian",), ("stable",), ("main",))

    assert choose_mirror([source], "trixie", [keyring]).uri == "http://m.example/debian"


def test_a_mirror_signed_with_its_own_key_keeps_that_key(keyring: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.gpg"
    own.touch()
    source = Source(("http://m.example/debian",), ("trixie",), ("main",), str(own))

    assert choose_mirror([source], "trixie", [keyring]).signed_by == str(own)


def test_no_debian_archive_is_refused_naming_the_config_keys(keyring: Path) -> None:
    with pytest.raises(PartsError, match="no Debian archive") as caught:
        choose_mirror([Source(("http://v.example/apt",), ("vendor",), ("main",))], "trixie", [keyring])

    for key in ("vm.qemu", "vm.kernel", "vm.initrd"):
        assert key in caught.value.cure


def test_a_missing_keyring_is_refused_with_the_package_to_install(tmp_path: Path) -> None:
    source = Source(("http://m.example/debian",), ("trixie",), ("main",))

    with pytest.raises(PartsError, match="no keyring") as caught:
        choose_mirror([source], "trixie", [tmp_path / "absent.gpg"])

    assert "debian-archive-keyring" in caught.value.cure


def test_the_host_is_known_by_os_release(tmp_path: Path) -> None:
    path = tmp_path / "os-release"
    path.write_text('PRETTY_NAME="Debian"\nID=debian\nVERSION_CODENAME="bookworm"\n')

    assert host_release(path) == ("debian", "bookworm")
    assert host_release(tmp_path / "absent") == ("", "")


def test_a_host_that_is_not_debian_is_refused_naming_the_config_keys(tmp_path: Path) -> None:
    path = tmp_path / "os-release"
    path.write_text("ID=fedora\n")

    with pytest.raises(PartsError, match="fedora, not Debian") as caught:
        host_mirror(Host(path, tmp_path))

    for key in ("vm.qemu", "vm.kernel", "vm.initrd"):
        assert key in caught.value.cure


def test_a_host_without_apt_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "os-release"
    path.write_text("ID=debian\n")
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(PartsError, match="apt-get is not installed"):
        host_mirror(Host(path, tmp_path))


def test_a_full_disk_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt_get = tmp_path / "apt-get"
    apt_get.write_text("#!/bin/sh\necho 'E: Write error - write (28: No space left on device)'\nexit 100\n")
    apt_get.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(PartsError, match="status 100") as caught:
        PrivateApt(tmp_path / "root", "amd64", Mirror("http://m.example/debian", "/k.gpg"), quiet).update()

    assert "free space" in caught.value.cure


def test_damaged_lists_are_read_anew_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt_get = tmp_path / "apt-get"
    lists = tmp_path / "root/state/lists"
    apt_get.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *update*) echo good > {lists}/m_Packages; exit 0 ;; esac\n'
        f'read -r state < {lists}/m_Packages; test "$state" = good || exit 100\n'
        "echo 'Inst tool (1.0 Debian:13/stable [amd64])'\n"
    )
    apt_get.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    apt = PrivateApt(tmp_path / "root", "amd64", Mirror("http://m.example/debian", "/k.gpg"), said.append)
    apt.update()
    (lists / "m_Packages").write_text("damaged\n")

    assert apt.resolve("stable", ["tool"]) == [("tool", "1.0")]
    assert said.count("reading Debian's package lists") == 2


def _stanza(deb: Path, digest: str = "") -> str:
    return f"Package: {deb.name.split('_')[0]}\nVersion: 1.0\nSHA256: {digest or sha256_of(deb)}\nSize: 3"


def test_a_deb_that_matches_the_signed_lists_is_taken(tmp_path: Path) -> None:
    deb = tmp_path / "tool_1.0_amd64.deb"
    deb.write_bytes(b"deb")

    packages = check_debs(tmp_path, _stanza(deb))

    assert [(package.name, package.version, package.sha256) for package in packages] == [
        ("tool", "1.0", sha256_of(deb))
    ]


def test_a_deb_with_a_wrong_hash_is_refused(tmp_path: Path) -> None:
    deb = tmp_path / "tool_1.0_amd64.deb"
    deb.write_bytes(b"not what was signed")

    with pytest.raises(PartsError, match="not the file that Debian's signed lists describe"):
        check_debs(tmp_path, _stanza(deb, "0" * 64))


def test_a_deb_that_did_not_arrive_is_named(tmp_path: Path) -> None:
    with pytest.raises(PartsError, match=r"tool 1\.0 was not downloaded"):
        check_debs(tmp_path, _stanza(tmp_path / "tool_1.0_amd64.deb", "0" * 64))
