"""One HTTP/1.1 conversation with a parent: RFC 9110 and 9112, by h11.

The conversation ends at the parent's end of file, on `POST /quit`, or when the parent is gone: a
watcher notices the latter even while a registry is awaited or a body is stuck. Bodies are pulled,
so that a parent that does not read stops the registry.
"""

from __future__ import annotations

import enum
import errno
import time
import traceback
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import h11
import trio

from imgproxy.errors import (
    BadRequestError,
    BodyTooLargeError,
    DefectError,
    DeniedError,
    Failure,
    HeadTooLargeError,
    InvalidError,
    MethodNotAllowedError,
    NotImplementedByUsError,
    clean,
)
from imgproxy.frontends import single_image_routes
from imgproxy.specs.oci import convert
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.manifest import Manifest
from imgproxy.verification.verified_blob import Blob

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.images.image import Image, OpenedImage
    from imgproxy.net.streams import Buffer, ByteStream
    from imgproxy.specs.oci.digest import Digest

# A request is a line and some fields; 16 KiB is what servers in the field allow for both.
MAX_HEAD = 16 * 1024

# What is read away of a body that nobody asked for, and of what comes after the last reply.
MAX_DRAIN = 64 * 1024
DRAIN_TIMEOUT = 1.0

# A head and a body up to this leave in one piece; copying more costs more than a system call.
_JOINED = 64 * 1024

# How a system says that nobody is there to be sent to.
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
    """What happened in a conversation, the gravest last."""

    NOTHING = 0
    LOST = 1  # the source was lost after the head was sent
    MISMATCH = 2  # digest or size did not agree after the head was sent
    DEFECT = 3


class Shutdown:
    """The end of the process as `POST /quit` asks for it.

    No new requests are taken; replies under way are finished.
    """

    def __init__(self) -> None:
        self.requested = False
        self._scopes: set[trio.CancelScope] = set()

    def request(self) -> None:
        """Interrupt all who wait for something new."""
        self.requested = True
        for scope in self._scopes:
            scope.cancel()

    @contextmanager
    def interrupts(self) -> Iterator[trio.CancelScope]:
        """Leave the block when quitting is requested, or at once if it has been."""
        with trio.CancelScope() as scope:
            if self.requested:
                scope.cancel()
            self._scopes.add(scope)
            try:
                yield scope
            finally:
                self._scopes.remove(scope)


class _Gone(Exception):
    """The parent cannot be reached any more."""


class _Reply(NamedTuple):
    """A 200: its fields, the size of its body in bytes, and the body, which HEAD leaves out."""

    fields: list[tuple[str, str]]
    size: int
    body: bytes | Blob


class Conversation:
    """One parent on one wire. `accepted`: it came through a listener, so it may be a browser."""

    def __init__(
        self,
        wire: ByteStream,
        image: Image,
        shutdown: Shutdown,
        diagnostics: Diagnostics,
        *,
        accepted: bool = False,
    ) -> None:
        self._wire = wire
        self._image = image
        self._shutdown = shutdown
        self._diagnostics = diagnostics
        self._accepted = accepted
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        # One byte more than h11 may keep, however the head is split on its way.
        self._received = memoryview(bytearray(MAX_HEAD + 1))
        self._idle = self._work = trio.CancelScope()
        self._gone = False
        self._head_only = False
        self._patience = DRAIN_TIMEOUT
        self._severity = Severity.NOTHING

    async def run(self) -> Severity:
        """Answer requests until there are no more, and close the wire."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                try:
                    await self._serve()
                    await self._wire.finish(MAX_DRAIN, self._patience)
                except _Gone as error:
                    self._diagnostics.debug(f"the parent is gone: {error}")
                nursery.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001  (one conversation's defect is not the others')
            self._defect("the conversation", error)
        finally:
            self._wire.close()
        return self._severity

    async def _watch(self) -> None:
        """Stop the work for a parent that is gone; what it sent before can still be read."""
        with suppress(OSError):  # out of descriptors: then sending will tell
            await self._wire.wait_hung_up()
            self._gone = True
            await trio.lowlevel.checkpoint()  # who was woken by its last word has it now
            self._idle.cancel()
            self._work.cancel()

    async def _serve(self) -> None:
        """Answer requests in order until the parent's end of file, `/quit`, or a close."""
        while await self._serve_one():
            self._http.start_next_cycle()

    async def _serve_one(self) -> bool:
        """Answer one request; give whether another may follow on this connection."""
        self._head_only = False
        try:
            request = None
            with self._shutdown.interrupts() as self._idle:
                if self._gone:  # while the last reply was sent; only what is here already counts
                    self._idle.cancel()
                request = await self._next_event()
            if not isinstance(request, h11.Request):
                return False  # the end of file, or of the process
            with trio.CancelScope() as self._work:
                if self._gone:  # its last word is heard, for it may be `/quit`, but not answered
                    self._work.cancel()
                await self._answer(request)
            if self._work.cancelled_caught:
                raise _Gone("it hung up")
        except h11.RemoteProtocolError as error:
            failure = _refusal(error)
            self._diagnostics.failure(f"{failure.status} {failure.code}: {failure.message}")
            await self._send_error(failure)
        reusable = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        return reusable and not self._shutdown.requested

    async def _next_event(self) -> object:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._http.they_are_waiting_for_100_continue:
                await self._send(self._http.send(_CONTINUE) or b"")
            try:
                kept = len(self._http.trailing_data[0])
                count = await self._wire.receive_into(self._received[: MAX_HEAD + 1 - kept])
            except OSError as error:
                raise _Gone(error.strerror) from error
            self._http.receive_data(bytes(self._received[:count]))

    async def _answer(self, request: h11.Request) -> None:
        """Answer a request, with what it asks for or with why not."""
        self._head_only = request.method == b"HEAD"
        what = f"{request.method.decode()} {clean(request.target.decode())}"
        try:
            _refuse_ambiguous(request)
            with self._shutdown.interrupts() as scope:
                await self._read_away(request)
            if scope.cancelled_caught:
                return  # the request had not arrived
            self._refuse_browser(request)
            reply = await self._reply(single_image_routes.parse(request.method, request.target))
        except Failure as failure:
            self._diagnostics.failure(f"{what}: {failure.status} {failure.code}: {failure.message}")
            await self._send_error(failure)
        except (_Gone, h11.RemoteProtocolError):
            raise
        except Exception as error:  # noqa: BLE001  (a defect is answered as one)
            await self._send_error(self._defect(what, error))
        else:
            self._diagnostics.debug(f"{what}: 200, {reply.size} bytes")
            await self._send_reply(what, reply)

    async def _read_away(self, request: h11.Request) -> None:
        """Read a body that nobody asked for, up to a limit."""
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

    def _refuse_browser(self, request: h11.Request) -> None:
        """Refuse what a page in a browser could send to a listener on its own machine."""
        if self._accepted and any(name == b"origin" for name, _ in request.headers):
            raise DeniedError(
                "a request with an Origin header comes from a browser, and is refused"
            )

    async def _reply(self, request: single_image_routes.Request) -> _Reply:
        """Do what is asked for. Raises `Failure`."""
        if isinstance(request, single_image_routes.Quit):
            self._shutdown.request()
            self._patience = 0  # it said that nothing follows
            return _Reply([], 0, b"")
        image = await self._image.open()
        if isinstance(request, single_image_routes.GetManifest):
            body = image.oci_manifest
            return _Reply(_manifest_fields(image), len(body), body)
        if isinstance(request, single_image_routes.GetDocument):
            document = await image.document(request.digest)
            fields = _content_fields(document.media_type, request.digest)
            return _Reply(fields, len(document.raw), document.raw)
        if isinstance(request, single_image_routes.GetConfig):
            descriptor = image.find_config()
            media_type = convert.media_type(descriptor.media_type) or types.OCTET_STREAM
        else:
            descriptor, media_type = image.find_blob(request.digest), types.OCTET_STREAM
        fields = _content_fields(media_type, descriptor.digest)
        blob = b"" if self._head_only else await image.open_blob(descriptor)
        return _Reply(fields, descriptor.size, blob)

    async def _send_reply(self, what: str, reply: _Reply) -> None:
        head = self._head(200, reply.size, reply.fields)
        if not isinstance(reply.body, Blob):
            await self._send_whole(head, reply.body)
            return
        try:
            piece = await reply.body.read()
            await self._send_piece(piece, head)
            while piece := await reply.body.read():
                await self._send_piece(piece)
            self._http.send(h11.EndOfMessage())
        except Failure as failure:
            mismatch = isinstance(failure, InvalidError)
            self._grave(Severity.MISMATCH if mismatch else Severity.LOST)
            self._diagnostics.failure(f"{what}: broken off: {failure.code}: {failure.message}")
        except _Gone:
            raise
        except Exception as error:  # noqa: BLE001  (a defect is told of as one)
            self._defect(what, error)
        finally:
            reply.body.close()

    async def _send_error(self, failure: Failure) -> None:
        """Answer with a failure; where the request was not read to its end, close after it."""
        body = single_image_routes.error_body(failure)
        fields = [("Content-Type", single_image_routes.ERROR_TYPE)]
        if isinstance(failure, MethodNotAllowedError):
            fields.append(("Allow", failure.allow))
        if self._http.their_state is not h11.DONE:
            fields.append(("Connection", "close"))
        await self._send_whole(self._head(failure.status, len(body), fields), body)

    def _head(self, status: int, size: int, fields: list[tuple[str, str]]) -> bytes:
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
        common = [("Date", date), ("Content-Length", str(size)), ("Accept-Ranges", "none")]
        response = h11.Response(
            status_code=status, headers=[*common, *fields], reason=_REASONS[status]
        )
        return self._http.send(response) or b""

    async def _send_whole(self, head: bytes, body: Buffer) -> None:
        await self._send_piece(b"" if self._head_only else body, head)
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
            await self._wire.send(data)
        except OSError as error:
            if error.errno not in _HUNG_UP:  # a full disk under standard output, perhaps
                self._diagnostics.failure(f"sending a reply: {error.strerror}")
            raise _Gone(error.strerror) from error

    def _defect(self, what: str, error: Exception) -> DefectError:
        """Tell of a defect; the parent learns no more than that it is one."""
        self._grave(Severity.DEFECT)
        self._diagnostics.failure(f"{what}: a defect of this program: {error!r}")
        for line in traceback.format_exception(error):
            self._diagnostics.debug(line)
        return DefectError("a defect of this program; --debug shows where, please report it")

    def _grave(self, severity: Severity) -> None:
        self._severity = max(self._severity, severity)


def _refuse_ambiguous(request: h11.Request) -> None:
    """Refuse what two servers could understand in two ways: RFC 9112 sections 2.3 and 6.1."""
    if {b"transfer-encoding", b"content-length"} <= {name for name, _ in request.headers}:
        raise BadRequestError("the request has both Transfer-Encoding and Content-Length")
    if not request.http_version.startswith(b"1."):
        raise BadRequestError(f"HTTP/{request.http_version.decode()} is not spoken here")


def _refusal(error: h11.RemoteProtocolError) -> Failure:
    """Give what is answered to bytes that are no request."""
    words = str(error).partition(": bytearray")[0]  # what h11 quotes, it quotes as Python does
    message = f"not an HTTP/1.1 request: {clean(words)}"
    if error.error_status_hint == HeadTooLargeError.status:
        return HeadTooLargeError(f"the head of the request exceeds {MAX_HEAD} bytes")
    if error.error_status_hint == NotImplementedByUsError.status:
        return NotImplementedByUsError(message)
    return BadRequestError(message)


def _content_fields(media_type: str, digest: Digest) -> list[tuple[str, str]]:
    return [("Content-Type", media_type), ("Docker-Content-Digest", str(digest))]


def _manifest_fields(image: OpenedImage) -> list[tuple[str, str]]:
    fields = [
        *_content_fields(types.OCI_MANIFEST, image.oci_digest),
        ("Manifest-Digest", str(image.manifest.digest)),
        ("Manifest-Media-Type", image.manifest.media_type),
    ]
    if image.index is not None:
        fields.append(("Index-Digest", str(image.index.digest)))
    parsed = image.manifest.parsed
    if isinstance(parsed, Manifest) and parsed.artifact_type:
        fields.append(("Artifact-Type", parsed.artifact_type))
    return fields
