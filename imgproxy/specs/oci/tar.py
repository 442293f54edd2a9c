"""Tar archives: the headers of their members, without the contents.

POSIX.1-2024, pax(1), "ustar Interchange Format" and "pax Extended Header", with GNU's long names
and base-256 numbers (tar(5)). The control files of an image archive decide what is trusted, so
anything that tar readers are known to interpret differently is refused: a name that is given
twice, global names, contents of a directory, a lone block of zeros.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 512

# An extended header that is longer than this holds something other than a name.
MAX_EXTENSION = 1024 * 1024

# No system has longer paths (PATH_MAX). The names of all members together are kept in memory.
MAX_PATH = 4096
MAX_NAMES = 16 * 1024 * 1024

# The largest archives in practice, all images of an air-gapped host, have some thousands.
MAX_MEMBERS = 65_536

_ZEROS = bytes(BLOCK)
_OCTAL = re.compile(rb"[ ]*([0-7]*)[ \0]*")
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,7}) ")
_PAX_SIZE = re.compile(rb"[0-9]{1,18}")
_SPARSE = "GNU.sparse."
_CHECKSUM = slice(148, 156)

Kind = Literal["file", "directory", "link", "symlink", "sparse", "other"]

_KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",  # contiguous
    b"1": "link",
    b"2": "symlink",
    b"5": "directory",
    b"S": "sparse",
}
_BASE_256 = 0x80
_SIGN = 0x80

# Types of members without contents of their own, whatever the size in the header.
_HEADER_ONLY = frozenset(b"123456"[n : n + 1] for n in range(6))


class TarError(ValueError):
    """The archive is broken or ambiguous; the message states the position."""


class Stream(Protocol):
    """The bytes of an archive, in order. `position` is the offset of the next one."""

    position: int

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer than `size` only at the end."""

    def skip(self, size: int) -> None:
        """Skip bytes, fewer than `size` only at the end, as `position` shows."""


class Entry(NamedTuple):
    """A member: its name as `normalise` returns it, None where it is outside of the archive.

    `offset` and `size` are those of the content in the archive, in bytes; `target` is the target
    of a link, as written in the archive.
    """

    name: str | None
    kind: Kind
    offset: int
    size: int
    target: str


def normalise(path: str) -> str | None:
    """Return the canonical form of a path inside an archive, None for one that leads out of it."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def entries(stream: Stream) -> Iterator[Entry]:
    """Yield the members in order; their contents may be read from the stream in between.

    Raises `TarError`.
    """
    count = length = 0
    while (entry := _next(stream)) is not None:
        count += 1
        length += len(entry.name or "") + len(entry.target)
        if count > MAX_MEMBERS or length > MAX_NAMES:
            raise TarError(f"more than {MAX_MEMBERS} members, or {MAX_NAMES} bytes of their names")
        yield entry
        _skip_to(stream, entry.offset + entry.size, entry.name)
        stream.skip(-entry.size % BLOCK)


def _skip_to(stream: Stream, end: int, name: str | None) -> None:
    stream.skip(end - stream.position)
    if stream.position != end:
        raise TarError(f"ends at byte {stream.position}, in the middle of {name or 'a member'}")


def _next(stream: Stream) -> Entry | None:
    """Return the next member, with the values of the extended headers before it."""
    extended: dict[str, str] = {}
    while True:
        at = stream.position
        header = stream.read(BLOCK)
        if len(header) == BLOCK and header != _ZEROS:
            kind, size = header[156:157], _size(header, at)
            if kind not in b"xgLKX":
                return _entry(stream, header, extended, at)
            content = _extension(stream, size, at)
            for key, value in _extended_values(kind, content, at):
                if key in extended:
                    raise TarError(f"the header at byte {at} repeats {key}")
                extended[key] = value
            continue
        if extended:
            raise TarError(f"ends at byte {at}, after a header that belongs to another")
        if len(header) not in (0, BLOCK):
            raise TarError(f"ends at byte {stream.position}, in the middle of a header")
        if header and stream.read(BLOCK).strip(b"\0"):
            raise TarError(f"one block of zeros at byte {at}, followed by data")
        return None


def _extension(stream: Stream, size: int, at: int) -> bytes:
    if size > MAX_EXTENSION:
        raise TarError(f"the extended header at byte {at} has {size} bytes")
    content = stream.read(size)
    if len(content) != size:
        raise TarError(f"ends at byte {stream.position}, in the middle of a header")
    stream.skip(-size % BLOCK)
    return content


def _extended_values(kind: bytes, content: bytes, at: int) -> Iterator[tuple[str, str]]:
    """Yield the values in an extended header that matter here, with pax's keys."""
    if kind in b"LK":
        yield {b"L": "path", b"K": "linkpath"}[kind], _text(content.rstrip(b"\0"), at)
        return
    records = list(_pax(content, at))
    if any(key.startswith(_SPARSE) for key, _ in records):
        yield _SPARSE, ""
    for key, value in records:
        if key == f"{_SPARSE}name":
            yield key, _text(value, at)
        elif key in ("path", "linkpath", "size"):
            if kind == b"g":
                raise TarError(f"the global header at byte {at} sets {key} for all members")
            if not value:
                raise TarError(f"the header at byte {at} sets {key} without a value")
            yield key, _text(value, at)


def _pax(content: bytes, at: int) -> Iterator[tuple[str, bytes]]:
    position = 0
    while position < len(content):
        length = _PAX_RECORD.match(content, position)
        end = position + int(length[1]) if length else 0
        key, equals, value = content[length.end() if length else 0 : end].partition(b"=")
        if not equals or end > len(content) or value[-1:] != b"\n":
            raise TarError(f"the extended header at byte {at} is malformed")
        yield key.decode(errors="surrogateescape"), value[:-1]
        position = end


def _entry(stream: Stream, header: bytes, extended: dict[str, str], at: int) -> Entry:
    kind = _KINDS.get(header[156:157], "other")
    name = extended.get("path") or _name(header, at)
    size = _size(header, at)
    if "size" in extended:
        if _PAX_SIZE.fullmatch(extended["size"].encode(errors="replace")) is None:
            raise TarError(f"the header before byte {at} has a size that is not a number")
        size = int(extended["size"])
    if header[156:157] == b"\0" and name.endswith("/"):
        kind = "directory"  # the convention before directories had a type
    if size and (header[156:157] in _HEADER_ONLY or kind == "directory"):
        raise TarError(f"the header at byte {at} has a size, but its type has no contents")
    if kind == "sparse":
        _skip_sparse_map(stream, header)
    if _SPARSE in extended:
        kind, name = "sparse", extended.get(f"{_SPARSE}name", name)
    target = extended.get("linkpath") or _text(header[157:257].partition(b"\0")[0], at)
    return Entry(normalise(name), kind, stream.position, size, target)


def _skip_sparse_map(stream: Stream, header: bytes) -> None:
    """Skip the blocks in which GNU's old format continues its map of holes."""
    continues = header[482:483]
    while continues not in (b"", b"\0"):
        continues = stream.read(BLOCK)[504:505]


def _name(header: bytes, at: int) -> str:
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0":  # GNU's own format has times in place of the prefix
        prefix = header[345:500].partition(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return _text(name, at)


def _text(raw: bytes, at: int) -> str:
    if b"\0" in raw:
        raise TarError(f"the header at byte {at} has a name with a NUL in it")
    if len(raw) > MAX_PATH:
        raise TarError(f"the header at byte {at} has a name of {len(raw)} bytes")
    return raw.decode(errors="surrogateescape")


def is_header(block: bytes) -> bool:
    """Return whether a block is the first of a tar: a header, or zeros if it has no members."""
    try:
        return block == _ZEROS or (len(block) == BLOCK and _size(block, 0) >= 0)
    except TarError:
        return False


def _size(header: bytes, at: int) -> int:
    """Return the size in a header, after verifying its checksum."""
    checksum = _number(header[_CHECKSUM], at)
    others = header[:148] + header[156:]
    total = sum(others) + 8 * ord(" ")
    # Some old writers summed signed bytes.
    if checksum not in (total, total - 256 * sum(byte >= _SIGN for byte in others)):
        raise TarError(f"no header at byte {at}: the checksum is wrong")
    return _number(header[124:136], at)


def _number(field: bytes, at: int) -> int:
    """Return a number in octal digits, or in GNU's base 256."""
    if field[0] == _BASE_256:
        return int.from_bytes(field[1:], "big")
    digits = _OCTAL.fullmatch(field)
    if digits is None:
        raise TarError(f"the header at byte {at} has a malformed number")
    return int(digits[1] or b"0", 8)
