"""Sparse members of tar archives: where in the file their content belongs.

GNU tar, "Storing Sparse Files": the old format with its map in headers, and pax's versions 0.0 and
0.1 with it in extended headers, and 1.0 with it at the beginning of the content.
"""

from __future__ import annotations

import re
from array import array
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.specs.oci import tar_fields as fields
from imgproxy.specs.oci.tar_fields import BLOCK, SPARSE, TarError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.specs.oci.tar_fields import Header, Stream

# What a file of 4 GiB has if every other block is a hole. The map is kept in memory.
MAX_REGIONS = 1_000_000

_NUMBER = re.compile(rb"[0-9]{1,18}")

# Of the old format: a pair of numbers for each region, 4 in the header and 21 in those after it.
_PAIR = 24
_MAP = slice(386, 482)
_IS_CONTINUED = slice(482, 483)
_SIZE = slice(483, 495)
_MORE_MAP = slice(0, 504)
_IS_CONTINUED_AGAIN = slice(504, 505)


class Holes(NamedTuple):
    """A sparse file: its size, in bytes, and the offsets and lengths of its regions, in turn.

    `numbers` is None where they are at the beginning of the content.
    """

    size: int
    numbers: array[int] | None


def in_header(stream: Stream, header: Header) -> Holes:
    """Return the holes of a member in the old format; reads the headers with the rest of the map.

    Raises `TarError`.
    """
    numbers = array("q")
    size = _limited(fields.number(header.block[_SIZE], header.at), header.at)
    block, part, continues = header.block, _MAP, _IS_CONTINUED
    while True:
        pairs = block[part]
        for at in range(0, len(pairs), _PAIR):
            pair = pairs[at : at + _PAIR]
            if pair[0] and pair[_PAIR // 2]:
                for field in (pair[: _PAIR // 2], pair[_PAIR // 2 :]):
                    numbers.append(_limited(fields.number(field, header.at), header.at))
        if block[continues] in (b"", b"\0"):
            return Holes(size, numbers)
        if len(numbers) > 2 * MAX_REGIONS:
            raise _too_many(header.at)
        part, continues = _MORE_MAP, _IS_CONTINUED_AGAIN
        block = stream.read(BLOCK)
        if len(block) != BLOCK:
            raise TarError(f"ends at byte {stream.position}, in the middle of a header")


def in_records(records: list[tuple[bytes, bytes]], name: bytes, at: int) -> tuple[Holes, bytes]:
    """Return the holes that records of an extended header describe, and the name of the file.

    `records` have keys that begin with `SPARSE`. Raises `TarError`.
    """
    values = {key[len(SPARSE) :]: value for key, value in records}
    name = fields.path(values.get(b"name", b""), at) or name
    size = _number(values.get(b"realsize") or values.get(b"size", b""), at)
    version = values.get(b"major", b"0"), values.get(b"minor", b"0")
    if version == (b"1", b"0"):
        return Holes(size, None), name
    if version not in ((b"0", b"0"), (b"0", b"1")):
        raise TarError(f"the header before byte {at} has holes in a format that is not known")
    if b"map" in values:
        texts = values[b"map"].split(b",") if values[b"map"] else []
    else:
        parts = (SPARSE + b"offset", SPARSE + b"numbytes")
        texts = [value for key, value in records if key in parts]
        keys = [key for key, _ in records if key in parts]
        if keys != list(parts) * (len(keys) // 2):
            raise _malformed(at)
    return Holes(size, array("q", (_number(text, at) for text in texts))), name


def regions(stream: Stream, holes: Holes, size: int, at: int) -> Iterator[tuple[int, int]]:
    """Return the offset and the length of each region whose bytes the stream has next, in turn.

    `size` is that of the content, which has not been read; `at` is where the header is. Raises
    `TarError` before the first for a map that is wrong.
    """
    numbers = holes.numbers
    if numbers is None:
        begin = stream.position
        numbers = _in_content(stream, begin + size, at)
        size -= stream.position - begin
    if len(numbers) % 2:
        raise _malformed(at)
    end = stored = 0
    for offset, length in _pairs(numbers):
        if offset < end:
            raise _malformed(at)
        end = offset + length
        stored += length
    if end > holes.size or stored != size:
        raise _malformed(at)
    return _pairs(numbers)


def _pairs(numbers: array[int]) -> Iterator[tuple[int, int]]:
    each = iter(numbers)
    return zip(each, each, strict=True)


def _in_content(stream: Stream, end: int, at: int) -> array[int]:
    """Return the map that the content begins with: lines of numbers, their count first."""
    numbers = array("q")
    rest, count = b"", -1
    while len(numbers) != count:
        if stream.position + BLOCK > end:
            raise _malformed(at)
        *lines, rest = (rest + stream.read(BLOCK)).split(b"\n")
        if count < 0 and lines:
            count = 2 * _number(lines.pop(0), at)
            if count > 2 * MAX_REGIONS:
                raise _too_many(at)
        for line in lines[: max(count, 0) - len(numbers)]:
            numbers.append(_number(line, at))
        if len(rest) > BLOCK:
            raise _malformed(at)
    return numbers


def _number(text: bytes, at: int) -> int:
    if _NUMBER.fullmatch(text) is None:
        raise _malformed(at)
    return int(text)


def _limited(number: int, at: int) -> int:
    if number.bit_length() > 62:  # noqa: PLR2004  (so that a sum of two has room)
        raise _malformed(at)
    return number


def _too_many(at: int) -> TarError:
    return TarError(f"the header at byte {at} has more than {MAX_REGIONS} regions between holes")


def _malformed(at: int) -> TarError:
    return TarError(f"the header at byte {at} has a malformed map of holes")
