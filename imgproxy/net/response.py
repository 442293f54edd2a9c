"""A response that is being received, and the failures of one.

A body of known length goes straight from the socket into the caller's buffer; that of others is
taken out of its chunks. RFC 9112 sections 6 and 7. Every wait has a limit, and exceptions of lower
layers are translated into a `Failure` here.
"""

from __future__ import annotations

import os
import re
import ssl
import sys
from typing import TYPE_CHECKING

import h11
import trio

from imgproxy.errors import (
    OMISSION,
    BadUpstreamError,
    Failure,
    InvalidError,
    UnavailableError,
    UnreachableError,
    clean,
    shortage,
)
from imgproxy.net import tls
from imgproxy.specs.http import addresses, retry
from imgproxy.specs.http.chunks import Chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgproxy.net.low_water import LowWater
    from imgproxy.net.response_parser import ResponseParser
    from imgproxy.net.streams import ByteStream
    from imgproxy.specs.http.url import Url

# Fewer bytes than this within the stall timeout count as a stall, not as progress.
MIN_PROGRESS = 1024

# In seconds. A manifest is some kilobytes; a server that takes this long for one may be stalling
# on purpose.
DOCUMENT_TIMEOUT = 300.0

# Messages name no more addresses of a server than this.
MAX_NAMED = 4

# These have no body, whatever their fields say: RFC 9110 sections 15.3.5 and 15.4.5.
_BODILESS = frozenset({204, 304})

_SCRATCH = 64 * 1024

# In bytes: a body with so much to come may be received in larger pieces.
_LARGE = 512 * 1024

# How h11 quotes a line that it refuses.
_QUOTATION = re.compile(r"""bytearray\(b(["'])(.*)\1\)""")


class Response:
    """A response whose head has arrived; its body is pulled. `size` is in bytes, None if unknown.

    `ends_by_close`: nothing tells the end of the body from the end of a broken connection.
    `is_internal`: it came from an internal address; behind a proxy that is mostly not known.
    `release` is called once with the stream, the number of bytes received, and whether the
    connection can carry another request, or has failed.
    """

    def __init__(
        self,
        url: Url,
        head: h11.Response,
        connection: ResponseParser,
        stream: ByteStream,
        stall_timeout: float,
        release: Callable[..., None],
    ) -> None:
        self.url = url
        self.status = head.status_code
        self._fields = head.headers
        self.is_internal = addresses.is_internal(stream.peer or url.host)
        self._what = f"{connection.method} {url}{at(url.host, [stream.peer])}"
        self._stream: ByteStream | None = stream
        self._release = release
        self._stall_timeout = self._patience = stall_timeout
        self._progress = self._received = 0
        self._ended = False
        options = self.header("connection").lower().replace(" ", "").split(",")
        self._reusable = head.http_version == b"1.1" and "close" not in options
        has_body = connection.method != "HEAD" and self.status not in _BODILESS
        self._frame(connection.trailing_data[0], has_body=has_body)

    def _frame(self, received: bytes, *, has_body: bool) -> None:
        """Decide how the body ends: RFC 9112 section 6.3.

        `received` came along with the head.
        """
        length = self.header("content-length") if has_body else "0"
        self._rest = memoryview(b"")
        if self.header("transfer-encoding") and has_body:
            self.size = None
            self.ends_by_close = False
            self._pull = self._pull_chunks
            # With both, the length is ignored and the connection is suspect.
            self._reusable &= not length
            self._scratch = memoryview(bytearray(_SCRATCH))
            self._chunks = Chunks()
            self._chunks.receive(received)
            return
        self._rest = memoryview(received)
        self._pull = self._pull_bytes
        self.size = int(length) if length else None
        self.ends_by_close = self.size is None
        self._left = sys.maxsize if self.size is None else self.size
        self._reusable &= len(self._rest) <= self._left and self.size is not None
        self._rest = self._rest[: self._left]
        self._low_water: LowWater | None = None
        if self.size == 0:
            self._end()

    def header(self, name: str) -> str:
        """Return a field's value: several joined by commas, empty if there is none."""
        return ", ".join(self.headers(name))

    def headers(self, name: str) -> list[str]:
        """Return the values of all fields of this name (in lower case)."""
        wanted = name.encode()
        return [value.decode("latin-1") for field, value in self._fields if field == wanted]

    async def receive_into(self, buffer: memoryview) -> int:
        """Put the next bytes of the body at the start of `buffer`; return how many, 0 at the end.

        Raises `UnavailableError` for a body that is cut off, `UnreachableError` for one that
        stalls, `BadUpstreamError` for one that breaks HTTP. The clock runs only while waiting.
        """
        if self._stream is None:
            return 0
        started = trio.current_time()
        try:
            with trio.fail_after(self._patience):
                count = await self._pull(buffer, self._stream)
        except (OSError, trio.TooSlowError, h11.RemoteProtocolError) as error:
            self._reusable = False
            self._end(failed=True)
            raise self._broken(error) from error
        # A turn of the event loop may take longer than what was left, without a cancellation.
        self._patience = max(self._patience - (trio.current_time() - started), 0.0)
        self._progress += count
        self._received += count
        if self._ended:
            self._end()
        if self._progress >= MIN_PROGRESS:
            self._patience, self._progress = self._stall_timeout, 0
        return count

    async def _pull_bytes(self, buffer: memoryview, stream: ByteStream) -> int:
        if self._rest:
            count = self._take(buffer)
        else:
            count = await self._receive(buffer, stream)
            if count == 0:
                if self.size is not None:
                    raise ConnectionError(f"the connection ended {self._left} bytes early")
                self._ended = True
                return 0
        self._left -= count
        if self._left == 0:
            self._ended = True
        return count

    async def _receive(self, buffer: memoryview, stream: ByteStream) -> int:
        if self._low_water is None and self.size is not None and self._left > _LARGE:
            from imgproxy.net.low_water import LowWater  # bodies of documents do without

            self._low_water = LowWater(stream)
        if self._low_water is None:
            return await stream.receive_into(buffer[: self._left])
        return await self._low_water.receive_into(buffer, self._left)

    async def _pull_chunks(self, buffer: memoryview, stream: ByteStream) -> int:
        """Fill the buffer with what has been received; wait only while that is nothing."""
        while True:
            try:
                filled = self._chunks.take(buffer)
            except ValueError as error:
                raise h11.RemoteProtocolError(str(error)) from None
            if self._chunks.has_ended:
                self._reusable &= not self._chunks.surplus
                self._ended = True
            if filled or self._ended:
                return filled
            count = await stream.receive_into(self._scratch)
            if count == 0:
                raise ConnectionError("the connection ended before the last chunk")
            self._chunks.receive(bytes(self._scratch[:count]))

    def _take(self, buffer: memoryview) -> int:
        """Copy bytes that have been received along with the head."""
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    async def read(self, limit: int, seconds: float = DOCUMENT_TIMEOUT) -> bytes:
        """Return the whole body and close the response.

        Raises what `receive_into` raises, `InvalidError` for more than `limit` bytes, and
        `UnreachableError` for a body that takes longer than so many seconds.
        """
        body = bytearray()
        buffer = memoryview(bytearray(min(limit, self.size or limit, _SCRATCH) + 1))
        try:
            with trio.fail_after(seconds):
                while len(body) <= limit and (self.size or 0) <= limit:
                    count = await self.receive_into(buffer)
                    if count == 0:
                        return bytes(body)
                    body += buffer[:count]
        except trio.TooSlowError:
            raise UnreachableError(f"{self._what}: no whole reply within {seconds:g} s") from None
        finally:
            self.close()
        raise InvalidError(
            f"GET {self.url}: the reply has more than the {limit} bytes it may have",
            code="SIZE_INVALID",
        )

    def _broken(self, error: Exception) -> Failure:
        if isinstance(error, OSError):
            return UnavailableError(f"{self._what}: the reply was cut off: {reason(error)}")
        limit = self._stall_timeout
        return translated(self._what, error, "the reply stalled", limit, "--stall-timeout")

    def _end(self, *, failed: bool = False) -> None:
        """Release the connection: nothing more on it belongs to this response."""
        stream, self._stream = self._stream, None
        if stream is not None:
            self._release(stream, self._received, reusable=self._reusable, failed=failed)

    def close(self) -> None:
        """Discard the rest of the body, and the connection with it. May be called again."""
        self._reusable = False
        self._end()


def at(host: str, peers: Sequence[str]) -> str:
    """Return what messages add to the name of a server: its addresses, unless it is one itself."""
    others = [each for each in peers if each not in ("", host)]
    more = f", {OMISSION}" if others[MAX_NAMED:] else ""
    return f" at {', '.join(others[:MAX_NAMED])}{more}" if others else ""


def _way_out(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        authority = "an authority of its own goes into certs.d or --cert-dir; "
        shown = authority if getattr(error, "verify_code", 20) in tls.NO_AUTHORITY else ""
        return f" ({shown}--tls-verify=false accepts anything)"
    if getattr(error, "reason", "") == "WRONG_VERSION_NUMBER":  # no TLS record
        return (
            "; it may speak plain http, which insecure = true in registries.conf allows for one"
            " location, and --tls-verify=false for all"
        )
    return ""


def translated(
    what: str,
    error: Exception,
    doing: str,
    limit: float,
    option: str = "",
    *,
    retryable: bool | None = None,
) -> Failure:
    """Return the failure that stands for an exception of a lower layer; raise it if none does.

    `what` was attempted, and `doing` went on for `limit` seconds if the exception is a timeout,
    which `option` sets. `retryable` overrides whether a network that fails is worth another try.
    """
    if isinstance(error, trio.TooSlowError):
        return UnreachableError(f"{what}: {doing} for {limit:g} s{option and f' ({option})'}")
    failure = shortage(what, error)
    if failure is not None:
        return failure
    if isinstance(error, ssl.SSLError) and not retry.is_transient(error):
        return BadUpstreamError(f"{what}: TLS failed: {reason(error)}{_way_out(error)}", code="TLS")
    if isinstance(error, h11.RemoteProtocolError):
        return BadUpstreamError(f"{what}: the server broke HTTP: {reason(error)}")
    if isinstance(error, OSError):
        return UnreachableError(f"{what}: {reason(error)}", retryable=retryable)
    raise error


def reason(error: BaseException) -> str:
    """Return the cause in the system's words; trio groups those of several addresses."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(map(reason, cause.exceptions)))
    if isinstance(error, ssl.SSLCertVerificationError):
        return clean(error.verify_message)
    if isinstance(error, OSError) and error.strerror:
        # Take the system's own words; trio's have the address in Python's notation. The numbers
        # of TLS are OpenSSL's, and those of name resolution are negative.
        is_system = not isinstance(error, ssl.SSLError) and (error.errno or 0) > 0
        return os.strerror(error.errno or 0) if is_system else clean(error.strerror)
    if isinstance(cause, OSError):
        return reason(cause)
    return clean(_QUOTATION.sub(r'"\2"', str(error)))
