"""Requests from bytes, apart from their answers: tests/server/test_http_connection.py has those."""

from __future__ import annotations

import h11
import pytest
from support.conversations import GET, ask

from imgproxy.errors import BadRequestError
from imgproxy.server.request_errors import HeadTooLargeError
from imgproxy.server.request_reader import MAX_HEAD, RequestReader, persistence


def reader_of(data: bytes) -> RequestReader:
    reader = RequestReader()
    reader.receive(data)
    return reader


def request_in(data: bytes) -> h11.Request:
    event = reader_of(data).next_event()
    assert isinstance(event, h11.Request)
    return event


@pytest.mark.parametrize("data", [b"", b"\r", b"\r\n", b"\r\n\r\n\r"])
def test_nothing_of_a_request_has_come_with_empty_lines(data: bytes) -> None:
    reader = RequestReader()
    if data:
        reader.receive(data)
    assert reader.next_event() is h11.NEED_DATA
    assert reader.is_begun == data.endswith(b"\r")  # which may be anything yet


def test_a_request_is_begun_by_its_first_byte_and_whole_at_its_last() -> None:
    reader = reader_of(b"\r\nG")
    assert reader.next_event() is h11.NEED_DATA
    assert (reader.is_begun, reader.is_whole) == (True, False)
    reader.receive(GET[1:] + GET[:5])
    assert isinstance(reader.next_event(), h11.Request)
    assert (reader.is_begun, reader.is_whole) == (True, False)
    assert isinstance(reader.next_event(), h11.EndOfMessage)
    assert reader.is_whole
    reader.start_next()
    assert reader.next_event() is h11.NEED_DATA
    assert (reader.is_begun, reader.is_whole) == (True, False)


def test_the_fields_of_a_request_with_one_host_are_as_sent() -> None:
    fields = ["Not-The-Host: a", "X-Host: b"]
    request = request_in(ask("GET", "/manifest", *fields))
    assert list(request.headers) == [
        (b"host", b"localhost"),
        (b"not-the-host", b"a"),
        (b"x-host", b"b"),
    ]


@pytest.mark.parametrize("head", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.0\r\n Host: x\r\n\r\n"])
def test_a_request_without_a_host_has_none_that_a_listener_could_take_for_one(head: bytes) -> None:
    try:
        request = request_in(head)
    except BadRequestError:
        return
    assert [value for name, value in request.headers if name == b"host"] == [b""]


def test_the_room_is_one_byte_more_than_a_head_may_have() -> None:
    reader = RequestReader()
    head = GET[:-4] + b"\r\nX: "
    reader.receive(head)
    assert reader.next_event() is h11.NEED_DATA
    assert reader.room == MAX_HEAD + 1 - len(head)
    reader.receive(b"x" * reader.room)
    with pytest.raises(HeadTooLargeError):
        reader.next_event()


@pytest.mark.parametrize(
    ("version", "fields", "wanted"),
    [
        ("1.1", [], ""),
        ("1.1", ["Connection: keep-alive"], ""),
        ("1.1", ["Connection: close"], "close"),
        ("1.1", ["Connection: x", "Connection: y , CLOSE"], "close"),
        ("1.1", ["Connection: closed"], ""),
        ("1.1", ["Transfer-Encoding: chunked"], ""),
        ("1.0", [], "close"),
        ("1.0", ["Connection: keep-alive"], "keep-alive"),
        ("1.0", ["Connection: Keep-Alive, TE"], "keep-alive"),
        ("1.0", ["Connection: keep-alive, close"], "close"),
        ("1.0", ["Connection: keep-alive", "Transfer-Encoding: chunked"], "close"),
        ("1.0", ["Keep-Alive: timeout=5"], "close"),
    ],
)
def test_whether_the_connection_persists(version: str, fields: list[str], wanted: str) -> None:
    assert persistence(request_in(ask("GET", "/", *fields, version=version))) == wanted


def targets(reader: RequestReader, most: int = 9) -> list[str]:
    return [each.target.decode() for each in reader.upcoming(most)]


def answering(*requests: bytes) -> RequestReader:
    """Return a reader whose first request is whole."""
    reader = reader_of(b"".join(requests))
    assert isinstance(reader.next_event(), h11.Request)
    assert isinstance(reader.next_event(), h11.EndOfMessage)
    return reader


def test_upcoming_requests_are_those_that_follow_and_stay_where_they_are() -> None:
    reader = answering(ask(), ask("GET", "/a"), b"\r\n", ask("GET", "/b"), ask("GET", "/c")[:-1])
    assert targets(reader) == ["/a", "/b"]
    assert targets(reader, 1) == ["/a"]
    reader.receive(b"\n")
    assert targets(reader) == ["/a", "/b", "/c"]
    for target in (b"/a", b"/b", b"/c"):
        reader.start_next()
        request = reader.next_event()
        assert isinstance(request, h11.Request)
        assert request.target == target
        assert isinstance(reader.next_event(), h11.EndOfMessage)
    assert targets(reader) == []


@pytest.mark.parametrize(
    "odd",
    [
        ask("HEAD", "/odd"),
        ask("POST", "/quit"),
        ask("GET", "/odd", version="1.0"),
        ask("GET", "/odd", "Connection: close"),
        ask("GET", "/odd", "CONTENT-LENGTH: 3", body=b"abc"),
        ask("GET", "/odd", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        ask("GET", "/odd", "expect: 100-continue"),
        b"GET /odd HTTP/1.1\n\n",
        b"GET  /odd HTTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_upcoming_requests_end_before_one_that_is_not_plain(odd: bytes) -> None:
    assert targets(answering(GET, ask("GET", "/a"), odd, ask("GET", "/b"))) == ["/a"]


def test_nothing_is_upcoming_behind_a_request_that_is_not_whole() -> None:
    assert targets(RequestReader()) == []
    within = ask("GET", "/within")
    reader = reader_of(ask("POST", "/x", f"Content-Length: {len(within)}", body=within))
    assert isinstance(reader.next_event(), h11.Request)
    assert targets(reader) == []
