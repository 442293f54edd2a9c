"""Whom unpacked files belong to: the owners in the image, the user, or others by a map."""

from __future__ import annotations

import re
from typing import NamedTuple

from imgproxy.unpacking.entry_names import MemberError

# What a file says that belongs to another in the image: "rootless containers", as umoci and
# others write it. The value is a message of Protocol Buffers with the numbers of user and group.
RECORD = b"user.rootlesscontainers"

# 2^32-1 stands for "leave it" in chown(2).
_MAX_ID = 2**32 - 2

_RANGE = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})")


class Range(NamedTuple):
    """`length` numbers from `first` on in the image are those from `there` on here."""

    first: int
    there: int
    length: int


class Ownership(NamedTuple):
    """`keep`, `me`, `record`, or `map` with its `ranges`, for users and groups alike."""

    way: str
    ranges: tuple[Range, ...] = ()

    def owner(self, uid: int, gid: int) -> tuple[int, int] | None:
        """Return whom a file is to be given to, None for nobody else. Raises `MemberError`."""
        if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
            raise MemberError(f"no file can belong to {uid}:{gid}")
        if self.way == "keep":
            return uid, gid
        if self.way == "map":
            return self._mapped(uid), self._mapped(gid)
        return None

    def _mapped(self, number: int) -> int:
        for first, there, length in self.ranges:
            if first <= number < first + length:
                return there + number - first
        raise MemberError(f"--owner map has no range with {number}, which a file belongs to")

    def record(self, uid: int, gid: int) -> bytes | None:
        """Return the record of an owner; None where none is made, or root's, which needs none."""
        if self.way != "record" or not (uid or gid):
            return None
        fields = ((b"\x08", uid), (b"\x10", gid))
        return b"".join(key + _varint(number) for key, number in fields if number)


def parse(text: str) -> Ownership:
    """Parse the value of `--owner`. Raises `ValueError`."""
    if text in ("keep", "me", "record"):
        return Ownership(text)
    way, _, ranges = text.partition("=")
    found = [_RANGE.fullmatch(each) for each in ranges.split(",")]
    parsed = tuple(Range(*map(int, each.groups())) for each in found if each is not None)
    if way != "map" or len(parsed) != len(found):
        raise ValueError("keep, me, record, or map=FIRST:THERE:COUNT,…")
    if any(each.length == 0 or each.there + each.length - 1 > _MAX_ID for each in parsed):
        raise ValueError(f"a range is empty, or leads beyond {_MAX_ID}")
    return Ownership("map", parsed)


def _varint(number: int) -> bytes:
    raw = bytearray()
    while number >= 0x80:  # noqa: PLR2004  (seven bits a byte)
        raw.append(number & 0x7F | 0x80)
        number >>= 7
    raw.append(number)
    return bytes(raw)
