"""Tar archives that images are stored in: where the contents of their members begin.

The control files of an image archive decide what is trusted, so anything that tar readers are known
to interpret differently is refused: a name that is given twice, global names, contents of a
directory, a lone block of zeros. `tar_fields` has the format.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.specs.oci import tar_fields as fields
from imgproxy.specs.oci.tar_fields import (
    BLOCK,
    MAX_EXTENSION,
    MAX_PATH,
    Kind,
    Stream,
    TarError,
    is_header,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.specs.oci.tar_fields import Header

__all__ = [
    "BLOCK",
    "MAX_EXTENSION",
    "MAX_PATH",
    "Entry",
    "Kind",
    "Stream",
    "TarError",
    "entries",
    "is_header",
    "normalise",
]

# The names of all members together are kept in memory.
MAX_NAMES = 16 * 1024 * 1024

# The largest archives in practice, all images of an air-gapped host, have some thousands.
MAX_MEMBERS = 65_536

_PAX_SIZE = re.compile(rb"[0-9]{1,18}")
_SPARSE_NAME = fields.SPARSE + b"name"
_GNU = {b"L": b"path", b"K": b"linkpath"}


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
    length = 0
    for count, entry in enumerate(_entries(stream), 1):
        length += len(entry.name or "") + len(entry.target)
        if count > MAX_MEMBERS or length > MAX_NAMES:
            raise TarError(f"more than {MAX_MEMBERS} members, or {MAX_NAMES} bytes of their names")
        yield entry
        fields.skip_to(stream, entry.offset + entry.size, entry.name)


def _entries(stream: Stream) -> Iterator[Entry]:
    """Yield the members, each with the values of the extended headers before it."""
    extended: dict[bytes, bytes] = {}
    end = 0
    for header in fields.headers(stream):
        if header.kind not in fields.EXTENSIONS:
            yield _entry(stream, header, extended)
            extended = {}
            continue
        for key, value in _extended_values(header, fields.content(stream, header)):
            if key in extended:
                raise TarError(f"the header at byte {header.at} repeats {key.decode()}")
            extended[key] = value
        end = stream.position
    if extended:
        raise TarError(f"ends at byte {end}, after a header that belongs to another")


def _extended_values(header: Header, content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the values in an extended header that matter here, with pax's keys."""
    at = header.at
    if header.kind in _GNU:
        yield _GNU[header.kind], fields.path(content.rstrip(b"\0"), at)
        return
    records = list(fields.records(content, at))
    if any(key.startswith(fields.SPARSE) for key, _ in records):
        yield fields.SPARSE, b""
    for key, value in records:
        if key == _SPARSE_NAME:
            yield key, fields.path(value, at)
        elif key in (b"path", b"linkpath", b"size"):
            if header.kind == fields.GLOBAL:
                raise TarError(
                    f"the global header at byte {at} sets {key.decode()} for all members"
                )
            if not value:
                raise TarError(f"the header at byte {at} sets {key.decode()} without a value")
            yield key, fields.path(value, at)


def _entry(stream: Stream, header: Header, extended: dict[bytes, bytes]) -> Entry:
    at = header.at
    kind = fields.KINDS.get(header.kind, "other")
    name = extended.get(b"path") or header.path
    size = header.size
    if b"size" in extended:
        if _PAX_SIZE.fullmatch(extended[b"size"]) is None:
            raise TarError(f"the header before byte {at} has a size that is not a number")
        size = int(extended[b"size"])
    if header.kind == b"\0" and name.endswith(b"/"):
        kind = "directory"  # the convention before directories had a type
    if size and (header.kind in fields.HEADER_ONLY or kind == "directory"):
        raise TarError(f"the header at byte {at} has a size, but its type has no contents")
    if kind == "sparse":
        _skip_sparse_map(stream, header)
    if fields.SPARSE in extended:
        kind, name = "sparse", extended.get(_SPARSE_NAME, name)
    target = extended.get(b"linkpath") or header.target_path
    return Entry(normalise(_text(name)), kind, stream.position, size, _text(target))


def _skip_sparse_map(stream: Stream, header: Header) -> None:
    """Skip the blocks in which GNU's old format continues its map of holes."""
    continues = header.block[482:483]
    while continues not in (b"", b"\0"):
        continues = stream.read(BLOCK)[504:505]


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")
