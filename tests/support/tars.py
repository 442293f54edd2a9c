"""Tar archives by hand, header by header: what Python's tarfile does not write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgproxy.specs.oci import tar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from imgproxy.specs.oci.tar import Entry

BLOCK = 512
END = bytes(2 * BLOCK)

USTAR = b"ustar\x0000"
GNU = b"ustar  \0"


class Tape:
    """An archive in pieces, which need not all exist at once: a `tar.Stream`."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.position = 0
        self._pieces = iter(pieces)
        self._ahead = b""

    def read(self, size: int) -> bytes:
        while len(self._ahead) < size and (piece := next(self._pieces, b"")):
            self._ahead += piece
        content, self._ahead = self._ahead[:size], self._ahead[size:]
        self.position += len(content)
        return content

    def skip(self, size: int) -> None:
        self.read(size)


def read(archive: bytes) -> list[Entry]:
    return list(tar.entries(Tape([archive])))


def contents(archive: bytes) -> Iterator[tuple[Entry, bytes]]:
    """Return each member with the bytes at its offset."""
    for entry in read(archive):
        yield entry, archive[entry.offset : entry.offset + entry.size]


def octal(number: int, digits: int) -> bytes:
    return b"%0*o\0" % (digits, number)


def base_256(number: int, width: int = 12) -> bytes:
    """Return a number as GNU writes those that are too large for octal digits."""
    return b"\x80" + number.to_bytes(width - 1, "big")


def field(header: bytearray, at: int, value: bytes) -> None:
    header[at : at + len(value)] = value


def header(  # noqa: PLR0913  (a header has that many fields)
    name: bytes = b"a",
    kind: bytes = b"0",
    size: int | bytes = 0,
    *,
    target: bytes = b"",
    prefix: bytes = b"",
    magic: bytes = USTAR,
    more: dict[int, bytes] | None = None,
) -> bytes:
    """Return the header of a member; `more` are bytes by their offset."""
    raw = bytearray(BLOCK)
    field(raw, 0, name)
    field(raw, 100, octal(0o644, 7))
    field(raw, 124, octal(size, 11) if isinstance(size, int) else size)
    field(raw, 156, kind)
    field(raw, 157, target)
    field(raw, 257, magic)
    field(raw, 345, prefix)
    for at, value in (more or {}).items():
        field(raw, at, value)
    return summed(raw)


def summed(raw: bytes | bytearray, *, by: int = 0) -> bytes:
    """Return a header with its checksum, or with one that is wrong by so much."""
    summed = bytearray(raw)
    field(summed, 148, b" " * 8)
    field(summed, 148, octal(sum(summed) + by, 6) + b" ")
    return bytes(summed)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def member(content: bytes = b"", **fields: object) -> bytes:
    """Return a member with contents; `fields` are those of `header`."""
    return header(**{"size": len(content), **fields}) + padded(content)  # type: ignore[arg-type]


def record(key: bytes, value: bytes) -> bytes:
    """Return a record of an extended header, which begins with its own length."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def extended(*records: bytes, kind: bytes = b"x") -> bytes:
    """Return an extended header for the next member, or for all that follow."""
    return member(b"".join(records), name=b"PaxHeader", kind=kind)


def pax(**values: bytes | str) -> bytes:
    encoded = {key: v.encode() if isinstance(v, str) else v for key, v in values.items()}
    return extended(*(record(key.encode(), value) for key, value in encoded.items()))


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    """Return GNU's header with the name of the next member, or with what it links to."""
    return member(name + b"\0", name=b"././@LongLink", kind=kind, magic=GNU)
