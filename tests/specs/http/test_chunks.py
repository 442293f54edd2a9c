"""Bodies in chunks, of whatever size they are and in whatever pieces they arrive."""

from __future__ import annotations

import pytest

from imgproxy.specs.http.chunks import MAX_LINE, MAX_TRAILERS, Chunks


def content_of(*pieces: bytes, room: int = 7) -> tuple[bytes, bytes | None]:
    """Return the content of a body, and what follows it; None where the body has not ended."""
    chunks, content, buffer = Chunks(), bytearray(), memoryview(bytearray(room))
    for piece in pieces:
        chunks.receive(piece)
        while count := chunks.take(buffer):
            content += buffer[:count]
    return bytes(content), chunks.surplus if chunks.has_ended else None


WHOLE: dict[str, tuple[bytes, bytes]] = {
    "empty": (b"0\r\n\r\n", b""),
    "one": (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    "several": (b"1\r\nh\r\n3\r\nell\r\n1\r\no\r\n0\r\n\r\n", b"hello"),
    "hexadecimal": (b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
    "zeros": (b"0005\r\nhello\r\n000\r\n\r\n", b"hello"),
    "sixteen digits": (b"0000000000000005\r\nhello\r\n0\r\n\r\n", b"hello"),
    "line breaks in it": (b"4\r\n\r\n\r\n\r\n2\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n\r\n"),
    "extensions": (b'5;a=b;c="d"\r\nhello\r\n0;x\r\n\r\n', b"hello"),
    "blanks": (b"5 \t\r\nhello\r\n0  ;x\r\n\r\n", b"hello"),
    "trailers": (b"5\r\nhello\r\n0\r\nA: b\r\nC: d\r\n\r\n", b"hello"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_the_content_is_the_same_however_it_arrives(case: str) -> None:
    body, content = WHOLE[case]
    splits = [(body[:at], body[at:]) for at in range(len(body))]
    for pieces in [(body,), *splits, tuple(bytes([byte]) for byte in body)]:
        for room in (1, 7, 1000):
            assert content_of(*pieces, room=room) == (content, b"")


@pytest.mark.parametrize("case", WHOLE)
def test_what_follows_the_end_is_left(case: str) -> None:
    body, content = WHOLE[case]
    assert content_of(body + b"HTTP/1.1 200") == (content, b"HTTP/1.1 200")
    assert content_of(body, b"HTTP/1.1 200") == (content, b"HTTP/1.1 200")


@pytest.mark.parametrize("case", WHOLE)
def test_a_body_has_not_ended_before_its_last_byte(case: str) -> None:
    body, content = WHOLE[case]
    for at in range(len(body)):
        begun, rest = content_of(body[:at])
        assert content.startswith(begun)
        assert rest is None


def test_a_buffer_is_filled_with_all_chunks_that_are_there() -> None:
    """One chunk at a time would cost a turn of the event loop for each."""
    chunks, buffer = Chunks(), memoryview(bytearray(1000))
    chunks.receive(b"1\r\nx\r\n" * 600 + b"5\r\nab")
    assert chunks.take(buffer) == 602
    assert buffer[:602] == b"x" * 600 + b"ab"
    assert chunks.take(buffer) == 0


def test_content_is_not_held_back_for_what_has_not_been_received() -> None:
    chunks, buffer = Chunks(), memoryview(bytearray(1000))
    chunks.receive(b"ff")
    assert chunks.take(buffer) == 0
    chunks.receive(b"\r\nx")
    assert chunks.take(buffer) == 1
    chunks.receive(b"y")
    assert chunks.take(buffer) == 1


BROKEN: dict[str, tuple[bytes, str]] = {
    "no size": (b"\r\nhello", 'a chunk begins with ""'),
    "no digit": (b"x\r\nhello", 'a chunk begins with "x"'),
    "negative": (b"-5\r\nhello", 'a chunk begins with "-5"'),
    "a prefix": (b"0x5\r\nhello", 'a chunk begins with "0x5"'),
    "an underscore": (b"1_0\r\nhello", 'a chunk begins with "1_0"'),
    "a blank first": (b" 5\r\nhello", 'a chunk begins with " 5"'),
    "two sizes": (b"5 5\r\nhello", 'a chunk begins with "5 5"'),
    "a bare line feed": (b"5\nhello", 'a chunk begins with "5"'),
    "a bare return": (b"5;\rx\r\nhello", "a chunk begins with"),
    "seventeen digits": (b"00000000000000005\r\nhello", "a chunk begins with"),
    "another protocol": (b"SSH-2.0-OpenSSH\r\n", 'a chunk begins with "SSH-2.0-OpenSSH"'),
    "too long": (b"3\r\nhello\r\n0\r\n\r\n", "a chunk is longer than its size"),
    "a wrong end": (b"5\r\nhello\r0\r\n\r\n", "a chunk is longer than its size"),
    "a long line": (b"5;" + b"x" * MAX_LINE, "a chunk begins with"),
    "many trailers": (b"0\r\n" + b"a: b\r\n" * MAX_TRAILERS, "bytes of trailers"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_are_no_chunks_is_refused(case: str) -> None:
    body, words = BROKEN[case]
    size = 1 if len(body) < 1000 else 100
    for pieces in ((body,), [body[at : at + size] for at in range(0, len(body), size)]):
        with pytest.raises(ValueError, match=words):
            content_of(*pieces)


@pytest.mark.parametrize("case", BROKEN)
def test_what_came_before_is_taken_first(case: str) -> None:
    """A blob is gone on with at the byte that it had reached."""
    body, words = BROKEN[case]
    chunks, buffer = Chunks(), memoryview(bytearray(100))
    chunks.receive(b"2\r\nab\r\n" + body)
    assert chunks.take(buffer) >= 2
    assert buffer[:2] == b"ab"
    with pytest.raises(ValueError, match=words):
        chunks.take(buffer)
