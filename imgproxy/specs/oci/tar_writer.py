"""The headers of a tar archive that is written: the same for the same names and sizes.

POSIX.1-2024, pax(1), "ustar Interchange Format", and an extended header where that has no room.
"""

from __future__ import annotations

from imgproxy.specs.oci.tar import BLOCK

END = bytes(2 * BLOCK)

_MAX_NAME = 100
_MAX_SIZE = 0o77777777777


def header(name: str, size: int) -> bytes:
    """Return what precedes the content of a file of `size` bytes, or a directory (`name/`)."""
    records = b""
    if len(name.encode()) > _MAX_NAME:
        records += _record("path", name)
    if size > _MAX_SIZE:
        records += _record("size", str(size))
    kind, mode = (b"5", 0o755) if name.endswith("/") else (b"0", 0o644)
    own = _header(name, min(size, _MAX_SIZE), kind, mode)
    if not records:
        return own
    extended = _header("pax", len(records), b"x", 0o644)
    return extended + records + padding(len(records)) + own


def padding(size: int) -> bytes:
    """Return what follows content of `size` bytes."""
    return bytes(-size % BLOCK)


def _record(key: str, value: str) -> bytes:
    """Return a record of an extended header, which begins with its own length."""
    rest = f" {key}={value}\n".encode()
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def _header(name: str, size: int, kind: bytes, mode: int) -> bytes:
    fields = [
        name.encode()[:_MAX_NAME].ljust(_MAX_NAME, b"\0"),
        *(f"{value:07o}\0".encode() for value in (mode, 0, 0)),  # mode, uid, gid
        *(f"{value:011o}\0".encode() for value in (size, 0)),  # size, mtime
        b" " * 8,  # the checksum, which counts as spaces
        kind,
        bytes(100),  # the target of a link
        b"ustar\x0000",
        bytes(32 + 32 + 8 + 8),  # names of user and group, numbers of a device
        bytes(155 + 12),
    ]
    block = b"".join(fields)
    checksum = f"{sum(block):06o}\0 ".encode()
    return block[:148] + checksum + block[156:]
