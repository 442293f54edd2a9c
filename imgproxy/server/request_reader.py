"""The requests of one client, read from bytes: RFC 9112, by h11, whose events they are returned as.

Each request has an h11 connection of its own, and its head is complete before h11 sees it, so that
two things can be done that h11 does not do: an empty line before a request is ignored (section
2.2), and a request without exactly one Host is read to its end, so that it can be answered without
closing the connection (section 3.2). Whether the connection persists is decided here too: h11
closes it after each HTTP/1.0 request.

A small blob takes h11 longer to be asked for than the system to be read. What a parent sends is
nearly always the plainest request there is, and that is read here, where the client is no stranger;
`tests/fuzz/test_plain_requests.py` holds both to the same.
"""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias

import h11

from imgproxy.errors import BadRequestError, Failure, NotImplementedByUsError, clean
from imgproxy.server.handler import Request
from imgproxy.server.request_errors import HeadTooLargeError

# A request is a line and some fields; 16 KiB is what servers in the field allow for both.
MAX_HEAD = 16 * 1024

_CONTINUE = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")

_END_OF_HEAD = re.compile(rb"\n\r?\n")
# A request for content, and fields that could make it anything else.
_PLAIN = re.compile(rb"(?:\r\n)*(GET) ([!-~]+) HTTP/1\.1\r\n((?:[^\r\n]+\r\n)*)\r\n")
_NOT_PLAIN = re.compile(
    rb"^(?:connection|content-length|expect|transfer-encoding|upgrade):",
    re.IGNORECASE | re.MULTILINE,
)
_HOST = re.compile(rb"^host:", re.IGNORECASE | re.MULTILINE)


# A request without a body or anything that says more of it than what is wanted.
_PLAINEST = re.compile(
    rb"(GET|HEAD) ([!-~]+) HTTP/1\.1\r\n"
    rb"((?:(?i:host|user-agent|accept|accept-encoding): ?[!-~]+(?: [!-~]+)*\r\n)+)\r\n"
)


class PlainRequest(NamedTuple):
    """The plainest request, with the attributes of `h11.Request`."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    http_version: bytes = b"1.1"


ReadRequest: TypeAlias = h11.Request | PlainRequest


class _PlainConnection:
    """What h11's connection is for the plainest request, and for what came after it."""

    def __init__(self, request: PlainRequest, rest: bytes, *, ended: bool) -> None:
        self._events: list[object] = [h11.EndOfMessage(), request]
        self.trailing_data = rest, ended

    def next_event(self) -> object:
        """Return the request, and then its end."""
        return self._events.pop() if self._events else h11.NEED_DATA

    def receive_data(self, data: bytes) -> None:
        """Keep what is of the next request; nothing is the end."""
        self.trailing_data = self.trailing_data[0] + data, not data


class RequestReader:
    """The requests of one client: bytes are passed in, events are returned.

    `is_whole`: the current request has been read to its end. `reads_plain`: the plainest are read
    without h11.
    """

    def __init__(self, *, reads_plain: bool = False) -> None:
        self.is_whole = False
        self._reads_plain = reads_plain
        self._start = bytearray()  # of the next request, until its head is complete
        self._ended = False
        self._http: h11.Connection | _PlainConnection | None = None
        self._host_count = 1

    @property
    def is_begun(self) -> bool:
        """Return whether a part of the current request has been received."""
        return bool(self._start) or self._http is not None

    @property
    def room(self) -> int:
        """Return how many bytes may be passed in: one more than a head may have, to notice it."""
        kept = self._start if self._http is None else self._http.trailing_data[0]
        return MAX_HEAD + 1 - len(kept)

    def receive(self, data: bytes) -> None:
        """Take bytes that have been received; none are the end."""
        if self._http is None:
            self._start += data
            self._ended = not data
        else:
            self._http.receive_data(data)

    def next_event(self) -> object:
        """Return the next event of the current request, as `h11.Connection.next_event` does.

        Raises a `Failure` for bytes that are no request.
        """
        try:
            if self._http is None:
                if not self._is_decidable():
                    return h11.NEED_DATA
                self._http = self._begin()
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            raise _refusal(error) from None
        self.is_whole = isinstance(event, h11.EndOfMessage)
        return event

    def upcoming(self, most: int) -> list[Request]:
        """Return the next requests that follow a whole one, so many at most, without taking them.

        These are those of the plainest kind, up to the first of another, and without their fields;
        whether they are requests is decided when they are read.
        """
        found: list[Request] = []
        if self._http is None or not self.is_whole:
            return found
        received, position = self._http.trailing_data[0], 0
        while len(found) < most and (plain := _PLAIN.match(received, position)):
            if _NOT_PLAIN.search(plain[3]):
                break
            found.append(Request(plain[1], plain[2]))
            position = plain.end()
        return found

    def start_next(self) -> None:
        """Go on to the next request, after one that is whole."""
        if self._http is not None:
            rest, self._ended = self._http.trailing_data
            self._start = bytearray(rest)
        self._http, self.is_whole = None, False

    def continuation(self) -> bytes:
        """Return the reply to a client that waits for 100 (Continue), nothing if it does not."""
        http = self._http
        if isinstance(http, h11.Connection) and http.they_are_waiting_for_100_continue:
            return http.send(_CONTINUE)
        return b""

    def check_host(self, request: ReadRequest) -> None:
        """Raise `BadRequestError` unless the request has one Host, or is older than that field."""
        if self._host_count > 1 or (self._host_count == 0 and request.http_version != b"1.0"):
            raise BadRequestError(
                f"the request has {self._host_count} Host fields, and must have one"
            )

    def _is_decidable(self) -> bool:
        """Return whether the head of the next request is complete, or will never be."""
        while self._start.startswith(b"\r\n"):
            del self._start[:2]
        return (
            self._ended
            or len(self._start) > MAX_HEAD
            or (self._start != b"\r" and b"" < self._start[:1] < b"!")  # TLS, for one
            or _END_OF_HEAD.search(self._start) is not None
        )

    def _begin(self) -> h11.Connection | _PlainConnection:
        """Return a connection that has received the head and what came after it."""
        received, self._start = bytes(self._start), bytearray()
        plain = self._begin_plain(received) if self._reads_plain else None
        if plain is not None:
            return plain
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        end = _END_OF_HEAD.search(received)
        if end is not None:
            if end.end() > MAX_HEAD:
                raise _head_too_large()
            fields, rest = received[: end.start() + 1], received[end.start() + 1 :]
            self._host_count = len(_HOST.findall(fields))
            if self._host_count != 1:  # h11 would refuse to say how long the request is
                received = _HOST.sub(b"Not-The-Host:", fields) + b"Host:\r\n" + rest
        if received:
            http.receive_data(received)
        if self._ended:
            http.receive_data(b"")
        return http

    def _begin_plain(self, received: bytes) -> _PlainConnection | None:
        """Return a connection for the plainest request, None for any other."""
        found = _PLAINEST.match(received, 0, MAX_HEAD)
        if found is None:
            return None
        headers = []
        for line in found[3].splitlines():
            name, _, value = line.partition(b":")
            headers.append((name.lower(), value.lstrip(b" ")))
        if sum(name == b"host" for name, _ in headers) != 1:
            return None
        self._host_count = 1
        request = PlainRequest(found[1], found[2], headers)
        return _PlainConnection(request, received[found.end() :], ended=self._ended)


def persistence(request: ReadRequest) -> str:
    """Return the `Connection` field of the reply to a whole request: RFC 9112 section 9.3.

    It is empty where the version alone says that the connection persists.
    """
    values = [value.lower() for name, value in request.headers if name == b"connection"]
    options = {option.strip() for value in values for option in value.split(b",")}
    if b"close" in options:
        return "close"
    if request.http_version != b"1.0":
        return ""
    # An old intermediary may have understood the framing in another way: section 6.1.
    is_chunked = any(name == b"transfer-encoding" for name, _ in request.headers)
    return "keep-alive" if b"keep-alive" in options and not is_chunked else "close"


def _refusal(error: h11.RemoteProtocolError) -> Failure:
    """Return the failure that answers bytes that are no request."""
    reason = str(error).partition(": bytearray")[0]  # what h11 quotes, it quotes as Python does
    message = f"not an HTTP/1.1 request: {clean(reason)}"
    if error.error_status_hint == HeadTooLargeError.status:
        return _head_too_large()
    if error.error_status_hint == NotImplementedByUsError.status:
        return NotImplementedByUsError(message)
    return BadRequestError(message)


def _head_too_large() -> Failure:
    return HeadTooLargeError(f"the head of the request exceeds {MAX_HEAD} bytes")
