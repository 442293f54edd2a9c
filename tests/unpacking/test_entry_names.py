"""Names in layers: what a path is, and what whiteouts and AUFS's own names are."""

from __future__ import annotations

import pytest

from imgproxy.errors import InvalidError
from imgproxy.unpacking.entry_names import MAX_DEPTH, OPAQUE, Name, components, parse


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((b"a", Name((), b"a")), (b"./a", Name((), b"a")), (b"/a", Name((), b"a"))),
        *((b"a/", Name((), b"a")), (b"//a/./b//", Name((b"a",), b"b"))),
        *((b"", Name((), b"")), (b".", Name((), b"")), (b"/", Name((), b""))),
        *((b"\xff\n", Name((), b"\xff\n")), (b"...", Name((), b"..."))),
        (b"d/.wh.a", Name((b"d",), b".wh.a", hides=b"a")),
        (b"d/.wh.a.wh.b", Name((b"d",), b".wh.a.wh.b", hides=b"a.wh.b")),
        (b"a.wh.b", Name((), b"a.wh.b")),
        (b"d/.wh..wh..opq", Name((b"d",), OPAQUE, hides=OPAQUE)),
        (b".wh..wh.aufs", Name((), b".wh..wh.aufs", is_reserved=True)),
        (b".wh..wh.plnk/1.2", Name((b".wh..wh.plnk",), b"1.2", is_reserved=True)),
        (
            b"a/.wh..wh.orph/b/.wh.c",
            Name((b"a", b".wh..wh.orph", b"b"), b".wh.c", is_reserved=True),
        ),
    ],
)
def test_a_name_is_what_it_says(name: bytes, expected: Name) -> None:
    assert parse(name) == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((b"..", '".." in it'), (b"a/../b", '".." in it'), (b"/../a", '".." in it')),
        *((b".wh.", "a whiteout of nothing"), (b"d/.wh..", "a whiteout of nothing")),
        *((b".wh...", "a whiteout of nothing"), (b".wh.d/a", "below a whiteout")),
        *((b"x" * 256, "a component of more"), (b"a/" + b"x" * 256, "a component of more")),
        (b"a/" * (MAX_DEPTH + 1), f"more than {MAX_DEPTH} directories"),
    ],
)
def test_what_no_tree_can_have_is_refused(name: bytes, words: str) -> None:
    with pytest.raises(InvalidError, match=words) as caught:
        parse(name)
    assert caught.value.code == "ARCHIVE_INVALID"


def test_the_longest_names_are_names() -> None:
    assert parse(b"x" * 255).last == b"x" * 255
    assert len(components(b"a/" * MAX_DEPTH)) == MAX_DEPTH
