"""Which part of a blob is asked for, and whether the client has it already."""

from __future__ import annotations

import pytest

from imgproxy.specs.http import ranges
from imgproxy.specs.http.ranges import Part, Unsatisfiable
from imgproxy.specs.oci import digest as digests

DIGEST = str(digests.compute(b"content"))
OTHER = str(digests.compute(b"other"))
SIZE = 1000


def part(*fields: str, if_range: tuple[str, ...] = (), size: int = SIZE) -> object:
    return ranges.requested_part(fields, if_range, DIGEST, size)


@pytest.mark.parametrize(
    ("field", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, 1000),
        ("bytes=5-9", 5, 10),
        ("bytes=999-", 999, 1000),
        ("bytes=999-999", 999, 1000),
        ("bytes=500-1000", 500, 1000),  # one past the end, as regctl asks
        ("bytes=0-99999999999999999999999999", 0, 1000),
        ("bytes=-1", 999, 1000),
        ("bytes=-1000", 0, 1000),
        ("bytes=-5000", 0, 1000),
        (f"bytes=-{'9' * 5000}", 0, 1000),
        ("Bytes=0005-0009", 5, 10),
        ("bytes= 5-9 ", 5, 10),
        ("bytes=,5-9,", 5, 10),
    ],
)
def test_one_range_is_given(field: str, start: int, stop: int) -> None:
    given = part(field)
    assert given == Part(start, stop, SIZE)
    assert isinstance(given, Part)
    assert given.length == stop - start
    assert given.field == f"bytes {start}-{stop - 1}/{SIZE}"


@pytest.mark.parametrize("field", ["bytes=1000-", "bytes=1000-1000", "bytes=5000-6000", "bytes=-0"])
def test_a_range_beyond_the_end_cannot_be_given(field: str) -> None:
    assert part(field) == Unsatisfiable(SIZE)
    assert Unsatisfiable(SIZE).field == "bytes */1000"


@pytest.mark.parametrize("field", ["bytes=0-", "bytes=0-0", "bytes=-1", "bytes=-0"])
def test_of_nothing_no_range_can_be_given(field: str) -> None:
    assert part(field, size=0) == Unsatisfiable(0)


@pytest.mark.parametrize(
    "field",
    [
        *("", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=5", "bytes=--5", "bytes=5--9"),
        *("bytes=9-5", "bytes=1001-1000", "bytes=5-9x", "bytes=+5-9", "bytes=5- 9", "bytes =5-9"),
        *("bytes=5-9,20-30", "bytes=0-,-1", "items=5-9", "5-9", "bytes=5-9\n", "bytes=¹-9"),
        *("bytes:5-9", "bytes=0x5-9", "bytes=5.0-9"),
    ],
)
def test_what_is_no_single_range_of_bytes_is_disregarded(field: str) -> None:
    assert part(field) is None


def test_two_fields_are_several_ranges() -> None:
    assert part("bytes=0-1", "bytes=5-9") is None
    assert part() is None


def test_a_range_is_given_if_its_condition_has_the_strong_entity_tag() -> None:
    assert ranges.entity_tag(DIGEST) == f'"{DIGEST}"'
    assert part("bytes=5-9", if_range=(f'"{DIGEST}"',)) == Part(5, 10, SIZE)
    assert part("bytes=1000-", if_range=(f' "{DIGEST}" ',)) == Unsatisfiable(SIZE)


@pytest.mark.parametrize(
    "condition",
    [
        (f'W/"{DIGEST}"',),
        (f'"{OTHER}"',),
        (DIGEST,),
        ("*",),
        ("",),
        ("Wed, 21 Oct 2015 07:28:00 GMT",),
        (f'"{DIGEST}", "{OTHER}"',),
        (f'"{DIGEST}"', f'"{DIGEST}"'),
    ],
)
@pytest.mark.parametrize("field", ["bytes=5-9", "bytes=5000-"])
def test_any_other_condition_gives_the_whole(condition: tuple[str, ...], field: str) -> None:
    assert part(field, if_range=condition) is None


@pytest.mark.parametrize(
    "fields",
    [
        ["*"],
        [" * "],
        [f'"{DIGEST}"'],
        [f'W/"{DIGEST}"'],
        [DIGEST],
        [f'"{OTHER}", W/"{DIGEST}"'],
        [f'"{OTHER}" ,"{DIGEST}"'],
        [f'"a,b", "", {DIGEST}'],
        [f',, "{DIGEST}"'],
        [f'"{OTHER}"', f'"{DIGEST}"'],
        ['"broken', f'"{DIGEST}"'],
    ],
)
def test_what_the_client_has_need_not_be_sent(fields: list[str]) -> None:
    assert ranges.is_known(fields, DIGEST)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [""],
        [f'"{OTHER}"'],
        [f'"{DIGEST}x"'],
        [f'"x{DIGEST}"'],
        [f'"x,{DIGEST}"'],
        [f'w/"{DIGEST}"'],
        [f'"{DIGEST}'],
        [f"{DIGEST} x"],
        [DIGEST.partition(":")[2]],
        ['"*"'],
        ["**"],
        [f'"broken, "{DIGEST}"'],
    ],
)
def test_what_the_client_does_not_have_is_sent(fields: list[str]) -> None:
    assert not ranges.is_known(fields, DIGEST)
