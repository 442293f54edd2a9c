"""Bodies in chunks are read as h11 reads them, however they are damaged and arrive."""

from __future__ import annotations

import h11
from hypothesis import given
from hypothesis import strategies as st

from imgproxy.specs.http.chunks import Chunks

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Return a body in chunks and its content."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=8))
    tails = draw(st.lists(st.sampled_from(["", ";x=y", " ", "\t "]), min_size=9, max_size=9))
    sizes = [f"{len(piece):x}{tail}" for piece, tail in zip(pieces, tails, strict=False)]
    chunks = [
        f"{size}\r\n".encode() + piece + b"\r\n" for size, piece in zip(sizes, pieces, strict=True)
    ]
    trailers = draw(st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC: d\r\n"]))
    return b"".join(chunks) + b"0\r\n" + trailers + b"\r\n", b"".join(pieces)


def cut(body: bytes, at: list[int]) -> list[bytes]:
    """Return the body in pieces that end at these bytes."""
    ends = sorted({each % (len(body) + 1) for each in at} | {len(body)})
    return [body[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def read(pieces: list[bytes], room: int) -> tuple[bytes, bool] | None:
    """Return the content and whether it has ended, None for what are no chunks."""
    chunks, content, buffer = Chunks(), bytearray(), memoryview(bytearray(room))
    try:
        for piece in pieces:
            chunks.receive(piece)
            while count := chunks.take(buffer):
                content += buffer[:count]
    except ValueError:
        return None
    return bytes(content), chunks.has_ended


def read_by_h11(body: bytes) -> tuple[bytes, bool] | None:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(HEAD + body)
    content = b""
    try:
        while True:
            event = connection.next_event()
            if event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.EndOfMessage):
                return content, isinstance(event, h11.EndOfMessage)
            if isinstance(event, h11.Data):
                content += event.data
    except h11.RemoteProtocolError:
        return None


@given(bodies(), st.lists(st.integers(0, 500), max_size=6), st.integers(1, 100))
def test_content_survives_any_chunks_pieces_and_buffers(
    made: tuple[bytes, bytes], at: list[int], room: int
) -> None:
    body, content = made
    assert read(cut(body, at), room) == (content, True) == read_by_h11(body)


@given(bodies(), st.integers(0, 500), st.sampled_from(b"0123456789abcdefx;\r\n\0 -"))
def test_a_damaged_body_is_never_read_as_another_than_by_h11(
    made: tuple[bytes, bytes], at: int, byte: int
) -> None:
    """What both read to the end is the same. Trailers are not looked at here."""
    body = bytearray(made[0])
    body[at % len(body)] = byte
    ours, theirs = read([bytes(body)], 1000), read_by_h11(bytes(body))
    if ours is not None and theirs is not None and ours[1] and theirs[1]:
        assert ours == theirs
