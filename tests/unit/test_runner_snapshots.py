"""Saved guests in the cache: one for everything it depends on, the newest few kept, failures said and survived."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from guest_tests.runner import snapshots
from guest_tests.runner.snapshots import KEPT, UNFINISHED_S, forget, prune, saved_guest, snapshot_path
from qmp_bridge.errors import VmDied
from qmp_bridge.plan import Options, Parts
from vdev.config import Config, parse_config
from vdev.parts.cache import Cache

TEXT = "{vm: {name: one, memory: 256M}, units: [{name: iommu0}], endpoints: [{name: accel0, bdf: '01:00.0'}]}"
PARTS = Parts(("/q", "-L", "/l"), {}, "11.1.3", "/k", "/i", "tcg")
OPTIONS = Options(payload="agent")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def config() -> Config:
    return parse_config(TEXT, "x")


def vm(config: Config, **changes: Any) -> Config:
    return msgspec.structs.replace(config, vm=msgspec.structs.replace(config.vm, **changes))


def test_the_name_and_the_attachment_do_not_matter(config: Config, cache: Cache) -> None:
    other = vm(parse_config(TEXT.replace("name: iommu0", "name: iommu0, attach: vhost-user"), "x"), name="two")
    assert snapshot_path(config, PARTS, OPTIONS, cache) == snapshot_path(other, PARTS, OPTIONS, cache)


@pytest.mark.parametrize(
    "changes",
    [{"memory": 512 << 20}, {"cpus": 2}, {"append": "quiet"}, {"extra_args": ("-device", "virtio-rng-pci")}],
)
def test_everything_of_the_machine_matters(config: Config, cache: Cache, changes: dict[str, Any]) -> None:
    assert snapshot_path(config, PARTS, OPTIONS, cache) != snapshot_path(vm(config, **changes), PARTS, OPTIONS, cache)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "11.1.4"}, {"qemu": ("/q2", "-L", "/l")}, {"qemu": ("/q", "-L", "/m")}, {"kernel": "/k2"},
        {"initrd": "/i2"}, {"accel": "kvm"},
    ],
)  # fmt: skip
def test_every_part_matters(config: Config, cache: Cache, changes: dict[str, Any]) -> None:
    other = replace(PARTS, **changes)
    assert snapshot_path(config, PARTS, OPTIONS, cache) != snapshot_path(config, other, OPTIONS, cache)


def test_the_layout_and_the_words_for_the_kernel_matter(config: Config, cache: Cache) -> None:
    further = parse_config(TEXT.replace("[{name: accel0", "[{name: accel1, bdf: '02:00.0'}, {name: accel0"), "x")
    paths = {
        snapshot_path(config, PARTS, OPTIONS, cache),
        snapshot_path(further, PARTS, OPTIONS, cache),
        snapshot_path(config, PARTS, replace(OPTIONS, append="quiet"), cache),
        snapshot_path(config, PARTS, replace(OPTIONS, payload="other"), cache),
    }
    assert len(paths) == 4


def test_a_users_own_kernel_matters_by_its_content_and_one_of_the_cache_by_its_name(
    config: Config, cache: Cache, tmp_path: Path
) -> None:
    own, cached = tmp_path / "bzImage", cache.root / "kernel"
    cache.root.mkdir()
    paths = []
    for kernel in (own, cached):
        for content in ("one", "another"):
            kernel.write_text(content)
            paths.append(snapshot_path(config, replace(PARTS, kernel=str(kernel)), OPTIONS, cache))

    assert paths[0] != paths[1]
    assert paths[2] == paths[3]


def _write(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("saved")


async def _save(config: Config, parts: Parts, options: Options, target: Path) -> None:
    _write(target)


async def test_a_guest_is_saved_once(config: Config, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(snapshots, "save_guest", _save)

    first = await saved_guest(config, PARTS, OPTIONS, cache, said.append)
    second = await saved_guest(config, PARTS, OPTIONS, cache, said.append)

    assert first == second == snapshot_path(config, PARTS, OPTIONS, cache)
    assert said == ["booting one once to save it; from then on it is restored in half a second"]


@pytest.mark.parametrize("error", [VmDied("it panicked"), OSError(28, "No space left on device")])
async def test_where_none_can_be_saved_the_reason_is_said(
    config: Config, cache: Cache, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fail(*_: object) -> None:
        raise error

    said: list[str] = []
    monkeypatch.setattr(snapshots, "save_guest", fail)

    assert await saved_guest(config, PARTS, OPTIONS, cache, said.append) is None
    assert said[-1] == f"guests are booted, not restored: {error}"


def test_the_guests_used_last_are_kept(tmp_path: Path) -> None:
    for n in range(KEPT + 2):
        (tmp_path / str(n)).touch()
        os.utime(tmp_path / str(n), (100 - n, 100 - n))

    prune(tmp_path, 200)

    assert sorted(path.name for path in tmp_path.iterdir()) == [str(n) for n in range(KEPT)]


def test_what_an_interrupted_save_left_goes_after_a_while(tmp_path: Path) -> None:
    old, new = tmp_path / ".saving-old", tmp_path / ".saving-new"
    for path, age in ((old, UNFINISHED_S + 1), (new, 1)):
        path.touch()
        os.utime(path, (10_000 - age, 10_000 - age))

    prune(tmp_path, 10_000)

    assert [path.name for path in tmp_path.iterdir()] == [".saving-new"]


def test_what_is_gone_already_may_be_forgotten(tmp_path: Path) -> None:
    forget(tmp_path / "nothing")
