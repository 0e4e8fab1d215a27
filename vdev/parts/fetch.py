"""The one recipe of every part that comes as Debian packages."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vdev.errors import PartsError
from vdev.parts.apt import PrivateApt, host_mirror
from vdev.parts.cache import Cache, Manifest, Package
from vdev.parts.progress import Say
from vdev.parts.sources import OWN_PARTS

GUEST_ARCH = "amd64"  # the machine QEMU emulates
# Debian's architecture by machine name; only amd64 hosts are tested.
HOST_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Recipe:
    """What to fetch: `names` from `suite`; of what they depend on, only what `keep` accepts."""

    part: str
    arch: str
    suite: str
    names: tuple[str, ...]
    lead: str  # prefix of the package whose version names the part
    keep: Callable[[str], bool] = lambda name: True


def host_arch() -> str:
    """Debian's name for this host's architecture.

    :raise PartsError: Debian has no packages we could run here.
    """
    machine = platform.machine()
    if machine not in HOST_ARCHES:
        raise PartsError("apt", f"no packaged QEMU is known for {machine}", OWN_PARTS)
    return HOST_ARCHES[machine]


def fetch_packages(recipe: Recipe, cache: Cache, directory: Path, say: Say) -> Manifest:
    """Fill `directory`/root with the recipe's packages.

    :raise PartsError: see `host_mirror` and `PrivateApt`.
    """
    return _fetch(recipe, cache, say, lambda apt, wanted: apt.fetch(wanted, directory, recipe.part))


def download_packages(recipe: Recipe, cache: Cache, directory: Path, say: Say) -> Manifest:
    """Fill `directory` with the recipe's packages as .debs, for who installs them by dpkg's rules.

    :raise PartsError: see `host_mirror` and `PrivateApt`.
    """
    return _fetch(recipe, cache, say, lambda apt, wanted: apt.download(wanted, directory, recipe.part))


def _fetch(
    recipe: Recipe, cache: Cache, say: Say, get: Callable[[PrivateApt, list[tuple[str, str]]], list[Package]]
) -> Manifest:
    mirror = host_mirror()
    say(f"fetching {recipe.part} from Debian {recipe.suite} into {cache.root}")
    apt = PrivateApt(cache.root / "apt" / recipe.arch, recipe.arch, mirror, say)
    apt.update()
    wanted = [(name, version) for name, version in apt.resolve(recipe.suite, recipe.names) if recipe.keep(name)]
    leads = [version for name, version in wanted if name.startswith(recipe.lead)]
    if not leads:
        raise PartsError("apt", f"Debian {recipe.suite} offers no {recipe.lead}", OWN_PARTS)
    return Manifest(recipe.part, leads[0], tuple(get(apt, wanted)))


def only(names: Sequence[str]) -> Callable[[str], bool]:
    """A `keep` that accepts exactly `names`."""
    return frozenset(names).__contains__
