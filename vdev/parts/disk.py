"""The person's disk image: whether it is one, and in which format."""

from __future__ import annotations

from pathlib import Path

from vdev.errors import PartsError

QCOW2_MAGIC = b"QFI\xfb"
_CONVERT = "convert it: qemu-img convert -O qcow2 IMAGE image.qcow2"
_UNPACK = "unpack it first"
# What people have and QEMU would take for a raw disk with rubbish on it: offset, magic, what it is, cure.
_FOREIGN = (
    (0, b"\xfd7zXZ", "compressed by xz", _UNPACK),
    (0, b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (0, b"BZh", "compressed by bzip2", _UNPACK),
    (0, b"KDMV", "a VMDK image", _CONVERT),
    (0, b"vhdxfile", "a VHDX image", _CONVERT),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI image", _CONVERT),
    (257, b"ustar", "a tar archive", _UNPACK),
)


def disk_format(path: Path, wanted: str) -> str:
    """ "raw" or "qcow2" for the image at `path`; `wanted` is `vm.disk_format`.

    :raise PartsError: not a file, empty, or of a kind that is not booted as it is.
    """
    if not (path.is_file() or path.is_block_device()):
        raise PartsError("vm.disk", f"{path} is not a file", "name a raw or qcow2 image")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise PartsError("vm.disk", f"{path}: {error.strerror}", "it must be readable by you") from error
    if not head:
        raise PartsError("vm.disk", f"{path} is empty", "name a raw or qcow2 image")
    if wanted != "auto":
        return wanted
    for offset, magic, what, cure in _FOREIGN:
        if head[offset : offset + len(magic)] == magic:
            raise PartsError("vm.disk", f"{path} is {what}, not a raw or qcow2 image", cure)
    return "qcow2" if head.startswith(QCOW2_MAGIC) else "raw"
