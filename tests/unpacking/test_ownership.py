"""Whom unpacked files belong to."""

from __future__ import annotations

import pytest

from imgproxy.errors import InvalidError
from imgproxy.unpacking.ownership import Ownership, Range, parse


def test_ways_are_parsed() -> None:
    assert [parse(each) for each in ("keep", "me", "record")] == [
        *(Ownership("keep"), Ownership("me"), Ownership("record"))
    ]
    assert parse("map=0:1000:1,1:100000:65536") == Ownership(
        "map", (Range(0, 1000, 1), Range(1, 100000, 65536))
    )


@pytest.mark.parametrize(
    "text",
    [
        *("", "map", "map=", "map=0:0", "map=0:0:0", "map=0:0:1,", "map=0:-1:1", "keep=0:0:1"),
        *("map=0:4294967295:1", "map=0:4294967294:2", "map=a:0:1", "Keep"),
    ],
)
def test_what_is_no_way_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"keep, me, record, or map|a range"):
        parse(text)


def test_owners_are_kept_mapped_or_nobody_s() -> None:
    assert parse("keep").owner(5, 7) == (5, 7)
    assert parse("map=0:1000:1,1:100000:10").owner(0, 10) == (1000, 100009)
    assert parse("me").owner(5, 7) is None
    assert parse("record").owner(5, 7) is None


@pytest.mark.parametrize("number", [2**32 - 1, 2**32, -1])
@pytest.mark.parametrize("way", ["keep", "me", "record", "map=0:0:4294967295"])
def test_a_number_that_nobody_has_is_refused(way: str, number: int) -> None:
    """chown(2) takes -1, as 2^32-1 is, for "leave it", and root's setuid bits would stay."""
    for pair in ((number, 0), (0, number)):
        with pytest.raises(InvalidError, match="no file can belong to"):
            parse(way).owner(*pair)


def test_a_number_beyond_the_map_is_refused() -> None:
    with pytest.raises(InvalidError, match="has no range with 11, which"):
        parse("map=1:100000:10").owner(1, 11)


@pytest.mark.parametrize(
    ("uid", "gid", "expected"),
    [
        *(
            (0, 0, None),
            (1, 0, b"\x08\x01"),
            (0, 1, b"\x10\x01"),
            (127, 128, b"\x08\x7f\x10\x80\x01"),
        ),
        (1000, 100, b"\x08\xe8\x07\x10d"),
        (2**32 - 2, 0, b"\x08\xfe\xff\xff\xff\x0f"),
    ],
)
def test_records_are_those_of_umoci(uid: int, gid: int, expected: bytes | None) -> None:
    assert parse("record").record(uid, gid) == expected
    assert parse("me").record(uid, gid) is None
