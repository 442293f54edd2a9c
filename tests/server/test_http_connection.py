"""One conversation over a stream in memory: what is answered to which bytes, and how it ends."""

from __future__ import annotations

import errno
import os
import re
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from support.conversations import (
    GET,
    QUIT,
    FrontEnd,
    Pulled,
    Talk,
    ask,
    chunks,
    fields_of,
    hold,
    started,
    talk,
)
from support.streams import (
    END,
    SILENCE,
    MemoryStream,
    elapsing,
    replies,
    virtual_time,
)
from trio.testing import wait_all_tasks_blocked

from imgproxy import errors
from imgproxy.errors import Failure, InvalidError, NotFoundError, ShortageError, UnavailableError
from imgproxy.server import http_connection, request_errors
from imgproxy.server.access import Access
from imgproxy.server.handler import Reply
from imgproxy.server.http_connection import MAX_DRAIN, Severity
from imgproxy.server.request_errors import MethodNotAllowedError, RangeNotSatisfiableError
from imgproxy.server.request_reader import MAX_HEAD
from imgproxy.server.shutdown import Shutdown

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.parent import Reply as Received

MIB = 1 << 20


@virtual_time
async def test_quitting_is_answered_with_nothing() -> None:
    shutdown = Shutdown()
    stream = MemoryStream(QUIT + GET, SILENCE)
    with elapsing(0):
        talked = await hold(FrontEnd(), stream, shutdown=shutdown)
    reply = talked.reply("POST")
    assert (reply.status, reply.length) == (200, 0)
    assert "Content-Type" not in fields_of(reply)
    assert shutdown.requested
    assert stream.finished == (MAX_DRAIN, 0)


# RFC 9110 renamed some, which older versions of Python have under their former names.
RENAMED = {413: "Content Too Large", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}


# Those that have no detail, but fields of their own.
OF_REQUESTS = (
    MethodNotAllowedError("words", allow="GET"),
    RangeNotSatisfiableError("words", size=7),
)


def failures() -> list[Failure]:
    """Return one failure of each class."""
    classes = [
        each
        for module in (errors, request_errors)
        for each in vars(module).values()
        if isinstance(each, type)
    ]
    made: list[Failure] = list(OF_REQUESTS)
    for each in dict.fromkeys(classes):
        if issubclass(each, Failure) and each not in (Failure, *map(type, OF_REQUESTS)):
            made.append(each("words", choices=["a"]))  # noqa: PERF401  (the types are narrowed)
    return made


@pytest.mark.parametrize("failure", failures(), ids=lambda failure: type(failure).__name__)
@virtual_time
async def test_a_failure_is_answered_as_its_class_says(failure: Failure) -> None:
    stream = MemoryStream(ask(), ask("HEAD"), END)
    talked = await hold(FrontEnd({"/manifest": failure}), stream)
    reply, head = talked.replies("GET", "HEAD")
    detail = {"retryable": failure.status in (503, 504)}
    if failure not in OF_REQUESTS:
        detail["choices"] = ["a"]  # type: ignore[assignment]  # JSON
    assert reply.error == {"code": failure.default_code, "message": "words", "detail": detail}
    assert (reply.status, reply.reason) == (
        failure.status,
        RENAMED.get(failure.status) or HTTPStatus(failure.status).phrase,
    )
    assert fields_of(reply) == fields_of(head)
    wanted = {
        "Content-Length": str(len(reply.body)),
        "Accept-Ranges": "none",
        "Content-Type": "application/json",
        **dict(failure.header_fields),
    }
    assert fields_of(reply) == wanted
    short = isinstance(failure, ShortageError)
    assert talked.severity == (Severity.LOST if short else Severity.NOTHING)
    line = f"{failure.status} {failure.default_code}: words"
    assert talked.notes.failures == [f"{method} /manifest: {line}" for method in ("GET", "HEAD")]


@pytest.mark.parametrize("access", [Access(None), Access(()), None], ids=["unix", "tcp", "pair"])
@pytest.mark.parametrize("field", ["Origin: null", "ORIGIN: http://localhost", "Origin:"])
@virtual_time
async def test_a_request_from_a_page_in_a_browser_is_refused_at_a_listener(
    field: str, access: Access | None
) -> None:
    shutdown = Shutdown()
    stream = MemoryStream(ask("GET", "/manifest", field), ask("POST", "/quit", field), END)
    talked = await hold(FrontEnd(), stream, shutdown=shutdown, access=access)
    got, asked_to_quit = talked.replies("GET", "POST")
    if access is not None:
        assert (got.status, got.code) == (403, "DENIED")
        assert asked_to_quit.status == 403
    assert shutdown.requested == (access is None)


# --- bodies of requests -------------------------------------------------------------------------

CHUNKED = "Transfer-Encoding: chunked"

BODIES = {
    "a length": ask("POST", "/quit", "Content-Length: 5", body=b"hello"),
    "no length": ask("POST", "/quit", "Content-Length: 0"),
    "the longest": ask("POST", "/quit", f"Content-Length: {MAX_DRAIN}", body=bytes(MAX_DRAIN)),
    "chunks": ask("POST", "/quit", CHUNKED, body=chunks(5, 70)),
    "chunks of the longest": ask("POST", "/quit", CHUNKED, body=chunks(5, MAX_DRAIN - 5)),
    "trailers": ask("POST", "/quit", CHUNKED, body=b"1\r\nx\r\n0\r\nX-Trailer: 1\r\n\r\n"),
}


@pytest.mark.parametrize("case", BODIES)
@virtual_time
async def test_a_body_that_is_not_needed_is_read_and_discarded(case: str) -> None:
    request = BODIES[case].replace(b"POST /quit", b"GET /manifest")
    first, second = (await talk(FrontEnd(), request + GET)).replies("GET", "GET")
    assert (first.status, second.status) == (200, 200)
    assert first.get("Connection") is None


TOO_LARGE = {
    "announced": ask("GET", "/manifest", f"Content-Length: {MAX_DRAIN + 1}"),
    "announced and waits": ask(
        "GET", "/manifest", f"Content-Length: {MAX_DRAIN + 1}", "Expect: 100-continue"
    ),
    "announced much": ask("GET", "/manifest", "Content-Length: 99999999999999999999"),
    "in chunks": ask("GET", "/manifest", CHUNKED, body=chunks(*[9999] * 7)),
    "in a chunk": ask("GET", "/manifest", CHUNKED, body=b"%x\r\n" % MIB + bytes(MAX_DRAIN + 1)),
    "for a path that there is not": ask("GET", "/no", f"Content-Length: {MAX_DRAIN + 1}"),
}


@pytest.mark.parametrize("case", TOO_LARGE)
@virtual_time
async def test_a_body_that_is_too_large_ends_the_conversation(case: str) -> None:
    with elapsing(http_connection.DRAIN_TIMEOUT):
        talked = await hold(FrontEnd(), MemoryStream(TOO_LARGE[case], SILENCE))
    reply = talked.reply()
    assert (reply.status, reply.code) == (413, "BODY_TOO_LARGE")
    assert reply.interim == []
    assert_closing(talked, reply)


def assert_closing(talked: Talk, reply: Received) -> None:
    """Assert that the reply is the last, and that a reset is avoided."""
    assert reply.get("Connection") == "close"
    assert talked.stream.finished == (MAX_DRAIN, http_connection.DRAIN_TIMEOUT)
    assert talked.severity == Severity.NOTHING
    assert len(talked.notes.failures) == 1


@virtual_time
async def test_a_client_that_waits_for_100_continue_gets_it() -> None:
    expecting = ask("GET", "/manifest", "Content-Length: 5", "Expect: 100-continue")
    stream = MemoryStream(expecting)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, FrontEnd(), stream)
        await wait_all_tasks_blocked()
        assert stream.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
        stream.inbox.add(b"hello", expecting, b"hello", END)
    first, second = replies(stream.sent, "GET", "GET")
    assert (first.status, first.interim) == (200, [100])
    assert (second.status, second.interim) == (200, [100])


@virtual_time
async def test_a_client_that_does_not_wait_for_100_continue_gets_none() -> None:
    expecting = ask("GET", "/manifest", "Content-Length: 5", "Expect: 100-continue", body=b"hello")
    reply = (await talk(FrontEnd(), expecting)).reply()
    assert (reply.status, reply.interim) == (200, [])


# --- HTTP ---------------------------------------------------------------------------------------


@virtual_time
async def test_pipelined_sentare_answered_in_order() -> None:
    front_end = FrontEnd({**{f"/{n}": b"x" * n for n in range(9)}, "/pulled": (b"a", b"bc")})
    paths = [path for path in front_end.answers for _ in range(2)]
    methods = ["GET", "HEAD"] * len(front_end.answers)
    requests = [ask(method, path) for method, path in zip(methods, paths, strict=True)]
    talked = await talk(front_end, b"".join(requests))
    for reply, method, path in zip(talked.replies(*methods), methods, paths, strict=True):
        answer = front_end.answers[path]
        content = answer if isinstance(answer, bytes) else b"abc"
        assert (reply.status, reply.length) == (200, len(content))
        assert reply.body == (content if method == "GET" else b"")
    assert [body.closed for body in front_end.bodies] == [1, 1]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@virtual_time
async def test_a_reply_has_its_fields_and_leaves_in_one_piece(method: str) -> None:
    talked = await talk(FrontEnd(), ask(method))
    reply = talked.reply(method)
    assert (reply.status, reply.reason) == (200, "OK")
    assert reply.body == (b"the manifest" if method == "GET" else b"")
    assert fields_of(reply) == {
        "Content-Length": "12",
        "Accept-Ranges": "none",
        "Content-Type": "text/plain",
    }
    assert len(talked.stream.sizes) == 1  # head and body leave together
    assert talked.notes.failures == []
    assert talked.notes.details == [f"{method} /manifest: 200, 12 bytes"]
    assert talked.severity == Severity.NOTHING


@virtual_time
async def test_a_front_end_reads_the_fields_of_a_request() -> None:
    front_end = FrontEnd()
    await talk(front_end, ask("GET", "/manifest", "Range: bytes=1-", "ACCEPT: a", "Accept: b"))
    (request,) = front_end.asked
    wanted = [
        (b"host", b"localhost"),
        (b"range", b"bytes=1-"),
        (b"accept", b"a"),
        (b"accept", b"b"),
    ]
    assert list(request.fields) == wanted


@virtual_time
async def test_a_part_of_the_content_is_replied_with_fields_of_the_front_end() -> None:
    fields = [("Content-Range", "bytes 1-3/9"), ("accept-ranges", "bytes")]
    body = Pulled(b"ab", b"c")
    front_end = FrontEnd({"/blob": Reply(fields, 3, body, status=206)})
    talked = await talk(front_end, ask(target="/blob") + ask("HEAD", "/blob") + GET)
    part, head, whole = talked.replies("GET", "HEAD", "GET")
    assert (part.status, part.reason, part.body) == (206, "Partial Content", b"abc")
    assert fields_of(part) == {"Content-Length": "3", **dict(fields)} == fields_of(head)
    assert (whole.status, whole.get("Accept-Ranges")) == (200, "none")
    assert body.closed == 2
    assert talked.notes.details[0] == "GET /blob: 206, 3 bytes"


@virtual_time
async def test_a_body_that_is_opened_late_is_opened_where_it_is_sent() -> None:
    body = Pulled(b"abc")
    opened: list[str] = []

    async def opener() -> Pulled:
        opened.append("once more")
        return body

    front_end = FrontEnd({"/blob": Reply([], 3, opener), "/same": Reply([], 3, opener, status=304)})
    talked = await talk(front_end, ask("HEAD", "/blob") + ask(target="/same"))
    assert [reply.length for reply in talked.replies("HEAD", "GET")] == [3, 3]
    assert opened == []
    talked = await talk(front_end, ask(target="/blob"))
    assert talked.reply().body == b"abc"
    assert (len(opened), body.closed) == (1, 1)


@virtual_time
async def test_a_body_that_cannot_be_opened_is_answered_by_the_failure() -> None:
    async def opener() -> Pulled:
        raise InvalidError("words")

    talked = await talk(FrontEnd({"/blob": Reply([], 3, opener)}), ask(target="/blob") + GET)
    assert [reply.status for reply in talked.replies("GET", "GET")] == [422, 200]
    assert talked.severity == Severity.NOTHING


@pytest.mark.parametrize("body", [b"the content", Pulled(b"the content")], ids=["bytes", "pulled"])
@virtual_time
async def test_what_is_not_modified_is_replied_without_its_body(body: bytes | Pulled) -> None:
    front_end = FrontEnd({"/blob": Reply([("ETag", '"x"')], 11, body, status=304)})
    talked = await talk(front_end, ask(target="/blob") + GET)
    unmodified, whole = talked.replies("GET", "GET")
    assert (unmodified.status, unmodified.reason, unmodified.body) == (304, "Not Modified", b"")
    assert (unmodified.length, unmodified.get("ETag")) == (11, '"x"')
    assert whole.body == b"the manifest"
    assert isinstance(body, bytes) or body.closed == 1


@virtual_time
async def test_a_failure_has_the_fields_of_its_own() -> None:
    failure = UnavailableError("words")
    failure.header_fields = (("Retry-After", "5"),)
    reply = (await talk(FrontEnd({"/manifest": failure}), GET)).reply()
    assert (reply.status, reply.get("Retry-After"), reply.code) == (503, "5", "UNAVAILABLE")


@virtual_time
async def test_what_is_asked_for_in_vain_as_a_matter_of_course_is_said_with_debug_alone() -> None:
    failure = NotFoundError("words")
    failure.is_miss = True
    talked = await talk(FrontEnd({"/manifest": failure}), GET)
    assert talked.reply().status == 404
    assert talked.notes.failures == []
    assert talked.notes.details == ["GET /manifest: 404 NOT_FOUND: words"]


@virtual_time
async def test_a_piece_that_is_large_is_not_copied_behind_the_head() -> None:
    small, large = bytes(http_connection._JOINED), bytes(http_connection._JOINED + 1)
    talked = await talk(FrontEnd({"/blob": (small, large)}), ask(target="/blob"))
    assert talked.reply().body == small + large
    head, *pieces = talked.stream.sizes
    assert head > len(small)
    assert [size for size in pieces if size] == [len(large)]


@virtual_time
async def test_a_body_is_closed_if_its_head_cannot_be_sent() -> None:
    front_end = FrontEnd({"/blob": (b"x",)}, {"/blob": -1})
    talked = await talk(front_end, ask(target="/blob"))
    assert talked.severity == Severity.DEFECT
    assert [body.closed for body in front_end.bodies] == [1]


@virtual_time
async def test_ranges_and_conditions_are_ignored() -> None:
    for field in (
        "Range: bytes=1-2",
        'If-None-Match: "x"',
        "If-Modified-Since: Fri, 20 Nov 2026 00:00:00 GMT",
        "Accept-Encoding: gzip",
        "Accept: text/plain",
        "Upgrade: h2c\r\nConnection: upgrade",
    ):
        first, second = (await talk(FrontEnd(), ask("GET", "/manifest", field) + GET)).replies(
            "GET", "GET"
        )
        assert first.status == 200
        assert first.body == second.body


LAST_REQUESTS = {
    "Connection: close": ask("GET", "/manifest", "Connection: close"),
    "Connection: x, Close": ask("GET", "/manifest", "Connection: x, Close"),
    "HTTP/1.0": ask(version="1.0"),
    "HTTP/1.0 without a host": b"GET /manifest HTTP/1.0\r\n\r\n",
    "HTTP/1.0 with both": ask("GET", "/manifest", "Connection: keep-alive, close", version="1.0"),
    # RFC 9112 section 6.1: whoever passed it on may have understood its end in another way
    "HTTP/1.0 in chunks": ask(
        "GET", "/manifest", "Connection: keep-alive", CHUNKED, version="1.0", body=chunks(3)
    ),
}


@pytest.mark.parametrize("case", LAST_REQUESTS)
@virtual_time
async def test_a_request_that_is_the_last_is_answered_and_ends_the_conversation(case: str) -> None:
    stream = MemoryStream(LAST_REQUESTS[case] + GET, SILENCE)
    with elapsing(http_connection.DRAIN_TIMEOUT):
        talked = await hold(FrontEnd(), stream)
    reply = talked.reply()
    assert reply.status == 200
    assert reply.get("Connection") == "close"
    assert stream.finished == (MAX_DRAIN, http_connection.DRAIN_TIMEOUT)


GARBAGE = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "TLS and a line": b"\x16\x03\x01\r\n\r\n",
    "HTTP/0.9": b"GET /manifest\r\n\r\n",
    "a line end that is no CRLF": b"\n" + GET,
    "an empty line with a space": b" \r\n" + GET,
    "a folded line before the fields": b"GET /manifest HTTP/1.1\r\n x\r\n\r\n",
    "a space in the target": ask("GET", "/mani fest"),
    "a control in the target": ask("GET", "/mani\x1bfest"),
    "eight bits in the target": ask("GET", "/mani\xfffest"),
    "no colon": ask("GET", "/manifest", "nonsense"),
    "a space before the colon": ask("GET", "/manifest", "Host : x"),
    "a NUL": ask("GET", "/manifest", "X: \0"),
    "a negative length": ask("GET", "/manifest", "Content-Length: -1"),
    "a long length": ask("GET", "/manifest", "Content-Length: " + "9" * 5000),
    "two lengths": ask("GET", "/manifest", "Content-Length: 1", "Content-Length: 2"),
    "both framings": ask("GET", "/manifest", CHUNKED, "Content-Length: 5", body=chunks(1)),
    "both framings and nothing else": b"GET /manifest HTTP/1.0\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n",
    "both framings, empty": ask("GET", "/manifest", CHUNKED, "Content-Length: 0", body=chunks()),
    "no size of a chunk": ask("GET", "/manifest", CHUNKED, body=b"x\r\n"),
    "a chunk that is too long": ask("GET", "/manifest", CHUNKED, body=b"1\r\nxx\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize(
    "before", [[], ["GET"], ["HEAD"]], ids=["first", "after GET", "after HEAD"]
)
@pytest.mark.parametrize("case", GARBAGE)
@virtual_time
async def test_garbage_is_refused_and_ends_the_conversation(case: str, before: list[str]) -> None:
    requests = b"".join(map(ask, before)) + GARBAGE[case]
    talked = await hold(FrontEnd(), MemoryStream(requests + GET, SILENCE))
    *answered, reply = talked.replies(*before, "GET")
    assert [each.status for each in answered] == [200] * len(before)
    assert (reply.status, reply.code) == (400, "BAD_REQUEST")
    assert_closing(talked, reply)


@pytest.mark.parametrize(
    "request_line", ["PRI * HTTP/2.0", "GET /manifest HTTP/2.0", "GET /manifest HTTP/3.0"]
)
@pytest.mark.parametrize("fields", ["", "Host: localhost\r\n"])
@virtual_time
async def test_another_version_of_http_is_refused_and_ends_the_conversation(
    request_line: str, fields: str
) -> None:
    """The first is what a client sends that takes it for granted that HTTP/2 is spoken."""
    sent = f"{request_line}\r\n{fields}\r\nSM\r\n\r\n".encode()
    talked = await hold(FrontEnd(), MemoryStream(sent, SILENCE))
    reply = talked.reply()
    assert (reply.status, reply.reason) == (505, "HTTP Version Not Supported")
    assert (reply.code, reply.message.endswith("; use HTTP/1.1")) == ("UNSUPPORTED", True)
    assert_closing(talked, reply)


# RFC 9112 section 3.2: the request is refused, and as its end is known, the next one is not.
HOSTS = {
    "none": (b"GET /manifest HTTP/1.1\r\n\r\n", 0),
    "none, and other fields": (b"GET /manifest HTTP/1.1\r\nX-Host: a\r\nHostess: b\r\n\r\n", 0),
    "none, and a body": (b"GET /manifest HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 0),
    "none, and chunks": (
        b"GET /manifest HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks(5),
        0,
    ),
    "none, and lines that end with LF": (b"GET /manifest HTTP/1.1\nAccept: */*\n\n", 0),
    "two": (ask("GET", "/manifest", "Host: other"), 2),
    "two that are the same": (ask("GET", "/manifest", "Host: localhost"), 2),
    "two, one in capitals": (ask("GET", "/manifest", "HOST: localhost"), 2),
    "two, one on two lines": (ask("GET", "/manifest", "Host: a\r\n b"), 2),
    "three, and a body": (
        ask("GET", "/manifest", "Host:", "Host: x", "Content-Length: 2", body=b"ok"),
        3,
    ),
    "two, in HTTP/1.0": (
        ask("GET", "/manifest", "Host: other", "Connection: keep-alive", version="1.0"),
        2,
    ),
}


@pytest.mark.parametrize("case", HOSTS)
@virtual_time
async def test_a_request_without_exactly_one_host_is_refused_and_the_next_is_answered(
    case: str,
) -> None:
    request, count = HOSTS[case]
    front_end = FrontEnd()
    refused, answered = (await talk(front_end, request + GET)).replies("GET", "GET")
    assert (refused.status, refused.code) == (400, "BAD_REQUEST")
    assert refused.message == f"the request has {count} Host fields, and must have one"
    assert answered.status == 200
    assert len(front_end.asked) == 1


@virtual_time
async def test_what_is_wrong_besides_the_host_still_ends_the_conversation() -> None:
    """Such as two lengths, between which no end of the request can be told."""
    lengths = b"Content-Length: 1\r\nContent-Length: 2\r\n"
    for hosts in (b"", b"Host: a\r\nHost: b\r\n"):
        request = b"GET /manifest HTTP/1.1\r\n" + hosts + lengths + b"\r\n"
        talked = await hold(FrontEnd(), MemoryStream(request + GET, SILENCE))
        reply = talked.reply()
        assert reply.status == 400
        assert_closing(talked, reply)


@pytest.mark.parametrize("lines", [b"\r\n", b"\r\n\r\n", b"\r\n" * 20_000])
@virtual_time
async def test_empty_lines_before_a_request_are_ignored(lines: bytes) -> None:
    """RFC 9112 section 2.2: old clients send one after the body of a POST."""
    posted = ask("POST", "/no", "Content-Length: 5", body=b"hello")
    talked = await talk(FrontEnd(), lines + posted + lines + GET + lines)
    assert [reply.status for reply in talked.replies("POST", "GET")] == [404, 200]


KEPT = {
    "keep-alive": ask("GET", "/manifest", "Connection: keep-alive", version="1.0"),
    "in a list": ask("GET", "/manifest", "Connection: TE, Keep-Alive", version="1.0"),
    "without a host": b"GET /manifest HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "with a body": ask(
        "GET",
        "/manifest",
        "Connection: keep-alive",
        "Content-Length: 2",
        version="1.0",
        body=b"ok",
    ),
    "that has no meaning in it": ask(
        "GET", "/manifest", "Connection: keep-alive", "Expect: 100-continue", version="1.0"
    ),
}


@pytest.mark.parametrize("case", KEPT)
@virtual_time
async def test_http_1_0_is_kept_alive_where_it_is_asked_for(case: str) -> None:
    first, error, last = (
        await talk(
            FrontEnd(),
            KEPT[case] + ask("GET", "/no", "Connection: keep-alive", version="1.0"),
            ask(version="1.0"),
        )
    ).replies("GET", "GET", "GET")
    assert (first.status, first.get("Connection"), first.interim) == (200, "keep-alive", [])
    assert (error.status, error.get("Connection")) == (404, "keep-alive")
    assert (last.status, last.get("Connection")) == (200, "close")


@virtual_time
async def test_a_reply_says_that_the_connection_ends_where_a_shutdown_comes_before_it() -> None:
    front_end, stream, shutdown = FrontEnd(), MemoryStream(), Shutdown()
    waits_for_its_answer(front_end, stream)
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, front_end, stream, shutdown)
        quitting = await hold(front_end, MemoryStream(QUIT), shutdown=shutdown)
        front_end.gate.set()
    assert quitting.reply("POST").get("Connection") == "close"
    assert ended[0].reply().get("Connection") == "close"


@pytest.mark.parametrize("steps", [(b"abc",), (b"a", b"bcd")])
@pytest.mark.parametrize("size", [2, 5])
@virtual_time
async def test_a_body_of_another_length_than_announced_is_a_defect(
    size: int, steps: tuple[bytes, ...]
) -> None:
    """And never more than announced, which the client would take for the next reply."""
    front_end = FrontEnd({"/blob": steps}, {"/blob": size})
    talked = await talk(front_end, ask(target="/blob") + GET)
    _, _, body = bytes(talked.stream.sent).partition(b"\r\n\r\n")
    assert b"abcd".startswith(body)
    assert len(body) <= size
    assert talked.severity == Severity.DEFECT


@virtual_time
async def test_a_transfer_coding_that_is_unknown_is_not_implemented() -> None:
    for coding in ("gzip, chunked", "gzip"):
        request = ask("GET", "/manifest", f"Transfer-Encoding: {coding}")
        talked = await hold(FrontEnd(), MemoryStream(request, SILENCE))
        reply = talked.reply()
        assert (reply.status, reply.code) == (501, "UNSUPPORTED")
        assert_closing(talked, reply)


def request_of(size: int) -> bytes:
    """Return a request whose head has so many bytes."""
    return ask("GET", "/manifest", "X: " + "a" * (size - len(ask("GET", "/manifest", "X: "))))


@pytest.mark.parametrize("before", [b"", GET, ask("POST", "/no", CHUNKED, body=chunks(99, 20_000))])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
@virtual_time
async def test_the_limit_of_a_head_is_the_same_however_it_arrives(
    count: int, before: bytes
) -> None:
    for size, status in ((MAX_HEAD, 200), (MAX_HEAD + 2, 431), (4 * MAX_HEAD, 431)):
        sent = before + request_of(size)
        length = -(-len(sent) // count)
        pieces = [sent[at : at + length] for at in range(0, len(sent), length)]
        talked = await hold(FrontEnd(), MemoryStream(*pieces, END))
        *_, reply = talked.replies(*["GET"] * bool(before), "GET")
        assert reply.status == status
        if status == 431:
            assert reply.code == "HEAD_TOO_LARGE"
            assert reply.get("Connection") == "close"


@virtual_time
async def test_a_head_without_an_end_is_too_large() -> None:
    pieces = [b"GET /manifest HTTP/1.1\r\n", *[b"X: y\r\n"] * 5000]
    talked = await hold(FrontEnd(), MemoryStream(*pieces, SILENCE))
    reply = talked.reply()
    assert (reply.status, reply.reason) == (431, "Request Header Fields Too Large")
    assert_closing(talked, reply)


SEQUENCES = {
    "requests": (
        ask() + ask("HEAD", "/config") + ask("POST", "/no", "Content-Length: 5", body=b"hello"),
        ["GET", "HEAD", "POST"],
    ),
    "chunks": (
        ask("GET", "/manifest", CHUNKED, body=chunks(5, 2)) + ask(target="/%63onfig"),
        ["GET", "GET"],
    ),
    "garbage": (ask("HEAD") + b"garbage\r\n\r\n" + GET, ["HEAD", "GET"]),
    "quit": (GET + QUIT + GET, ["GET", "POST"]),
    "half": (GET + GET[:-3], ["GET", "GET"]),
}


def without_dates(sent: bytes) -> bytes:
    return re.sub(rb"\r\nDate: [^\r]*", b"", sent)


@pytest.mark.parametrize("case", SEQUENCES)
@virtual_time
async def test_replies_are_the_same_however_sentarrive(case: str) -> None:
    sent, methods = SEQUENCES[case]
    front_end = FrontEnd()
    whole = await hold(front_end, MemoryStream(sent, END))
    assert len(whole.replies(*methods)) == len(methods)
    splits = [(sent[:at], sent[at:]) for at in range(1, len(sent))]
    for pieces in [*splits, [bytes([byte]) for byte in sent]]:
        talked = await hold(front_end, MemoryStream(*pieces, END))
        assert without_dates(bytes(talked.stream.sent)) == without_dates(bytes(whole.stream.sent))


WORDS = [
    *(b"GET", b"HEAD", b"POST", b" ", b"/manifest", b"/config", b"/quit", b" HTTP/1.1\r\n"),
    *(b"Host: x\r\n", b"\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Expect: 100-continue\r\n", b"abc", b"0\r\n\r\n", b"\0", b"\xff", GET, ask("HEAD"), QUIT),
]


@given(st.lists(st.sampled_from(WORDS), max_size=30), st.lists(st.integers(1, 50), max_size=20))
@settings(deadline=None)
@virtual_time
async def test_no_bytes_are_a_defect(words: list[bytes], cuts: list[int]) -> None:
    sent, pieces = b"".join(words), []
    for cut in cuts:
        pieces.append(sent[:cut])
        sent = sent[cut:]
    steps = [piece for piece in (*pieces, sent) if piece]
    talked = await hold(FrontEnd(), MemoryStream(*steps, END))
    assert talked.severity == Severity.NOTHING


# --- bodies of replies that break off -----------------------------------------------------------

BODY = bytes(range(256)) * 1024

MISMATCH = InvalidError("the blob: its bytes do not have the digest", code="DIGEST_INVALID")
BROKEN = UnavailableError("the source is lost")


@pytest.mark.parametrize(
    ("failure", "severity", "words"),
    [
        (MISMATCH, Severity.MISMATCH, "broken off: DIGEST_INVALID: the blob: "),
        (BROKEN, Severity.LOST, "broken off: UNAVAILABLE: the source is lost"),
        (ZeroDivisionError("oops"), Severity.DEFECT, "a defect of this program: "),
        (MemoryError(), Severity.LOST, "broken off: UNAVAILABLE: "),
        (OSError(errno.EMFILE, "Too many"), Severity.LOST, "broken off: UNAVAILABLE: "),
        (RuntimeError("can't start new thread"), Severity.LOST, "broken off: UNAVAILABLE: "),
    ],
    ids=["mismatch", "lost", "defect", "memory", "descriptors", "threads"],
)
@virtual_time
async def test_a_body_that_breaks_off_stays_short_and_ends_the_conversation(
    failure: Exception, severity: Severity, words: str
) -> None:
    size = len(BODY) + 1
    front_end = FrontEnd({"/blob": (BODY, failure)}, {"/blob": size})
    talked = await talk(front_end, ask(target="/blob") + GET)
    reply = talked.reply()
    assert (reply.status, reply.length) == (200, size)
    assert reply.ending == "end"
    assert reply.body == BODY
    assert talked.severity == severity
    (line,) = talked.notes.failures
    assert line.startswith(f"GET /blob: {words}")
    assert talked.stream.finished is not None
    assert [body.closed for body in front_end.bodies] == [1]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "Cannot allocate memory"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (ExceptionGroup("", [MemoryError()]), "Cannot allocate memory"),
    ],
    ids=["memory", "descriptors", "disk", "threads", "group"],
)
@virtual_time
async def test_a_shortage_of_the_system_is_no_defect(error: Exception, words: str) -> None:
    """The conversation goes on, and what the parent is told is that it may try again."""
    talked = await hold(FrontEnd({"/manifest": error}), MemoryStream(GET, ask(target="/blob"), END))
    reply, _ = talked.replies("GET", "GET")
    assert (reply.status, reply.code, reply.error["detail"]) == (
        503,
        "UNAVAILABLE",
        {"retryable": True},
    )
    assert words in reply.message
    assert talked.severity == Severity.LOST
    assert talked.notes.failures[0] == f"GET /manifest: 503 UNAVAILABLE: {reply.message}"


@virtual_time
async def test_a_defect_is_answered_without_its_details() -> None:
    front_end = FrontEnd({"/manifest": ZeroDivisionError("a secret")})
    talked = await hold(front_end, MemoryStream(GET, ask("HEAD"), END))
    reply, head = talked.replies("GET", "HEAD")
    assert (reply.status, reply.code) == (head.status, "INTERNAL") == (500, "INTERNAL")
    assert b"secret" not in reply.body
    assert b"Traceback" not in reply.body
    assert talked.severity == Severity.DEFECT
    assert talked.notes.failures == [
        f"{method} /manifest: a defect of this program: ZeroDivisionError('a secret')"
        for method in ("GET", "HEAD")
    ]
    assert any("Traceback" in line for line in talked.notes.details)


@virtual_time
async def test_a_defect_of_one_conversation_ends_that_one_alone() -> None:
    class Defective(MemoryStream):
        async def finish(self, limit: int, patience: float) -> None:
            raise ZeroDivisionError(limit, patience)

    talked = await hold(FrontEnd(), Defective(GET, END))
    assert talked.reply().status == 200
    assert talked.severity == Severity.DEFECT


def test_the_most_severe_of_several_events_counts() -> None:
    assert sorted(Severity, reverse=True) == [
        Severity.DEFECT,
        Severity.MISMATCH,
        Severity.LOST,
        Severity.NOTHING,
    ]


# --- how a conversation ends --------------------------------------------------------------------


@virtual_time
async def test_a_conversation_without_a_request_ends_without_a_reply() -> None:
    for steps in ((), (0.5,)):
        talked = await talk(FrontEnd(), *steps)
        assert talked.stream.sent == b""
        assert talked.severity == Severity.NOTHING
        assert talked.notes.failures == []


@virtual_time
async def test_half_a_request_is_refused_at_its_end() -> None:
    for half in (GET[:10], ask("GET", "/manifest", "Content-Length: 5", body=b"hel")):
        reply = (await talk(FrontEnd(), half)).reply()
        assert (reply.status, reply.code) == (400, "BAD_REQUEST")


@pytest.mark.parametrize("path", ["/manifest", "/blob"])
@pytest.mark.parametrize("number", [errno.EPIPE, errno.ECONNRESET, errno.ENOSPC])
@virtual_time
async def test_a_reply_that_cannot_be_sent_ends_a_conversation(number: int, path: str) -> None:
    """Quietly if the parent has gone; a full disk is reported, and another try may succeed."""
    front_end, stream = FrontEnd({"/blob": (b"one",)}), MemoryStream(ask(target=path))
    stream.broken = OSError(number, os.strerror(number))
    talked = await hold(front_end, stream)
    assert talked.severity == (Severity.LOST if number == errno.ENOSPC else Severity.NOTHING)
    reported = ["sending a reply: No space left on device"] if number == errno.ENOSPC else []
    assert talked.notes.failures == reported
    assert all(body.closed for body in front_end.bodies)


@virtual_time
async def test_a_reset_ends_a_conversation_quietly() -> None:
    reset = ConnectionResetError(104, "Connection reset by peer")
    for steps in ((reset,), (GET, reset), (GET[:9], reset)):
        talked = await hold(FrontEnd(), MemoryStream(*steps))
        assert talked.severity == Severity.NOTHING
        assert talked.notes.failures == []
        assert talked.stream.finished is None


def waits_for_its_answer(front_end: FrontEnd, stream: MemoryStream) -> None:
    front_end.gate = trio.Event()
    stream.inbox.add(GET)


def waits_for_a_piece(front_end: FrontEnd, stream: MemoryStream) -> None:
    front_end.answers["/blob"] = (b"o", 50.0, b"ne")
    stream.inbox.add(ask(target="/blob"))


def waits_for_its_parent(_: FrontEnd, stream: MemoryStream) -> None:
    stream.stop_reading()
    stream.inbox.add(GET)


def waits_for_a_request(_: FrontEnd, stream: MemoryStream) -> None:
    stream.inbox.add(GET)


def waits_for_a_body(_: FrontEnd, stream: MemoryStream) -> None:
    stream.inbox.add(ask("GET", "/manifest", "Content-Length: 5"))


WAITING = [
    waits_for_its_answer,
    waits_for_a_piece,
    waits_for_its_parent,
    waits_for_a_request,
    waits_for_a_body,
]


@pytest.mark.parametrize("how", [MemoryStream.hang_up, MemoryStream.lose_reader])
@pytest.mark.parametrize("wait", WAITING)
@virtual_time
async def test_a_parent_that_is_gone_ends_whatever_is_under_way(
    wait: Callable[[FrontEnd, MemoryStream], object], how: Callable[[MemoryStream], None]
) -> None:
    """Even if another process could still send, through a pipe that was left open."""
    front_end, stream = FrontEnd(), MemoryStream()
    wait(front_end, stream)
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, front_end, stream)
        with elapsing(0):
            how(stream)
            await wait_all_tasks_blocked()
            (talked,) = ended
    assert talked.severity == Severity.NOTHING
    assert all(body.closed for body in front_end.bodies)
    if wait is not waits_for_a_request:
        assert talked.notes.details[-1].startswith("the parent is gone: ")
        assert talked.stream.finished is None


@pytest.mark.parametrize("wait", [waits_for_its_answer, waits_for_a_piece, waits_for_its_parent])
@virtual_time
async def test_a_parent_that_only_stops_sending_still_gets_its_reply(
    wait: Callable[[FrontEnd, MemoryStream], object],
) -> None:
    front_end, stream = FrontEnd(), MemoryStream()
    wait(front_end, stream)
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, front_end, stream)
        stream.inbox.add(END)
        await wait_all_tasks_blocked()
        front_end.gate.set()
        stream.read_on()
    assert ended[0].reply().status == 200
    assert stream.finished is not None


@pytest.mark.parametrize("how", [MemoryStream.hang_up, MemoryStream.lose_reader])
@virtual_time
async def test_a_quit_that_comes_with_a_hang_up_takes_effect(
    how: Callable[[MemoryStream], None],
) -> None:
    shutdown = Shutdown()
    stream = MemoryStream()
    async with trio.open_nursery() as nursery:
        await started(nursery, FrontEnd(), stream, shutdown)
        stream.inbox.add(QUIT)
        how(stream)
    assert shutdown.requested
    assert stream.sent == b""


@virtual_time
async def test_a_quit_that_came_before_the_hang_up_takes_effect() -> None:
    shutdown = Shutdown()
    stream = MemoryStream(QUIT)
    stream.hang_up()
    await hold(FrontEnd(), stream, shutdown=shutdown)
    assert shutdown.requested


@virtual_time
async def test_a_quit_takes_effect_if_the_hang_up_is_noticed_while_it_is_received() -> None:
    class Late(MemoryStream):
        async def receive_into(self, buffer: memoryview) -> int:
            count = await super().receive_into(buffer)
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
            return count

    shutdown = Shutdown()
    stream = Late(QUIT)
    stream.hang_up()
    talked = await hold(FrontEnd(), stream, shutdown=shutdown)
    assert shutdown.requested
    assert talked.stream.sent == b""


@virtual_time
async def test_a_parent_that_goes_while_its_reply_is_sent_is_not_waited_for() -> None:
    class Leaving(MemoryStream):
        async def send(self, data: bytes | bytearray | memoryview) -> None:
            await super().send(data)
            self.lose_reader()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()

    with elapsing(0):
        talked = await hold(FrontEnd(), Leaving(GET))
    assert talked.reply().status == 200


@virtual_time
async def test_a_client_whose_hang_up_cannot_be_watched_is_served() -> None:
    class Unwatched(MemoryStream):
        async def wait_hung_up(self) -> None:
            raise OSError(24, "Too many open files")

    talked = await hold(FrontEnd(), Unwatched(GET, END))
    assert talked.reply().status == 200
    assert talked.severity == Severity.NOTHING


@virtual_time
async def test_a_shutdown_finishes_replies_and_takes_no_new_requests() -> None:
    shared, shutdown = FrontEnd(), Shutdown()
    idle, fresh, asking, sending = MemoryStream(GET), MemoryStream(), MemoryStream(), MemoryStream()
    halfway, owing = MemoryStream(GET[:9]), MemoryStream()
    waits_for_a_piece(shared, asking)
    waits_for_its_parent(shared, sending)
    waits_for_a_body(shared, owing)
    async with trio.open_nursery() as nursery:
        streams = (idle, fresh, asking, sending, halfway, owing)
        talks = {stream: await started(nursery, shared, stream, shutdown) for stream in streams}
        asking.inbox.add(GET)
        sending.inbox.add(GET, GET)
        quitter = MemoryStream(QUIT)
        await hold(shared, quitter, shutdown=shutdown)
        await trio.sleep(http_connection.DRAIN_TIMEOUT + 0.1)
        over = {stream for stream, ended in talks.items() if ended}
        assert over == {idle, fresh, halfway, owing}
        sending.read_on()
    assert [len(replies(stream.sent, "GET")) for stream in (idle, asking, sending)] == [1, 1, 1]
    assert [bytes(stream.sent) for stream in (fresh, halfway, owing)] == [b""] * 3
    assert all(stream.finished == (MAX_DRAIN, http_connection.DRAIN_TIMEOUT) for stream in streams)


@virtual_time
async def test_a_shutdown_keeps_no_scope_of_a_conversation_that_has_ended() -> None:
    shutdown = Shutdown()
    await hold(FrontEnd(), MemoryStream(GET, END), shutdown=shutdown)
    assert shutdown.scopes == set()


def test_bodies_are_discarded_up_to_the_limit_in_the_manual() -> None:
    assert MAX_DRAIN == 64 * 1024
    assert http_connection.DRAIN_TIMEOUT == 1


@virtual_time
async def test_after_a_shutdown_nothing_is_begun() -> None:
    shutdown = Shutdown()
    shutdown.request()
    talked = await hold(FrontEnd(), MemoryStream(GET), shutdown=shutdown)
    assert talked.stream.sent == b""


@virtual_time
async def test_what_is_sent_after_the_last_reply_is_read_and_discarded() -> None:
    stream = MemoryStream(ask("GET", "/manifest", "Connection: close"), 0.5, bytes(1000), END)
    with elapsing(0.5):
        await hold(FrontEnd(), stream)
    assert stream.inbox.is_quiet is False  # nothing but the end is left
    assert await stream.inbox.receive_into(memoryview(bytearray(1))) == 0
