"""The server's side of one HTTP/1.1 connection: RFC 9110 and 9112, by h11.

Requests are read and framed here, replies and failures are sent; what a request means is decided
by a front-end (`handler`). A connection ends at the client's end of file, at a shutdown, after a
message whose framing is not certain, or when the client has hung up, which is noticed even while a
registry is awaited or a body waits for room. Bodies are pulled, so that a client that does not read
stops the registry.
"""

from __future__ import annotations

import enum
import errno
import time
import traceback
from typing import TYPE_CHECKING

import h11
import trio

from imgproxy.errors import (
    BadRequestError,
    DefectError,
    DeniedError,
    Failure,
    InvalidError,
    NotImplementedByUsError,
    clean,
)
from imgproxy.server.error_body import ERROR_TYPE, error_body
from imgproxy.server.handler import Request
from imgproxy.server.request_errors import BodyTooLargeError, HeadTooLargeError
from imgproxy.server.shutdown import HangUp

if TYPE_CHECKING:
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.net.streams import Buffer, ByteStream
    from imgproxy.server.handler import Body, Handler, Reply
    from imgproxy.server.shutdown import Shutdown

# A request is a line and some fields; 16 KiB is what servers in the field allow for both.
MAX_HEAD = 16 * 1024

# What is read and discarded of a request body, which no request needs, and of what comes after the
# last reply.
MAX_DRAIN = 64 * 1024
DRAIN_TIMEOUT = 1.0

# A head and a body up to this leave in one piece; copying more costs more than a system call.
_JOINED = 64 * 1024

# What sending fails with where the other side has gone.
_HUNG_UP = frozenset({errno.EPIPE, errno.ECONNRESET})

_CONTINUE = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")

_REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


class Severity(enum.IntEnum):
    """What happened on a connection, the most severe last."""

    NOTHING = 0
    LOST = 1  # the source was lost after the head was sent
    MISMATCH = 2  # digest or size did not agree after the head was sent
    DEFECT = 3


class _ConnectionLostError(Exception):
    """The client cannot be reached any more."""


class HttpConnection:
    """One client on one stream.

    `accepted`: the connection came through a listener, so the client may be a browser.
    """

    def __init__(
        self,
        stream: ByteStream,
        handler: Handler,
        shutdown: Shutdown,
        diagnostics: Diagnostics,
        *,
        accepted: bool = False,
    ) -> None:
        self._stream = stream
        self._handler = handler
        self._shutdown = shutdown
        self._hang_up = HangUp()
        self._diagnostics = diagnostics
        self._accepted = accepted
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        # One byte more than h11 may keep, however the head is split on its way.
        self._received = memoryview(bytearray(MAX_HEAD + 1))
        self._severity = Severity.NOTHING

    async def run(self) -> Severity:
        """Answer requests until there are no more, close the stream, and return what happened."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hang_up.watch, self._stream)
                try:
                    drain_timeout = await self._serve()
                    await self._stream.finish(MAX_DRAIN, drain_timeout)
                except _ConnectionLostError as error:
                    self._diagnostics.debug(f"the parent is gone: {error}")
                nursery.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001  (the other connections are to go on)
            self._report_defect("the conversation", error)
        finally:
            self._stream.close()
        return self._severity

    # --- requests -------------------------------------------------------------------------------

    async def _serve(self) -> float:
        """Answer requests in order until the end of file, a shutdown or a close.

        Return for how many seconds what the client still sends is to be drained.
        """
        while True:
            request = None
            try:
                request = await self._next_request()
                if request is None:
                    return DRAIN_TIMEOUT
                if await self._exchange(request):
                    return 0  # a client that ends the service sends nothing after that
            except h11.RemoteProtocolError as error:
                is_head = request is not None and request.method == b"HEAD"
                await self._send_refusal(_refusal(error), head_only=is_head)
                return DRAIN_TIMEOUT
            is_reusable = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
            if self._shutdown.requested or not is_reusable:
                return DRAIN_TIMEOUT
            self._http.start_next_cycle()

    async def _next_request(self) -> h11.Request | None:
        """Return the next request, or None at the end of file and at a shutdown.

        Of a client that has hung up, only what has been received already counts.
        """
        event = None
        with self._shutdown.interrupts(), self._hang_up.interrupts():
            event = await self._next_event()
        return event if isinstance(event, h11.Request) else None

    async def _next_event(self) -> object:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._http.they_are_waiting_for_100_continue:
                await self._send(self._http.send(_CONTINUE) or b"")
            try:
                kept = len(self._http.trailing_data[0])
                count = await self._stream.receive_into(self._received[: MAX_HEAD + 1 - kept])
            except OSError as error:
                raise _ConnectionLostError(error.strerror) from error
            self._http.receive_data(bytes(self._received[:count]))

    async def _exchange(self, request: h11.Request) -> bool:
        """Answer a request, and return whether it ended the service.

        The last request of a client that has hung up takes effect, since it may end the service,
        as far as that takes no wait; it is not answered.
        """
        with self._hang_up.interrupts():
            return await self._answer(request)
        raise _ConnectionLostError("it hung up")

    async def _answer(self, request: h11.Request) -> bool:
        """Answer a request, by a reply or by a failure; return whether it ended the service."""
        head_only = request.method == b"HEAD"
        name = f"{request.method.decode()} {clean(request.target.decode())}"
        try:
            reply = await self._reply(request)
        except Failure as failure:
            self._diagnostics.failure(f"{name}: {failure.status} {failure.code}: {failure.message}")
            await self._send_error(failure, head_only=head_only)
        except (_ConnectionLostError, h11.RemoteProtocolError):
            raise
        except Exception as error:  # noqa: BLE001  (a defect is answered as one)
            await self._send_error(self._report_defect(name, error), head_only=head_only)
        else:
            if reply is not None:
                self._diagnostics.debug(f"{name}: 200, {reply.size} bytes")
                await self._send_reply(name, reply, head_only=head_only)
                return reply.ends_service
        return False

    async def _reply(self, request: h11.Request) -> Reply | None:
        """Return the front-end's reply, or None if a shutdown came before the whole request.

        Raises `Failure`.
        """
        _check_framing(request)
        with self._shutdown.interrupts() as scope:
            await self._discard_body(request)
        if scope.cancelled_caught:
            return None
        self._check_origin(request)
        reply = await self._handler.handle(Request(request.method, request.target))
        if reply.ends_service:
            self._shutdown.request()
        return reply

    async def _discard_body(self, request: h11.Request) -> None:
        """Read the body of a request, which no request needs, up to a limit."""
        length = int(dict(request.headers).get(b"content-length", b"0"))
        received = 0
        while max(length, received) <= MAX_DRAIN:
            event = await self._next_event()
            if not isinstance(event, h11.Data):
                return
            received += len(event.data)
        raise BodyTooLargeError(
            f"no request needs a body, and this one's exceeds {MAX_DRAIN} bytes"
        )

    def _check_origin(self, request: h11.Request) -> None:
        """Reject what a page in a browser could send to a listener on its own machine."""
        if self._accepted and any(name == b"origin" for name, _ in request.headers):
            raise DeniedError(
                "a request with an Origin header comes from a browser, and is refused"
            )

    # --- replies --------------------------------------------------------------------------------

    async def _send_reply(self, name: str, reply: Reply, *, head_only: bool) -> None:
        if isinstance(reply.body, bytes):
            body = b"" if head_only else reply.body
            await self._send_whole(self._head(200, reply.size, reply.fields), body)
            return
        try:
            head = self._head(200, reply.size, reply.fields)
            if head_only:
                await self._send_whole(head, b"")
            else:
                await self._send_body(head, reply.body)
        except Failure as failure:
            is_mismatch = isinstance(failure, InvalidError)
            self._record(Severity.MISMATCH if is_mismatch else Severity.LOST)
            self._diagnostics.failure(f"{name}: broken off: {failure.code}: {failure.message}")
        except _ConnectionLostError:
            raise
        except Exception as error:  # noqa: BLE001  (a defect is reported as one)
            self._report_defect(name, error)
        finally:
            reply.body.close()

    async def _send_body(self, head: bytes, body: Body) -> None:
        """Send a reply whose body is pulled; one that fails on the way stays too short."""
        await self._send_piece(await body.read(), head)
        while piece := await body.read():
            await self._send_piece(piece)
        self._http.send(h11.EndOfMessage())

    async def _send_refusal(self, failure: Failure, *, head_only: bool) -> None:
        """Answer bytes that are no request."""
        self._diagnostics.failure(f"{failure.status} {failure.code}: {failure.message}")
        await self._send_error(failure, head_only=head_only)

    async def _send_error(self, failure: Failure, *, head_only: bool) -> None:
        """Answer with a failure; where the request was not read to its end, close after it."""
        body = error_body(failure)
        fields = [("Content-Type", ERROR_TYPE), *failure.header_fields]
        if self._http.their_state is not h11.DONE:
            fields.append(("Connection", "close"))
        head = self._head(failure.status, len(body), fields)
        await self._send_whole(head, b"" if head_only else body)

    def _head(self, status: int, size: int, fields: list[tuple[str, str]]) -> bytes:
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
        common = [("Date", date), ("Content-Length", str(size)), ("Accept-Ranges", "none")]
        response = h11.Response(
            status_code=status, headers=[*common, *fields], reason=_REASONS[status]
        )
        return self._http.send(response) or b""

    async def _send_whole(self, head: bytes, body: bytes) -> None:
        await self._send_piece(body, head)
        self._http.send(h11.EndOfMessage())

    async def _send_piece(self, piece: Buffer, head: bytes = b"") -> None:
        if piece:
            self._http.send_with_data_passthrough(h11.Data(data=piece))  # type: ignore[arg-type]  # passed through
        if len(piece) <= _JOINED:
            await self._send(head + bytes(piece))
        else:
            await self._send(head)
            await self._send(piece)

    async def _send(self, data: Buffer) -> None:
        try:
            await self._stream.send(data)
        except OSError as error:
            if error.errno not in _HUNG_UP:  # a full disk under standard output, perhaps
                self._diagnostics.failure(f"sending a reply: {error.strerror}")
            raise _ConnectionLostError(error.strerror) from error

    # --- what happened --------------------------------------------------------------------------

    def _report_defect(self, name: str, error: Exception) -> DefectError:
        """Report a defect, and return the failure to answer with, which has no details of it."""
        self._record(Severity.DEFECT)
        self._diagnostics.failure(f"{name}: a defect of this program: {error!r}")
        for line in traceback.format_exception(error):
            self._diagnostics.debug(line)
        return DefectError("a defect of this program; --debug shows where, please report it")

    def _record(self, severity: Severity) -> None:
        self._severity = max(self._severity, severity)


def _check_framing(request: h11.Request) -> None:
    """Reject what two servers could understand in two ways: RFC 9112 sections 2.3 and 6.1."""
    if {b"transfer-encoding", b"content-length"} <= {name for name, _ in request.headers}:
        raise BadRequestError("the request has both Transfer-Encoding and Content-Length")
    if not request.http_version.startswith(b"1."):
        raise BadRequestError(f"unsupported HTTP version HTTP/{request.http_version.decode()}")


def _refusal(error: h11.RemoteProtocolError) -> Failure:
    """Return the failure that answers bytes that are no request."""
    reason = str(error).partition(": bytearray")[0]  # what h11 quotes, it quotes as Python does
    message = f"not an HTTP/1.1 request: {clean(reason)}"
    if error.error_status_hint == HeadTooLargeError.status:
        return HeadTooLargeError(f"the head of the request exceeds {MAX_HEAD} bytes")
    if error.error_status_hint == NotImplementedByUsError.status:
        return NotImplementedByUsError(message)
    return BadRequestError(message)
