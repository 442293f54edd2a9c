"""Requests: any bytes are parsed as a request, or raise a failure that can be answered."""

from __future__ import annotations

import json
from urllib.parse import quote

from hypothesis import example, given
from hypothesis import strategies as st
from support.strategies import attempt, digests

from imgproxy.errors import Failure
from imgproxy.frontends.single_image_routes import GetBlob, GetDocument, Request, parse
from imgproxy.server.error_body import error_body

METHODS = st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT"]) | st.binary(max_size=8)
PIECES = [
    *(b"/", b"//", b"manifest", b"manifests", b"blobs", b"config", b"quit", b"http:", b"https:"),
    *(b"%2f", b"%00", b"%", b"%ff", b"?", b"#", b"..", b"localhost", b":80", b"[::1]", b"@"),
    *(b"layers", b"candidates", b"type=", b"annotation=", b"offset=", b"title=", b"&", b"=", b"-1"),
    *(b"sha256:", b"0" * 64, b"\t", b"\r\n", b" ", b"\0", b"\xff", b"\x1b"),
]
TARGETS = st.binary() | st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join)


@given(METHODS, TARGETS)
@example(b"GET", b"http://a\tb/manifest")
@example(b"GET", b"http://[::1]x/manifest")
def test_bytes_are_a_request_or_a_failure(method: bytes, target: bytes) -> None:
    asked = attempt(parse, method, target, expected=Failure)
    if isinstance(asked, Failure):
        assert asked.status in {400, 404, 405}
        assert not {"\n", "\r", "\0", "\x1b"} & set(asked.message)
        assert json.loads(error_body(asked, str))["errors"][0]["message"] == asked.message
    else:
        assert isinstance(asked, Request)


def escaped(text: str) -> st.SearchStrategy[str]:
    """Return the text with some of its letters escaped."""
    letter = st.sampled_from(["", "/", "%"])
    return st.lists(letter, min_size=len(text), max_size=len(text)).map(
        lambda ways: "".join(
            f"%{ord(each):02x}" if way == "%" else quote(each, safe=f"{way}:")
            for each, way in zip(text, ways, strict=True)
        )
    )


@given(
    st.sampled_from([("/blobs/", GetBlob), ("/manifests/", GetDocument)]),
    digests().flatmap(lambda text: st.tuples(st.just(text), escaped(text))),
    st.sampled_from(["", "http://localhost", "https://h:1", "HTTP://t"]),
)
def test_a_digest_is_asked_for_however_it_is_escaped(
    kind: tuple[str, type[GetBlob | GetDocument]], digest: tuple[str, str], origin: str
) -> None:
    prefix, request_type = kind
    request = parse(b"GET", f"{origin}{prefix}{digest[1]}".encode())
    assert isinstance(request, request_type)
    assert str(request.digest) == digest[0]
