"""The server's side of one HTTP/1.1 connection: RFC 9110 and 9112, by h11.

Requests are read by `request_reader`, replies and failures are sent; what a request means is
decided by a front-end (`handler`). A connection ends at the client's end of file, at a shutdown,
after a message whose framing is not certain, or when the client has hung up, which is noticed even
while a registry is awaited or a body waits for room; a client that makes no progress is told from
others for those who need what it holds (`patience`). Bodies are pulled, so that a client that
does not read stops the registry.
"""

from __future__ import annotations

import enum
import errno
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

import h11
import trio

from imgproxy.errors import (
    BadRequestError,
    DefectError,
    Failure,
    InvalidError,
    ShortageError,
    clean,
    closing_on_error,
    shortage,
)
from imgproxy.server.error_body import ERROR_TYPE, error_body
from imgproxy.server.handler import MAX_BEGUN, Request, can_begin, tell_refused
from imgproxy.server.patience import IDLE_LIMIT, REQUEST_LIMIT, STALL_LIMIT, Patience
from imgproxy.server.reply_head import reply_head
from imgproxy.server.request_errors import BodyTooLargeError, HttpVersionError
from imgproxy.server.request_reader import MAX_HEAD, PlainRequest, RequestReader, persistence
from imgproxy.server.shutdown import HangUp

if TYPE_CHECKING:
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.net.streams import Buffer, ByteStream
    from imgproxy.server.access import Access
    from imgproxy.server.ahead import Ahead
    from imgproxy.server.handler import Body, Handler, Reply
    from imgproxy.server.places import Places
    from imgproxy.server.request_reader import ReadRequest
    from imgproxy.server.shutdown import Shutdown

# What is read and discarded of a request body, which no request needs, and of what comes after the
# last reply.
MAX_DRAIN = 64 * 1024
DRAIN_TIMEOUT = 1.0

# A head and a body up to this leave in one piece; copying more costs more than a system call.
_JOINED = 64 * 1024

# What sending fails with where the other side has gone.
_HUNG_UP = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH})

# The fields that say that a request has a body.
_FRAMING = frozenset({b"transfer-encoding", b"content-length"})

# The methods that ask for content. Others are answered at once, and need no place: a service is
# ended by one of them.
_CONTENT = frozenset({b"GET", b"HEAD"})


class Severity(enum.IntEnum):
    """What happened on a connection, the most severe last."""

    NOTHING = 0
    LOST = 1  # the source was lost after the head was sent, or this host was short of something
    MISMATCH = 2  # digest or size did not agree after the head was sent
    DEFECT = 3


class _ConnectionLostError(Exception):
    """The client cannot be reached any more."""


class HttpConnection:
    """One client on one stream.

    `access` and `places` are set if the connection came through a listener: the client may be a
    browser then, and needs a place before it gets content. If places are for bodies, anybody may be
    a client, and what one sends that is no request is a line with `--debug` alone.
    """

    def __init__(
        self,
        stream: ByteStream,
        handler: Handler,
        shutdown: Shutdown,
        diagnostics: Diagnostics,
        *,
        access: Access | None = None,
        places: Places[HttpConnection] | None = None,
    ) -> None:
        self._stream = stream
        self._handler = handler
        self._shutdown = shutdown
        self._hang_up = HangUp()
        self._diagnostics = diagnostics
        self._access = access
        for_bodies = places is not None and places.for_bodies
        self._places = None if for_bodies else places
        self._bodies = places if for_bodies else None
        self._ahead: Ahead | None = None
        self._nursery: trio.Nursery
        self._requests = RequestReader(reads_plain=access is None)
        self._received = memoryview(bytearray(MAX_HEAD + 1))
        self._name = ""  # the request that is answered
        self._persistence = "close"  # what its reply will say
        self._severity = Severity.NOTHING
        self.patience = Patience(stream)

    async def run(self) -> Severity:
        """Answer requests until there are no more, close the stream, and return what happened."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._hang_up.watch, self._stream)
                try:
                    drain_timeout = await self._serve()
                    await self._stream.finish(MAX_DRAIN, drain_timeout)
                except _ConnectionLostError as error:
                    self._diagnostics.debug(str(error))
                self._nursery.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001  (the other connections are to go on)
            self._report("the conversation", error)
        finally:
            self._stream.close()
        return self._severity

    def end(self, reason: str) -> None:
        """End the conversation, and with it what is under way."""
        if self.patience.limit == STALL_LIMIT:
            if self.patience.is_overdue():
                reason = f"the client has read nothing for {STALL_LIMIT:g} seconds, and {reason}"
            self._diagnostics.failure(f"{self._name}: broken off: {reason}")
        else:
            self._diagnostics.debug(f"a conversation is closed: {reason}")
        self.patience.pause()
        self._hang_up.request()

    # --- requests -------------------------------------------------------------------------------

    async def _serve(self) -> float:
        """Answer requests in order until the end of file, a shutdown or a close.

        Return for how many seconds what the client still sends is to be drained.
        """
        try:
            while True:
                try:
                    request = await self._next_request()
                except Failure as failure:
                    await self._refuse(failure)
                    return DRAIN_TIMEOUT
                if request is None:
                    return 0 if self._hang_up.requested else DRAIN_TIMEOUT
                if await self._exchange(request):
                    return 0  # a client that ends the service sends nothing after that
                if self._shutdown.requested or self._persistence == "close":
                    return DRAIN_TIMEOUT
                self._requests.start_next()
        finally:
            if self._ahead is not None:
                self._ahead.close()

    async def _next_request(self) -> ReadRequest | None:
        """Return the next request, or None at the end of file and at a shutdown.

        Of a client that has hung up, only what has been received already counts. Raises a `Failure`
        for bytes that are no request.
        """
        event = None
        self.patience.allow(IDLE_LIMIT)
        with self._shutdown.interrupts(self._hang_up):
            event = await self._next_event()
        return event if isinstance(event, h11.Request | PlainRequest) else None

    async def _next_event(self) -> object:
        requests = self._requests
        while (event := requests.next_event()) is h11.NEED_DATA:
            if self.patience.limit == IDLE_LIMIT and requests.is_begun:
                self.patience.allow(REQUEST_LIMIT)
            if continuation := requests.continuation():
                await self._send(continuation)
            try:
                count = await self._stream.receive_into(self._received[: requests.room])
            except OSError as error:
                raise _lost(error) from error
            requests.receive(bytes(self._received[:count]))
        return event

    async def _exchange(self, request: ReadRequest) -> bool:
        """Answer a request, and return whether it ended the service.

        The last request of a client that has hung up takes effect, since it may end the service,
        as far as that takes no wait; it is not answered.
        """
        with self._hang_up.interrupts():
            return await self._answer(request)
        raise _ConnectionLostError("the parent is gone: it hung up, or has read nothing")

    async def _answer(self, received: ReadRequest) -> bool:
        """Answer a request, by a reply or by a failure; return whether it ended the service."""
        request = Request(received.method, received.target, received.headers)
        self._name = name = f"{request.method.decode()} {clean(request.target.decode())}"
        self._persistence = persistence(received)
        try:
            reply = await self._reply(received, request)
            body = b"" if reply is None else await self._open_body(reply, request)
        except _ConnectionLostError:
            raise
        except Exception as error:  # noqa: BLE001  (a defect is answered as one)
            await self._send_error(self._report(name, error), head_only=request.is_head)
        else:
            if reply is not None:
                self._diagnostics.debug(f"{name}: {reply.status}, {reply.size} bytes")
                await self._send_reply(reply, body, head_only=not reply.has_body(request))
                return reply.ends_service
        finally:
            if self._bodies is not None:
                self._bodies.leave(self)
        return False

    async def _reply(self, received: ReadRequest, request: Request) -> Reply | None:
        """Return the front-end's reply, or None if a shutdown came before its turn.

        Raises `Failure`.
        """
        with self._shutdown.interrupts() if self._may_wait(received) else nullcontext() as scope:
            try:
                await self._check(received)
            except Failure as failure:
                tell_refused(self._handler, failure)
                raise
            if self._places is not None and request.method in _CONTENT:
                await self._places.take(self)
        if scope is not None and scope.cancelled_caught:
            return None
        reply = await self._begun(request) or await self._handler.handle(request)
        self._prepare_ahead()
        if reply.ends_service:
            self._shutdown.request()
        return reply

    def _may_wait(self, request: ReadRequest) -> bool:
        """Return whether a place or a body may have to be waited for."""
        has_body = any(name in _FRAMING for name, _ in request.headers)
        return has_body or self._places is not None

    async def _check(self, request: ReadRequest) -> None:
        """Read the body of a request, and raise `Failure` for one that no front-end gets."""
        _check_framing(request)
        await self._discard_body(request)
        self.patience.pause()
        self._requests.check_host(request)
        if self._access is not None:
            self._access.check(request)

    async def _begun(self, request: Request) -> Reply | None:
        """Return the reply to a request if it was begun before its turn. Raises `Failure`."""
        self._prepare_ahead()
        if self._ahead is None:
            return None
        begun = self._ahead.turn_to(request)
        if request.method in _CONTENT:  # another may end the service
            self._look_ahead()
        return None if begun is None else await self._ahead.result(begun)

    def _prepare_ahead(self) -> None:
        """Make it possible to begin replies, as soon as it is known that they are waited for.

        That is before the first reply is sent: later, an upgrade may have replaced the files.
        """
        if self._ahead is None and can_begin(self._handler) and self._handler.waits():
            from imgproxy.server.ahead import Ahead

            self._ahead = Ahead(self._handler, self._nursery)

    def _look_ahead(self) -> None:
        """Begin the replies to requests that have arrived behind the present one."""
        if self._ahead is None or self._shutdown.requested or not self._ahead.may_begin():
            return
        with suppress(OSError):  # nothing has arrived, or it fails again where that is reported
            if self._requests.room:
                count = self._stream.receive_now(self._received[: self._requests.room])
                self._requests.receive(bytes(self._received[:count]))
        self._ahead.begin(self._requests.upcoming(2 * MAX_BEGUN))

    async def _open_body(self, reply: Reply, request: Request) -> bytes | Body:
        """Return the body of a reply, opened if it is to be sent. Raises `Failure`."""
        body = reply.body
        if not reply.has_body(request):
            return b"" if callable(body) else body
        if isinstance(body, bytes):
            return body
        if self._bodies is not None:
            with nullcontext() if callable(body) else closing_on_error(body):
                await self._bodies.take(self)
        return await body() if callable(body) else body

    async def _discard_body(self, request: ReadRequest) -> None:
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

    # --- replies --------------------------------------------------------------------------------

    async def _send_reply(self, reply: Reply, body: bytes | Body, *, head_only: bool) -> None:
        if isinstance(body, bytes):
            piece = b"" if head_only else body
            await self._send_piece(piece, self._head(reply.status, reply.size, reply.fields))
            return
        try:
            head = self._head(reply.status, reply.size, reply.fields)
            if head_only:
                await self._send(head)
            else:
                await self._send_body(head, reply.size, body)
        except _ConnectionLostError:
            raise
        except Exception as error:  # noqa: BLE001  (a defect is reported as one)
            self._persistence = "close"
            self._report(self._name, error, is_begun=True)
        finally:
            body.close()

    async def _send_body(self, head: bytes, size: int, body: Body) -> None:
        """Send a reply whose body is pulled; one that fails on the way stays too short."""
        while piece := await body.read():
            size -= len(piece)
            if size < 0:
                raise ValueError(f"{-size} bytes more than announced")
            await self._send_piece(piece, head)
            head = b""
            self._look_ahead()
        if size:
            raise ValueError(f"{size} bytes fewer than announced")
        if head:  # of an empty body
            await self._send(head)

    async def _refuse(self, failure: Failure) -> None:
        """Answer bytes that are no request."""
        tell_refused(self._handler, failure)
        self._name = f"{failure.status} {failure.code}"
        report = self._diagnostics.failure if self._bodies is None else self._diagnostics.debug
        report(f"{self._name}: {failure.message}")
        with self._hang_up.interrupts():
            await self._send_error(failure, head_only=False)

    async def _send_error(self, failure: Failure, *, head_only: bool) -> None:
        body = error_body(failure, self._diagnostics.masked)
        fields = [("Content-Type", ERROR_TYPE), *failure.header_fields]
        await self._send_piece(
            b"" if head_only else body, self._head(failure.status, len(body), fields)
        )

    def _head(self, status: int, size: int, fields: list[tuple[str, str]]) -> bytes:
        """Return the head of a reply, which says whether the connection ends after it."""
        if not self._requests.is_whole or self._shutdown.requested:
            self._persistence = "close"
        return reply_head(status, size, fields, self._persistence)

    async def _send_piece(self, piece: Buffer, head: bytes = b"") -> None:
        if len(piece) <= _JOINED:
            await self._send(head + bytes(piece))
        else:
            await self._send(head)
            await self._send(piece)

    async def _send(self, data: Buffer) -> None:
        before = self.patience.limit
        self.patience.allow(STALL_LIMIT)
        try:
            await self._stream.send(data)
        except OSError as error:
            if error.errno not in _HUNG_UP:  # a full disk under standard output, perhaps
                self._record(Severity.LOST)
                self._diagnostics.failure(f"sending a reply: {error.strerror}")
            raise _lost(error) from error
        self.patience.allow(before)

    # --- what happened --------------------------------------------------------------------------

    def _report(self, name: str, error: Exception, *, is_begun: bool = False) -> Failure:
        """Report and record an exception, and return the failure to answer with.

        `is_begun`: the head of a reply was sent, so that there will be no answer.
        """
        failure = error if isinstance(error, Failure) else shortage("answering it", error)
        if failure is None:
            return self._report_defect(name, error)
        if is_begun and isinstance(failure, InvalidError):
            self._record(Severity.MISMATCH)
        elif is_begun or isinstance(failure, ShortageError):
            self._record(Severity.LOST)
        how = "broken off:" if is_begun else failure.status
        report = self._diagnostics.debug if failure.is_miss else self._diagnostics.failure
        report(f"{name}: {how} {failure.code}: {failure.message}")
        return failure

    def _report_defect(self, name: str, error: Exception) -> DefectError:
        """Report a defect, and return the failure to answer with, which has no details of it."""
        self._record(Severity.DEFECT)
        self._diagnostics.defect(name, error)
        return DefectError("a defect of this program; --debug shows where, please report it")

    def _record(self, severity: Severity) -> None:
        self._severity = max(self._severity, severity)


def _lost(error: OSError) -> _ConnectionLostError:
    return _ConnectionLostError(f"the parent is gone: {error.strerror}")


def _check_framing(request: ReadRequest) -> None:
    """Reject what two servers could understand in two ways: RFC 9112 sections 2.3 and 6.1."""
    if {name for name, _ in request.headers} >= _FRAMING:
        raise BadRequestError("the request has both Transfer-Encoding and Content-Length")
    if not request.http_version.startswith(b"1."):
        version = request.http_version.decode()
        raise HttpVersionError(f"HTTP/{version} is not spoken here; use HTTP/1.1")
