"""Targets of requests: RFC 9112 section 3.2."""

from __future__ import annotations

import pytest

from imgproxy.server import request_target


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        (b"/a/b", (b"/a/b", b"")),
        (b"/a?b=c?d", (b"/a", b"b=c?d")),
        (b"//a", (b"//a", b"")),
        (b"/%2f?%3f", (b"/%2f", b"%3f")),
        (b"http://h", (b"", b"")),
        (b"http://h?x", (b"", b"x")),
        (b"HTTPS://[::1]:8/a?x", (b"/a", b"x")),
        (b"http://http/a", (b"/a", b"")),
    ],
)
def test_path_and_query_are_not_decoded(target: bytes, parts: tuple[bytes, bytes]) -> None:
    assert request_target.split(target) == parts


@pytest.mark.parametrize(
    "target", [b"", b"*", b"a/b", b"h:80", b"ftp://h/a", b"http:///a", b"http://[/"]
)
def test_what_is_no_path_is_refused(target: bytes) -> None:
    with pytest.raises(ValueError, match=r"neither a path nor a URL|Invalid IPv6 URL"):
        request_target.split(target)
