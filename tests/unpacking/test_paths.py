"""What paths from outside are called inside of a tree."""

from __future__ import annotations

import pytest

from imgproxy.unpacking import paths


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"a", b"a"),
        (b"./a//b/./c/", b"a/b/c"),
        (b"/a", b"a"),
        (b"//a", b"a"),
        (b".", b""),
        (b"/", b""),
        (b"..a/b..", b"..a/b.."),
        (b"..\\a", b"..\\a"),
        (b"\xff", b"\xff"),
        (b"x" * 255, b"x" * 255),
        (b"d/" * 256, (b"d/" * 256)[:-1]),
    ],
)
def test_a_path_has_one_form(path: bytes, expected: bytes) -> None:
    assert paths.inside(path) == expected


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (b"", "empty"),
        (b"..", r'"\.\."'),
        (b"a/../b", r'"\.\."'),
        (b"a\0b", "NUL"),
        (b"x" * 256, "longer than 255 bytes"),
        (b"d/" * 257, "256 directories"),
        (b"/" * 4097, "4096 bytes"),
    ],
)
def test_what_is_no_path_inside_is_refused(path: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        paths.inside(path)


@pytest.mark.parametrize(
    ("path", "target", "outside"),
    [
        (b"l", b"a", False),
        (b"l", b"..", True),
        (b"d/l", b"..", False),
        (b"d/l", b"../..", True),
        (b"d/l", b"../d/../e", False),
        (b"d/l", b"x/../../../y", True),
        (b"l", b"/a", True),
        (b"l", b"a/./..//b", False),
        (b"l", b"a/../..", True),
    ],
)
def test_a_link_leads_outside_by_its_words(path: bytes, target: bytes, *, outside: bool) -> None:
    assert paths.leads_outside(path, target) is outside
