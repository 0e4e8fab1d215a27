"""Paths a person gives for a kernel, an initrd, a disk, a firmware: refused in words, whatever is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmp_bridge.plan import Options, find_parts
from vdev.config import load_config, override_vm
from vdev.errors import ConfigError, PartsError
from vdev.parts.cache import Cache
from vdev.parts.firmware import find_firmware
from vdev.parts.kernel import find_kernel
from vdev.parts.paths import own_path
from vdev.parts.progress import quiet

CONFIG = Path(__file__).parents[2] / "configs" / "first-light.yaml"
TOO_LONG = "./" + "a" * 300


def test_a_path_is_made_absolute_whether_it_exists_or_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "file").touch()

    assert own_path("vm.disk", "absent/image") == tmp_path / "absent" / "image"
    assert own_path("vm.disk", "file/below") == tmp_path / "file" / "below"
    assert own_path("vm.disk", "~/image") == tmp_path / "home" / "image"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (TOO_LONG, "File name too long"),
        ("./a\0b", "a path has no NUL in it"),
        ("~nobody-of-that-name/image", "there is no such user"),
    ],
)
def test_what_cannot_even_be_looked_at_is_refused(given: str, problem: str) -> None:
    with pytest.raises(PartsError) as caught:
        own_path("vm.disk", given)
    assert f"vm.disk: {given}: {problem}\n  cure: " in str(caught.value)


def test_a_directory_that_denies_itself_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def denied(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", denied)
    with pytest.raises(PartsError, match=r"vm\.disk: .*: Permission denied"):
        own_path("vm.disk", str(tmp_path / "image"))


@pytest.mark.parametrize("changes", [{"disk": TOO_LONG}, {"kernel": TOO_LONG}, {"initrd": TOO_LONG}])
def test_the_launcher_says_which_key_it_was_before_it_fetches_anything(changes: dict[str, object]) -> None:
    config = override_vm(load_config(CONFIG), changes)

    with pytest.raises(PartsError, match=rf"vm\.{next(iter(changes))}: .*: File name too long"):
        find_parts(config, Options())


def test_kernel_and_firmware_by_path_are_looked_at_in_the_same_way(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    with pytest.raises(PartsError, match=r"vm\.firmware: .*: File name too long"):
        find_firmware(TOO_LONG, quiet, cache)
    with pytest.raises(PartsError, match=r"vm\.kernel: .*: File name too long"):
        find_kernel(TOO_LONG, quiet, cache)


def test_words_for_a_kernel_are_refused_where_a_disk_boots_itself(tmp_path: Path) -> None:
    config = override_vm(load_config(CONFIG), {"disk": str(tmp_path / "disk.img")})

    with pytest.raises(
        ConfigError, match=r"append: there is no kernel to take 'quiet'.*leave it out, or set vm\.kernel"
    ):
        find_parts(config, Options(append="quiet"))
