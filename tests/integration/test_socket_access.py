"""`sockets` at work: who owns what is made, who may connect, and what is said when it cannot be.

Tests with other users need root to become them; what needs none runs for everybody.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.serve_process import ONE_UNIT, serving
from tests.support.vfio_scene import PAGE, GuestRam
from vdev.errors import ConfigError, PeerError
from vdev.transports import access as access_module
from vdev.transports import identity, ram
from vdev.transports.access import OURS, SocketAccess, peer_groups, resolve_access
from vdev.transports.identity import VmIdentity
from vdev.transports.listener import Listener, write_beside

OWNER, GROUP, STRANGER = 4711, 4712, 4713  # nobody's on any host
VHOST_UNIT = ONE_UNIT.replace("- name: iommu0", "- {name: iommu0, attach: vhost-user}")
# The first message of each attachment's front end.
VERSION = b"\0\0\1\0" + (22).to_bytes(4, "little") + bytes(8) + bytes(4) + b"{}"
GET_FEATURES = struct.pack("<3I", 1, 1, 0)
FIRST = {ONE_UNIT: VERSION, VHOST_UNIT: GET_FEATURES}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become other users")

# Says what a function's socket, given the hexadecimal message, and the control socket do with this process: "refused",
# "closed" or "served".
CALLER = """
import json, socket, sys
def call(path, data):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(5)
        try:
            s.connect(path)
        except OSError:
            return "refused"
        try:
            s.sendall(data)
            return "served" if s.recv(1) else "closed"
        except OSError:
            return "closed"
print(call(sys.argv[1] + "/iommu0.sock", bytes.fromhex(sys.argv[2])))
print(call(sys.argv[1] + "/control.sock", b'{"execute": "query-status"}\\n'))
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory any user may go through."""
    for directory in (tmp_path, *tmp_path.parents[:2]):
        if directory != Path("/tmp"):
            directory.chmod(0o711)
    return tmp_path


def call_as(directory: Path, uid: int, gid: int, groups: list[int], first: bytes = VERSION) -> list[str]:
    done = subprocess.run(
        ["/usr/bin/env", "python3", "-c", CALLER, str(directory), first.hex()], user=uid, group=gid,
        extra_groups=groups, cwd="/", capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip
    return done.stdout.split()


def mode_of(path: Path) -> tuple[int, int, int]:
    status = os.lstat(path)
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


attachments = pytest.mark.parametrize("units", [ONE_UNIT, VHOST_UNIT], ids=["vfio-user", "vhost-user"])


@as_root
@attachments
def test_a_group_is_given_directory_sockets_and_table(base: Path, units: str) -> None:
    with serving(f"sockets: {{group: {GROUP}}}\n{units}", base / "run") as process:
        assert mode_of(process.directory) == (0o750, 0, GROUP)
        sockets = {path.name: mode_of(path) for path in process.directory.glob("*.sock")}
        assert sockets == dict.fromkeys(["iommu0.sock", "accel0.sock", "control.sock"], (0o660, 0, GROUP))
        assert mode_of(process.directory / "viot.bin") == (0o640, 0, GROUP)


@as_root
@attachments
@pytest.mark.parametrize(
    ("who", "answers"),
    [
        ((STRANGER, GROUP, []), ["served", "served"]),
        ((STRANGER, STRANGER, [GROUP, 5]), ["served", "served"]),
        ((STRANGER, STRANGER, []), ["refused", "refused"]),
        ((0, 0, []), ["served", "served"]),
    ],
    ids=["primary group", "supplementary group", "no member", "root"],
)
def test_the_groups_members_may_connect_and_nobody_else(
    base: Path, who: tuple[int, int, list[int]], answers: list[str], units: str
) -> None:
    with serving(f"sockets: {{group: {GROUP}}}\n{units}", base / "run") as process:
        assert call_as(process.directory, *who, FIRST[units]) == answers


@as_root
def test_an_owner_gets_everything_and_may_connect(base: Path) -> None:
    with serving(f"sockets: {{owner: {OWNER}}}\n{ONE_UNIT}", base / "run") as process:
        found = [mode_of(path)[:2] for path in (process.directory, process.directory / "iommu0.sock")]
        assert found == [(0o700, OWNER), (0o600, OWNER)]
        assert call_as(process.directory, OWNER, STRANGER, []) == ["served", "served"]
        assert call_as(process.directory, STRANGER, STRANGER, []) == ["refused", "refused"]


@as_root
@attachments
def test_a_stranger_is_refused_even_where_the_files_let_him_in(base: Path, units: str) -> None:
    with serving(f"sockets: {{group: {GROUP}}}\n{units}", base / "run") as process:
        process.directory.chmod(0o777)
        for path in process.directory.glob("*.sock"):
            path.chmod(0o666)

        assert call_as(process.directory, STRANGER, STRANGER, [], FIRST[units]) == ["closed", "closed"]
        said = process.log.read_text()
        assert (
            f"belongs to user {STRANGER}; may connect: user 0, root, members of group {GROUP} (sockets.group)" in said
        )


@as_root
@pytest.mark.parametrize(
    ("access", "key", "cure"),
    [
        (SocketAccess(group=0, directory_mode=0o750), "sockets.group", "make 4711 a member (usermod -aG root 4711"),
        (
            SocketAccess(owner=0),
            "sockets.owner",
            "run vdev as that user or as root, or leave owner out and use a group",
        ),
    ],
)
def test_what_we_may_not_give_away_is_named_with_key_user_and_cure(
    base: Path, access: SocketAccess, key: str, cure: str
) -> None:
    (base / "run").mkdir(mode=0o700)
    os.chown(base / "run", OWNER, OWNER)
    os.setegid(OWNER)
    os.seteuid(OWNER)
    try:
        with pytest.raises(ConfigError) as error:
            Listener(base / "run" / "s", access)
    finally:
        os.seteuid(0)
        os.setegid(0)
    assert error.value.key == key
    assert error.value.problem.startswith("user 4711 may not give ")
    assert cure in error.value.cure


def test_a_name_this_host_does_not_have_is_named() -> None:
    with pytest.raises(ConfigError, match=r"sockets\.owner: this host has no user 'no-such-user' \(getent passwd"):
        resolve_access("no-such-user", None, None)
    with pytest.raises(ConfigError, match=r"sockets\.group: this host has no group 'no-such-group' \(getent group"):
        resolve_access(None, "no-such-group", None)


def test_names_become_the_hosts_numbers_and_a_group_opens_the_directory() -> None:
    user, group = pwd.getpwuid(0).pw_name, grp.getgrgid(0).gr_name
    assert resolve_access(user, group, None) == SocketAccess(0, 0, 0o750)
    assert resolve_access(None, 0, "0770") == SocketAccess(None, 0, 0o770)
    assert resolve_access(None, None, None) == OURS


def test_a_directory_that_the_world_can_enter_is_refused_with_a_group_too(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o751)
    with pytest.raises(ConfigError, match="has mode 0751, others can enter it"):
        Listener(tmp_path / "run" / "s", SocketAccess(group=os.getegid(), directory_mode=0o750))


def test_a_private_directory_that_was_there_is_opened_for_the_group(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    listener = Listener(tmp_path / "run" / "s", SocketAccess(group=os.getegid(), directory_mode=0o770))
    assert mode_of(tmp_path / "run")[0] == 0o770
    assert mode_of(tmp_path / "run" / "s")[0] == 0o660
    listener.close()


def test_a_link_in_the_tables_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run" / "viot.bin").symlink_to(tmp_path / "precious")

    write_beside(tmp_path / "run" / "viot.bin", b"table")

    assert (tmp_path / "run" / "viot.bin").read_bytes() == b"table"
    assert not (tmp_path / "run" / "viot.bin").is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["viot.bin"]


def test_a_failed_change_that_is_no_question_of_rights_is_said_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "fchown", read_only)
    with pytest.raises(ConfigError, match=r"sockets\.group: cannot give .* to group 4712: Read-only file system"):
        Listener(tmp_path / "run" / "s", SocketAccess(group=GROUP, directory_mode=0o750))


def test_the_peers_groups_are_what_the_kernel_says() -> None:
    here, there = socket.socketpair()
    with here, there:
        assert peer_groups(here) == frozenset(os.getgroups())


def test_membership_is_looked_at_for_the_process_that_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "peer_of", lambda sock: identity.Peer(os.getpid(), STRANGER, STRANGER))
    here, there = socket.socketpair()
    with here, there:
        monkeypatch.setattr(access_module, "peer_groups", lambda sock: frozenset({GROUP}))
        admitted = VmIdentity(access=SocketAccess(group=GROUP)).admit(here)
        monkeypatch.setattr(access_module, "peer_groups", lambda sock: frozenset())
        with pytest.raises(PeerError, match="belongs to user 4713"):
            VmIdentity(access=SocketAccess(group=GROUP)).admit(here)
    assert admitted.uid == STRANGER


def test_serve_says_wrong_input_for_a_group_that_does_not_exist(tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text(f"sockets: {{group: no-such-group}}\n{ONE_UNIT}")
    command = [sys.executable, "-m", "vdev", "serve", str(config), "--runtime-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 2
    assert "vdev: sockets.group: this host has no group 'no-such-group'" in done.stderr


def test_ram_whose_sharing_cannot_be_seen_is_used_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(ram, "is_shared", lambda *_: None)  # as for a QEMU of another user
    files = ram.RamFiles()
    with GuestRam(PAGE) as one, GuestRam(PAGE) as two:
        held = [files.acquire(guest.fd, PAGE, 4711) for guest in (one, two)]
        described = files.describe()
        for file in held:
            files.release(file)

    assert [file["shared"] for file in described] == ["unknown", "unknown"]
    said = [line for line in caplog.messages if "whether pid 4711 maps it shared cannot be seen from here" in line]
    assert len(said) == 1
