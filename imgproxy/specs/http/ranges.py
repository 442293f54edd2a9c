"""What a server makes of `Range` and of conditional requests: RFC 9110 sections 13 and 14.

For content that never changes and has one strong entity tag: its digest, here as text, in quotes.
A server may disregard any `Range` (section 14.2); this one gives one range of bytes, and the whole
where several are asked for. Values are those of all fields of the name, in their order.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

# Section 14.1.1: one `int-range` or `suffix-range`. Units are case-insensitive (section 14.1), and
# a list may have empty elements (section 5.6.1.2).
_RANGE = re.compile(r"(?i:bytes)=[ \t,]*([0-9]*)-([0-9]*)[ \t,]*")

# No size has as many digits, and `int` is slow for a number that fills a head.
_MAX_DIGITS = 19
_BEYOND = 10**_MAX_DIGITS

# Section 8.8.3, and what clients send that forget the quotes.
_ENTITY_TAG = re.compile(r'[ \t]*(?:(?:W/)?"([\x21\x23-\x7e\x80-\xff]*)"|([^\s",]*))[ \t]*(?:,|$)')


class Part(NamedTuple):
    """The bytes from `start` to before `stop` of content of `size` bytes; at least one."""

    start: int
    stop: int
    size: int

    @property
    def length(self) -> int:
        """The number of bytes."""
        return self.stop - self.start

    @property
    def field(self) -> str:
        """The value of the `Content-Range` field of a 206: section 14.4."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


class Unsatisfiable(NamedTuple):
    """A range of which content of `size` bytes has nothing: 416, section 15.5.17."""

    size: int

    @property
    def field(self) -> str:
        """The value of the `Content-Range` field of a 416: section 14.4."""
        return f"bytes */{self.size}"


def requested_part(
    ranges: Sequence[str], if_range: Sequence[str], digest: str, size: int
) -> Part | Unsatisfiable | None:
    """Return the part of content that a `GET` asks for, None for the whole.

    `ranges` and `if_range` are the values of all `Range` and `If-Range` fields, `digest` and `size`
    those of the content. A range that is malformed or reversed, has another unit or is one of
    several is disregarded (section 14.2), and any range whose `If-Range` does not have the digest:
    section 13.1.5. For other methods than `GET`, `Range` has no meaning.
    """
    match = _RANGE.fullmatch(ranges[0]) if len(ranges) == 1 else None
    if match is None or (if_range and not _is_current(if_range, digest)):
        return None
    first, last = match[1], match[2]
    if not first:
        return _last_bytes(_number(last), size) if last else None
    start = _number(first)
    stop = size if not last else _number(last) + 1
    if stop <= start and last:
        return None
    return Part(start, min(stop, size), size) if start < size else Unsatisfiable(size)


def _last_bytes(length: int, size: int) -> Part | Unsatisfiable:
    """Return the part with the last `length` bytes: all of them where there are fewer."""
    if length == 0 or size == 0:
        return Unsatisfiable(size)
    return Part(max(0, size - length), size, size)


def _number(digits: str) -> int:
    significant = digits.lstrip("0")
    return int(significant or "0") if len(significant) <= _MAX_DIGITS else _BEYOND


def _is_current(if_range: Sequence[str], digest: str) -> bool:
    """Return whether `If-Range` has the strong entity tag of content; a date never is: 13.1.5."""
    return len(if_range) == 1 and if_range[0].strip(" \t") == entity_tag(digest)


def entity_tag(digest: str) -> str:
    """Return the value of the `ETag` field of content with this digest: section 8.8.3."""
    return f'"{digest}"'


def is_known(if_none_match: Sequence[str], digest: str) -> bool:
    """Return whether a client has content with this digest already: 304, section 13.1.2.

    `if_none_match` are the values of all `If-None-Match` fields: `*`, or entity tags, which are
    compared weakly (section 8.8.3.2); a digest without quotes is understood as well. A field that
    is malformed is read up to there.
    """
    for field in if_none_match:
        if field.strip(" \t") == "*":
            return True
        position = 0
        while position < len(field):
            match = _ENTITY_TAG.match(field, position)
            if match is None:
                break
            if digest in (match[1], match[2]):
                return True
            position = match.end()
    return False
