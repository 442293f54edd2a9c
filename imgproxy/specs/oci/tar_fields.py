"""The headers of tar archives: blocks, numbers, extended headers; what they mean is decided above.

POSIX.1-2024, pax(1), "ustar Interchange Format" and "pax Extended Header", with GNU's long names
and base-256 numbers (tar(5)). `tar` reads the archives that images are stored in, `tar_layers`
the layers of images.
"""

from __future__ import annotations

import re
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol
from zlib import adler32

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 512

# An extended header that is longer than this holds something other than a name.
MAX_EXTENSION = 1024 * 1024

# No system has longer paths (PATH_MAX).
MAX_PATH = 4096

SPARSE = b"GNU.sparse."

# Types of headers that belong to the next member. `X` is Solaris's extended header.
EXTENSIONS = frozenset((b"x", b"g", b"X", b"L", b"K"))
GLOBAL = b"g"

# Types of members without contents of their own, whatever the size in the header.
HEADER_ONLY = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))

Kind = Literal["file", "directory", "link", "symlink", "sparse", "other"]

KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",  # contiguous
    b"1": "link",
    b"2": "symlink",
    b"5": "directory",
    b"S": "sparse",
}

_ZEROS = bytes(BLOCK)
_FIELDS = Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")
_MAGIC = b"ustar\0"  # GNU's own format has times in place of the prefix
_OCTAL = re.compile(rb"[ ]*([0-7]*)[ \0]*")
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,7}) ")
_BASE_256 = 0x80
_SIGN = 0x80
_HALF = BLOCK // 2
_SPACES = 8 * ord(" ")

# Distinct numbers that are remembered; most headers of an archive have the same few.
_NUMBERS = 4096


class TarError(ValueError):
    """The archive is broken or ambiguous; the message states the position."""


class Stream(Protocol):
    """The bytes of an archive, in order. `position` is the offset of the next one."""

    position: int

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer than `size` only at the end."""

    def skip(self, size: int) -> None:
        """Skip bytes, fewer than `size` only at the end, as `position` shows."""


class Header(NamedTuple):
    """A header as it stands at byte `at`: the fields are as wide as in the archive, but `size`."""

    at: int
    name: bytes
    mode: bytes
    uid: bytes
    gid: bytes
    size: int
    mtime: bytes
    kind: bytes
    target: bytes
    major: bytes
    minor: bytes
    prefix: bytes
    block: bytes

    @property
    def path(self) -> bytes:
        """The name, with the prefix where there is one."""
        name, prefix = self.name.partition(b"\0")[0], self.prefix.partition(b"\0")[0]
        return prefix + b"/" + name if prefix else name

    @property
    def target_path(self) -> bytes:
        """The target of a link."""
        return self.target.partition(b"\0")[0]


def headers(stream: Stream) -> Iterator[Header]:
    """Yield the header at the position of the stream each time, until the archive ends there.

    In between, whoever asks reads or skips what the header is followed by. Raises `TarError`.
    """
    while True:
        at = stream.position
        block = stream.read(BLOCK)
        if len(block) != BLOCK or block == _ZEROS:
            break
        yield _header(block, at)
    if len(block) not in (0, BLOCK):
        raise TarError(f"ends at byte {stream.position}, in the middle of a header")
    if block and stream.read(BLOCK).strip(b"\0"):
        raise TarError(f"one block of zeros at byte {at}, followed by data")


def _header(block: bytes, at: int) -> Header:
    name, mode, uid, gid, size, mtime, checksum, kind, target, magic, major, minor, prefix = (
        _FIELDS.unpack(block)
    )
    # Adler's low half is 1 and the sum of the bytes, exactly as long as that is below 65521.
    total = (adler32(block[:_HALF]) & 0xFFFF) + (adler32(block[_HALF:]) & 0xFFFF) - 2
    total += _SPACES - (adler32(checksum) & 0xFFFF) + 1
    if number(checksum, at) != total:
        # Some old writers summed signed bytes.
        signed = sum(byte >= _SIGN for byte in block[:148] + block[156:])
        if number(checksum, at) != total - 256 * signed:
            raise TarError(f"no header at byte {at}: the checksum is wrong")
    if not magic.startswith(_MAGIC):
        prefix = b""
    return Header(
        *(at, name, mode, uid, gid, number(size, at), mtime, kind, target),
        *(major, minor, prefix, block),
    )


def is_header(block: bytes) -> bool:
    """Return whether a block is the first of a tar: a header, or zeros if it has no members."""
    try:
        return block == _ZEROS or (len(block) == BLOCK and _header(block, 0).size >= 0)
    except TarError:
        return False


def number(field: bytes, at: int) -> int:
    """Return a number in octal digits, or in GNU's base 256. Raises `TarError`."""
    value = _number(field)
    if value is None:
        raise TarError(f"the header at byte {at} has a malformed number")
    return value


@lru_cache(_NUMBERS)
def _number(field: bytes) -> int | None:
    if field[0] == _BASE_256:
        return int.from_bytes(field[1:], "big")
    digits = _OCTAL.fullmatch(field)
    return None if digits is None else int(digits[1] or b"0", 8)


def content(stream: Stream, header: Header) -> bytes:
    """Return the content of an extended header that was read just now. Raises `TarError`."""
    if header.size > MAX_EXTENSION:
        raise TarError(f"the extended header at byte {header.at} has {header.size} bytes")
    content = stream.read(header.size)
    if len(content) != header.size:
        raise TarError(f"ends at byte {stream.position}, in the middle of a header")
    stream.skip(-header.size % BLOCK)
    return content


def records(content: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values in pax's extended header. Raises `TarError`."""
    position = 0
    while position < len(content):
        length = _PAX_RECORD.match(content, position)
        end = position + int(length[1]) if length else 0
        key, equals, value = content[length.end() if length else 0 : end].partition(b"=")
        if not equals or end > len(content) or value[-1:] != b"\n":
            raise TarError(f"the extended header at byte {at} is malformed")
        yield key, value[:-1]
        position = end


def path(raw: bytes, at: int) -> bytes:
    """Return a name that an extended header has, if it is one. Raises `TarError`."""
    if b"\0" in raw:
        raise TarError(f"the header at byte {at} has a name with a NUL in it")
    if len(raw) > MAX_PATH:
        raise TarError(f"the header at byte {at} has a name of {len(raw)} bytes")
    return raw


def skip_to(stream: Stream, end: int, name: str | None) -> None:
    """Skip the rest of a member whose content ends at a byte, and its padding."""
    stream.skip(end - stream.position)
    if stream.position != end:
        raise TarError(f"ends at byte {stream.position}, in the middle of {name or 'a member'}")
    stream.skip(-end % BLOCK)
