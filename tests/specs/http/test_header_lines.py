"""Lines of a head that are no fields: ignored where they advise, kept where they may frame."""

from __future__ import annotations

import pytest

from imgproxy.specs.http.header_lines import without_malformed

BEFORE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n"
AFTER = b"X-After: y\r\n\r\n"

ADVISORY = [
    b"X-Cache : HIT",
    b"X-Cache\t: HIT",
    b"X Cache: y",
    b"X-Cache HIT",
    b": nameless",
    b"(X): y",
    b"X\xe9: y",
    b"X\x00: y",
    b"X: a\x00b",
    b"X: a\x0bb",
    b"X: a\rb",
    b"<html>",
    b"HTTP/1.1 200 OK",
    b"X Headers : Content-Length, Connection",
    b"X Cache: y\r\n z",
    b"\x00z: y",
    b"X: y\r\n z\x00",
]

WELL_FORMED = [
    b"X: y",
    b"X:y",
    b"X:",
    b"X:  y \t",
    b"!#$%&'*+-.^_`|~09azAZ: y",
    b"X: \xe9\xff",
    b"X: a\x01\x7fb",
    b"X: y\r\n z",
    b"X: Content-Length: 5",
    b"Content_Length: 5",
    b"Transfer-Encoding: chunked",
    b"Connection: close",
]

# A reader that understands one of these, and another that does not, disagree about where the
# response ends; what follows would be taken for the response to another request (smuggling).
FRAMING = [
    b"Content-Length : 5",
    b"content-length\t: 5",
    b"CONTENT LENGTH: 5",
    b"Content-\x00Length: 5",
    b"Content-Length\x0b: 5",
    b"\x0bContent-Length: 5",
    b"(Content-Length): 5",
    b"Content-Length 5",
    b"Content-Length=5",
    b"Content\xe2\x80\x93Length: 5",
    b"Transfer-Encoding : chunked",
    b"Transfer Encoding: chunked",
    b"Transfer-Encoding\xa0: chunked",
    b"Transfer-Encoding\x00: chunked",
    b"Transfer-Encoding: chunked\x00",
    b"Connection : close",
    b"Connection\x0c: close",
    b"Connection close",
    b"Con\x0bnection: close",
    b"X Y: z\rContent-Length: 5",
    b"X: z\rTransfer-Encoding: chunked",
    b"X: z\x0bConnection: close",
    b"X Y: z\r\n Content-Length: 5",
    b"X Y: z\r\n\tTransfer-Encoding: chunked",
    b"Transfer-\r\n Encoding: chunked",
    b"Transfer Encoding: a\r\n b",
]


@pytest.mark.parametrize("line", ADVISORY)
def test_a_malformed_line_that_advises_is_left_out(line: bytes) -> None:
    assert without_malformed(BEFORE + line + b"\r\n" + AFTER) == BEFORE + AFTER
    assert without_malformed((BEFORE + line + b"\n" + AFTER).replace(b"\r\n", b"\n")) == (
        (BEFORE + AFTER).replace(b"\r\n", b"\n")
    )


@pytest.mark.parametrize("line", [*WELL_FORMED, *FRAMING])
def test_well_formed_lines_and_whatever_may_frame_stay(line: bytes) -> None:
    head = BEFORE + line + b"\r\n" + AFTER
    assert without_malformed(head) == head


def test_a_continuation_of_nothing_stays() -> None:
    """It may continue the status line, or be a field of its own; h11 refuses it."""
    head = b"HTTP/1.1 200 OK\r\n Content-Length: 3\r\n\r\n"
    assert without_malformed(head) == head


@pytest.mark.parametrize("line", [b"SSH-2.0-x", b"HTTP/1.1 200 : OK", b"\x16\x03\x01", b""])
def test_the_status_line_stays(line: bytes) -> None:
    head = line + b"\r\nX: y\r\n\r\n"
    assert without_malformed(head) == head
