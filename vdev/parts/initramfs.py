"""The guest's initramfs: the userland archive followed by one with the kernel's modules, the payload and /init."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from vdev.errors import PartsError
from vdev.parts.cache import MANIFEST, Cache
from vdev.parts.cpio import CpioWriter
from vdev.parts.kernel import Kernel
from vdev.parts.modules import Module, load_order, normal
from vdev.parts.progress import Say
from vdev.parts.userland import ARCHIVE, guest_userland

KEPT_SECONDS = 7 * 24 * 3600  # an initramfs nobody booted for that long is removed

_CHANNEL_MODULES = ("virtio_pci", "virtio_console")

# Options of modules come from the kernel command line (`module.option=value`), as for built-in ones.
INIT = """\
#!/bin/busybox sh
# Started by the kernel. vdev.payload=NAME runs /payload/main.py NAME; vdev.shell gives a shell; then power off.
b=/bin/busybox
export PATH=/bin:/usr/bin HOME=/root LC_ALL=C.UTF-8
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
$b mkdir -p /dev/pts /dev/hugepages
$b mount -t devpts devpts /dev/pts
$b mount -t hugetlbfs hugetlbfs /dev/hugepages || echo "vdev-init: no hugetlbfs"
cmdline=$($b cat /proc/cmdline)
payload= shell=
for word in $cmdline; do
    case "$word" in
        vdev.payload=*) payload=${word#*=} ;;
        vdev.shell | vdev.shell=1) shell=1 ;;
    esac
done
while read -r name; do
    options=
    for word in $cmdline; do
        case "$word" in
            "$name".*=*) options="$options ${word#*.}" ;;
        esac
    done
    $b insmod "/modules/$name.ko" $options || echo "vdev-init: module $name not loaded"
done < /modules/order
# Built in or loaded, a driver shows; a module without one (vfio_iommu_type1) shows by its parameters.
has() {
    for found in "/sys/module/$1" /sys/bus/*/drivers/"$1" /sys/bus/*/drivers/"$(echo "$1" | $b tr _ -)"; do
        [ -d "$found" ] && return
    done
    return 1
}
# A stock kernel that goes down with UNMAPs put off hangs for good, so whoever unmaps later than it must is sent away.
power_off() {
    for rng in /sys/bus/virtio/drivers/virtio_rng/virtio*; do
        [ ! -e "$rng" ] || echo "${rng##*/}" > /sys/bus/virtio/drivers/virtio_rng/unbind
    done
    $b sleep 0.05 # what was put off is sent after 10 ms
    $b sync
    $b poweroff -f
}
missing=
while read -r name; do
    has "$name" || missing="$missing $name"
done < /modules/needed
if [ -n "$payload" ] && [ -n "$missing" ]; then
    why="kernel $($b uname -r) lacks what the payload needs, built in or as a module:$missing"
    echo "vdev-init: cannot run the payload: $why"
    for port in /sys/class/virtio-ports/*; do
        [ "$($b cat "$port/name" 2> /dev/null)" = org.vdev.agent ] || continue
        printf '{"done": true, "ok": false, "checks": 0, "passed": 0, "reason": "%s"}\\n' "$why" > "/dev/${port##*/}"
        $b timeout 10 $b head -n 1 < "/dev/${port##*/}" # until the host has read it
    done
    payload=
    [ -n "$shell" ] || power_off
fi
if [ -n "$payload" ]; then
    echo "vdev-init: payload $payload"
    # As a module of a package, so that main.py may import its neighbours relatively.
    /usr/bin/python3 -I -B -u -c 'import runpy, sys; sys.path += ["/", "/payload"]
runpy.run_module("payload.main", run_name="__main__", alter_sys=True)' "$payload"
    echo "vdev-init: payload ended with status $?"
fi
if [ -n "$shell" ]; then
    $b --install -s /bin
    cd /root
    $b setsid $b cttyhack /bin/sh -l
fi
[ -n "$payload$shell" ] || echo "vdev-init: neither vdev.payload=NAME nor vdev.shell on the command line"
power_off
"""


def build_initramfs(
    kernel: Kernel, modules: Iterable[str], payload: Mapping[str, Path | bytes], say: Say, cache: Cache | None = None
) -> Path:
    """An uncompressed initramfs for `kernel`; `payload` maps paths below /payload to bytes, files or directories.

    Cached by content: the same input gives the same file at once.
    :raise PartsError: a module or a payload file is missing, or the userland cannot be had.
    """
    cache = cache or Cache()
    userland = guest_userland(cache, say)
    modules = list(modules)
    loaded = load_order(kernel, modules)
    needed = needed_in_guest(modules)
    files = dict(payload_files(payload))
    digest = _digest(userland, kernel, loaded, {**files, "needed": (" ".join(needed).encode(), 0)})
    overlay = io.BytesIO()
    _write_overlay(CpioWriter(overlay), loaded, needed, files)
    directory = cache.root / "initramfs"
    target = directory / f"{digest}.cpio"
    try:
        nbytes = (userland / ARCHIVE).stat().st_size + len(overlay.getbuffer())
        if target.is_file() and target.stat().st_size == nbytes:
            with suppress(OSError):  # not ours to write: then not ours to prune
                target.touch()  # prune() goes by the time of last use
            return target
        say(f"building the initramfs for kernel {kernel.version}")
        directory.mkdir(parents=True, exist_ok=True)
        prune(directory, time.time())
        _write_initramfs(directory, target, userland / ARCHIVE, overlay)
    except OSError as error:
        raise PartsError("initramfs", f"{target}: {error}", "free space there, or set VDEV_CACHE") from error
    return target


def _write_initramfs(directory: Path, target: Path, base: Path, overlay: io.BytesIO) -> None:
    handle, name = tempfile.mkstemp(dir=directory, prefix=".building-")
    try:
        with os.fdopen(handle, "wb") as file, base.open("rb") as archive:
            shutil.copyfileobj(archive, file)
            file.write(overlay.getbuffer())
            file.flush()
            os.fsync(file.fileno())  # a rename that survives a power cut must not survive its content
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def payload_files(payload: Mapping[str, Path | bytes]) -> Iterator[tuple[str, tuple[bytes, int]]]:
    """(path below /payload, (content, mode)) of every file; directories are walked, caches of Python left out.

    :raise PartsError: a file is missing.
    """
    for name, source in payload.items():
        if isinstance(source, bytes):
            yield name, (source, 0o644)
        elif source.is_file():
            yield name, (source.read_bytes(), 0o755 if os.access(source, os.X_OK) else 0o644)
        elif source.is_dir():
            inside = {str(path.relative_to(source)): path for path in sorted(source.rglob("*")) if path.is_file()}
            files = {path: file for path, file in inside.items() if "__pycache__" not in path}
            yield from payload_files({f"{name}/{path}".lstrip("./"): file for path, file in files.items()})
        else:
            raise PartsError("initramfs", f"payload {name}: {source} does not exist")


def _digest(userland: Path, kernel: Kernel, modules: list[Module], files: Mapping[str, tuple[bytes, int]]) -> str:
    digest = hashlib.sha256()
    items = [
        ("manifest", (userland / MANIFEST).read_bytes()),
        ("kernel", kernel.version.encode()),
        ("init", INIT.encode()),
    ]
    items += [(module.name, module.content) for module in modules]
    items += [(f"{name} {mode:o}", content) for name, (content, mode) in sorted(files.items())]
    for name, content in items:
        # Lengths in between, so that no two different inputs run together into the same bytes.
        digest.update(f"{len(name)}:{name}:{len(content)}:".encode() + content)
    return digest.hexdigest()[:32]


def needed_in_guest(modules: Iterable[str]) -> list[str]:
    """What a payload cannot do without, by name: what is not optional, and the way to say anything at all."""
    return sorted({*_CHANNEL_MODULES, *(normal(name) for name in modules if not name.endswith("?"))})


def _write_overlay(
    cpio: CpioWriter, modules: list[Module], needed: list[str], files: Mapping[str, tuple[bytes, int]]
) -> None:
    for module in modules:
        cpio.file(f"modules/{module.name}.ko", module.content)
    cpio.file("modules/order", "".join(f"{module.name}\n" for module in modules).encode())
    cpio.file("modules/needed", "".join(f"{name}\n" for name in needed).encode())
    for name, (content, mode) in sorted(files.items()):
        cpio.file(f"payload/{name}", content, mode)
    cpio.file("init", INIT.encode(), 0o755)
    cpio.close()


def prune(directory: Path, now: float) -> None:
    """Remove what nobody used for KEPT_SECONDS, unfinished files included."""
    for path in (*directory.glob("*.cpio"), *directory.glob(".building-*")):
        with suppress(OSError):
            if now - path.stat().st_mtime > KEPT_SECONDS:
                path.unlink()
