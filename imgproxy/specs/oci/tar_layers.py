"""Tar archives that are layers of images: the members with all that a file system keeps of them.

image-spec, layer.md: pax's values count before GNU's, and those before the header's own. An
extended header describes the next member, not a GNU header in between; one for all members may
only hold what does not matter. `tar_fields` has the format, `tar_sparse` the maps of holes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

from imgproxy.specs.oci import tar_fields as fields
from imgproxy.specs.oci import tar_sparse as sparse
from imgproxy.specs.oci.tar_fields import TarError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.specs.oci.tar_fields import Header, Stream
    from imgproxy.specs.oci.tar_sparse import Holes

Kind = Literal["file", "directory", "link", "symlink", "character", "block", "fifo", "unknown"]

# The kernel has no longer ones (xattr(7)). Those of a member are in one header, which has a limit.
MAX_XATTR = 64 * 1024
MAX_XATTR_NAME = 255

_KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"S": "file",
    b"1": "link",
    b"2": "symlink",
    b"3": "character",
    b"4": "block",
    b"5": "directory",
    b"6": "fifo",
}
_DEVICES = ("character", "block")

_XATTR = b"SCHILY.xattr."
_NUMBERS = (b"size", b"uid", b"gid")
_KEYS = frozenset((b"path", b"linkpath", b"mtime", *_NUMBERS))

_NUMBER = re.compile(rb"[0-9]{1,18}")
_TIME = re.compile(rb"(-?)([0-9]{1,18})(?:\.([0-9]*))?")
_NEGATIVE = 0xFF  # the first byte of a negative number in base 256
_NS = 1_000_000_000


class Member(NamedTuple):
    """A member of a layer; its header begins at byte `at`, its content is the next in the stream.

    `name` and `target` are as written. `size` is that of the content in the archive, in bytes;
    `holes` say where it belongs in a sparse file, for which `tar_sparse.regions` tells. `mtime`
    is in nanoseconds. `xattrs` are by name. `device` are the numbers of a device: major and minor.
    """

    at: int
    name: bytes
    kind: Kind
    size: int
    target: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    xattrs: dict[bytes, bytes]
    device: tuple[int, int]
    holes: Holes | None


class _Extended:
    """What the extended headers before a member say of it: pax's records, and GNU's names."""

    def __init__(self) -> None:
        self.kinds = b""
        self.values: dict[bytes, bytes] = {}
        self.gnu: dict[bytes, bytes] = {}
        self.xattrs: dict[bytes, bytes] = {}
        self.sparse: list[tuple[bytes, bytes]] = []

    def add(self, header: Header, content: bytes) -> None:
        """Add the content of a header, of each kind one at most. Raises `TarError`."""
        if header.kind in self.kinds:
            raise TarError(f"the header at byte {header.at} repeats another of its kind")
        self.kinds += header.kind
        if header.kind in (b"L", b"K"):
            self.gnu[header.kind] = fields.path(content.rstrip(b"\0"), header.at)
            return
        for key, value in fields.records(content, header.at):
            if key in _KEYS:
                self.values[key] = value
            elif key.startswith(_XATTR):
                self.xattrs[_xattr_name(key[len(_XATTR) :], header.at)] = value
            elif key.startswith(fields.SPARSE):
                self.sparse.append((key, value))
        for key in (b"path", b"linkpath"):
            fields.path(self.values.get(key, b""), header.at)
        if max(map(len, self.xattrs.values()), default=0) > MAX_XATTR:
            raise TarError(
                f"the header at byte {header.at} has an extended attribute of more than"
                f" {MAX_XATTR} bytes"
            )

    def number(self, key: bytes, otherwise: int, at: int) -> int:
        """Return a number, or what the header itself says. Raises `TarError`."""
        value = self.values.get(key)
        if not value:
            return otherwise
        if _NUMBER.fullmatch(value) is None:
            raise TarError(f"the header before byte {at} has a {key.decode()} that is not a number")
        return int(value)


def _xattr_name(name: bytes, at: int) -> bytes:
    """Return the name of an extended attribute. Raises `TarError` for one that none can have."""
    if b"\0" in name or not 0 < len(name) <= MAX_XATTR_NAME:
        raise TarError(f"the header at byte {at} has a malformed name of an extended attribute")
    return name


_NOTHING = _Extended()


def members(stream: Stream) -> Iterator[Member]:
    """Yield the members in order; their contents may be read from the stream in between.

    Raises `TarError`.
    """
    extended = _NOTHING
    end = 0
    for header in fields.headers(stream):
        if header.kind not in fields.EXTENSIONS:
            member = _member(stream, header, extended)
            extended = _NOTHING
            end = stream.position + member.size
            yield member
            fields.skip_to(stream, end, member.name.decode(errors="backslashreplace"))
            continue
        content = fields.content(stream, header)
        if header.kind == fields.GLOBAL:
            _check_global(header, content)
        else:
            extended = _Extended() if extended is _NOTHING else extended
            extended.add(header, content)
            end = stream.position
    if extended is not _NOTHING:
        raise TarError(f"ends at byte {end}, after a header that belongs to another")


def _check_global(header: Header, content: bytes) -> None:
    """Raise `TarError` for a header that describes all members, unless that does not matter."""
    for key, _ in fields.records(content, header.at):
        if key in _KEYS or key.startswith((_XATTR, fields.SPARSE)):
            raise TarError(
                f"the global header at byte {header.at} sets"
                f" {key.decode(errors='backslashreplace')} for all members"
            )


def _member(stream: Stream, header: Header, extended: _Extended) -> Member:
    at, number = header.at, fields.number
    kind = _KINDS.get(header.kind, "unknown")
    values, gnu = extended.values, extended.gnu
    name = values.get(b"path") or gnu.get(b"L") or header.path
    target = values.get(b"linkpath") or gnu.get(b"K") or header.target_path
    if header.kind == b"\0" and name.endswith(b"/"):
        kind = "directory"  # the convention before directories had a type
    size = extended.number(b"size", header.size, at)
    if header.kind in fields.HEADER_ONLY or kind == "directory":
        size = 0  # as Go has it: what seems to follow is the next header
    holes = None
    if header.kind == b"S":
        holes = sparse.in_header(stream, header)
    elif extended.sparse:
        if kind != "file":
            raise TarError(f"the header at byte {at} has holes, but its type has no contents")
        holes, name = sparse.in_records(extended.sparse, name, at)
    text = values.get(b"mtime")
    return Member(
        at=at,
        name=name,
        kind=kind,
        size=size,
        target=target,
        mode=number(header.mode, at) & 0o7777,
        uid=extended.number(b"uid", number(header.uid, at), at),
        gid=extended.number(b"gid", number(header.gid, at), at),
        mtime=_pax_time(text, at) if text else _time(header.mtime, at),
        xattrs={key: value for key, value in extended.xattrs.items() if value},
        device=(number(header.major, at), number(header.minor, at)) if kind in _DEVICES else (0, 0),
        holes=holes,
    )


def _time(field: bytes, at: int) -> int:
    """Return the time in a header, in nanoseconds. GNU's base 256 has negative ones."""
    if field[0] == _NEGATIVE:
        return int.from_bytes(field, "big", signed=True) * _NS
    return fields.number(field, at) * _NS


def _pax_time(text: bytes, at: int) -> int:
    """Return a decimal number of seconds in nanoseconds, rounded down. Raises `TarError`."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise TarError(f"the header before byte {at} has a mtime that is not a number")
    sign, seconds, fraction = found.groups(default=b"")
    time = int(seconds) * _NS + int(fraction[:9].ljust(9, b"0"))
    if sign:
        time = -time - (fraction[9:].strip(b"0") != b"")
    return time
