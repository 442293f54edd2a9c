"""Heads of responses, as they arrive in pieces: what h11 is given, and when."""

from __future__ import annotations

import h11
import pytest

from imgproxy.net.response_parser import ResponseParser

MAX_HEAD = 1000
EARLY = b"HTTP/1.1 103 Early Hints\r\nX Y: z\r\nLink: x\r\n\r\n"
FINAL = b"HTTP/1.1 200 OK\r\nX-Cache : HIT\r\nContent-Length: 9\r\n\r\n"
BODY = b"\n\nX Y: z\n\n"


def parser() -> ResponseParser:
    made = ResponseParser(MAX_HEAD)
    made.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    made.send(h11.EndOfMessage())
    return made


@pytest.mark.parametrize("size", range(1, len(EARLY + FINAL + BODY) + 1))
def test_heads_arrive_in_any_pieces_and_the_body_as_it_is(size: int) -> None:
    http, received, events = parser(), EARLY + FINAL + BODY, []
    for at in range(0, len(received), size):
        http.receive_data(received[at : at + size])
        while not events or not isinstance(events[-1], h11.Response):
            event = http.next_event()
            if event is h11.NEED_DATA:
                break
            events.append(event)
    early, final = events
    assert early.headers == [(b"link", b"x")]
    assert final.headers == [(b"content-length", b"9")]
    assert http.trailing_data == (BODY, False)


@pytest.mark.parametrize(
    "received",
    [
        b"\x16\x03\x01",
        b"\r\n",
        b" HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * MAX_HEAD,
        EARLY + b"HTTP/1.1 200 OK\r\nX: " + b"y" * MAX_HEAD,
    ],
)
def test_what_cannot_become_a_head_is_refused_at_once(received: bytes) -> None:
    http = parser()
    http.receive_data(received)
    with pytest.raises(h11.RemoteProtocolError):
        list(iter(http.next_event, h11.NEED_DATA))


@pytest.mark.parametrize("received", [b"", b"H", FINAL[:-1], EARLY + FINAL[:-1]])
def test_what_is_received_counts_until_the_head_is_whole(received: bytes) -> None:
    """By it, a connection that was closed before an answer is told from a broken answer."""
    http = parser()
    if received:
        http.receive_data(received)
    while http.next_event() is not h11.NEED_DATA:
        pass
    assert http.trailing_data == (received.removeprefix(EARLY), False)
    http.receive_data(b"")
    assert http.trailing_data == (received.removeprefix(EARLY), True)
    with pytest.raises(h11.RemoteProtocolError):
        http.next_event()
