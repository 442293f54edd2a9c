"""HTTP/1.1 towards registries: one request, one streamed reply, connections kept alive.

h11 reads and writes heads; a body of known length goes straight from the socket into the caller's
buffer, because h11's own would copy it twice. Whatever is awaited has a limit, and whatever goes
wrong leaves here as a `Failure` (httpcore's habit: exceptions are translated at the door).

RFC 9112. Redirects, tokens and retries are the caller's decisions.
"""

from __future__ import annotations

import os
import ssl
import sys
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Protocol

import h11
import trio

from imgproxy.errors import (
    BadUpstreamError,
    DeniedError,
    Failure,
    InvalidError,
    UnavailableError,
    UnreachableError,
    clean,
)
from imgproxy.spec import retry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from imgproxy.spec.proxy import Proxy
    from imgproxy.spec.url import Url
    from imgproxy.system import Reporter
    from imgproxy.wire import Wire

# For a connection with its TLS handshake; Go's dialler alone allows as much. A shorter stall
# timeout goes before.
CONNECT_TIMEOUT = 30.0

# Cookies and signed URLs make heads of some kilobytes; nginx allows 8 KiB a line.
MAX_HEAD = 64 * 1024

# Less than this within the stall timeout is no progress: a trickle is a stall that takes longer.
MIN_PROGRESS = 1024

# A manifest is some kilobytes. Who takes this long for one does not want to be understood.
DOCUMENT_TIMEOUT = 300.0

# Conversations are 64 at most and take turns; more idle connections than this to one origin would
# only be forgotten.
MAX_IDLE = 8

_SCRATCH = 64 * 1024

_PROXY_AUTHENTICATION_REQUIRED = 407

# Whatever their fields say, these have no body: RFC 9110 sections 15.3.5 and 15.4.5.
_BODILESS = frozenset({204, 304})


class Dial(Protocol):
    """How a connection to an origin is made; tests put a scripted one in its place."""

    async def __call__(self, url: Url) -> Wire:
        """Give a connection to the origin of `url`, or raise `OSError`."""


class Client:
    """Requests to any origin, over connections that are kept alive.

    `stall_timeout` is in seconds. `user_agent` names this program to registries. `proxy_for` gives
    the proxy that forwards requests to a plain http URL, where `dial` leads to one.
    """

    def __init__(
        self,
        dial: Dial,
        reporter: Reporter,
        *,
        stall_timeout: float,
        user_agent: str,
        proxy_for: Callable[[Url], Proxy | None] = lambda _: None,
    ) -> None:
        self._dial = dial
        self._report = reporter
        self._stall_timeout = stall_timeout
        self._user_agent = user_agent
        self._proxy_for = proxy_for
        self._connect_timeout = min(CONNECT_TIMEOUT, stall_timeout)
        self._idle: defaultdict[tuple[str, str, int], list[Wire]] = defaultdict(list)

    async def connect(self, url: Url) -> None:
        """Make sure that a connection to the URL's origin is at hand.

        Raises `UnreachableError` or, where TLS is what fails, `BadUpstreamError`.
        """
        try:
            wire = self._take_idle(url) or await self._connect(url)
        except Failure as error:
            self._report.debug(error.message)
            raise
        self._give_back(url, wire)

    async def get(
        self, url: Url, headers: Mapping[str, str], *, form: bytes | None = None, note: str = ""
    ) -> Response:
        """Send a GET and give the reply as soon as its head is there; close it in any case.

        With a `form` it is a POST of that. `note` is what `--debug` adds to its line. Raises
        `UnreachableError` or `BadUpstreamError`.
        """
        exchange = partial(self._exchange, url, headers, form, note)
        started = trio.current_time()
        wire = self._take_idle(url)
        try:
            if wire is not None:
                # The server may have closed it just now. It has answered nothing then, and
                # another connection gets the request.
                try:
                    return await exchange(wire, started)
                except UnreachableError as error:
                    if not isinstance(error.__cause__, _ClosedEarly):
                        raise
            return await exchange(await self._connect(url), started)
        except Failure as error:
            self._report.debug(error.message + note)
            raise

    async def _exchange(
        self,
        url: Url,
        headers: Mapping[str, str],
        form: bytes | None,
        note: str,
        wire: Wire,
        started: float,
    ) -> Response:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        method = "GET" if form is None else "POST"
        proxy = self._proxy_for(url) if url.scheme == "http" else None
        request = self._request(connection, proxy, url, headers, form)
        try:
            with trio.fail_after(self._stall_timeout):
                await _send(wire, request)
                head = await self._head(connection, wire)
        except BaseException as error:
            wire.close()
            if isinstance(error, Exception):
                raise _translated(
                    f"{method} {url}", error, "no answer", self._stall_timeout
                ) from error
            raise
        if head.status_code == _PROXY_AUTHENTICATION_REQUIRED and proxy is not None:
            wire.close()
            raise DeniedError(f"{method} {url}: the proxy {proxy} answered 407", code="PROXY")
        what = f"{method} {url}: {head.status_code}", started, note
        release = partial(self._take_back, url, what)
        return Response(url, head, connection, wire, self._stall_timeout, release)

    def _request(
        self,
        connection: h11.Connection,
        proxy: Proxy | None,
        url: Url,
        headers: Mapping[str, str],
        form: bytes | None,
    ) -> bytes:
        """Give the bytes of a request, in the form that a proxy wants it if one forwards it."""
        target, fields = proxy.forward(url) if proxy else (url.target, [("Host", url.authority)])
        fields += [
            ("User-Agent", self._user_agent),
            ("Accept-Encoding", "identity"),
            *headers.items(),
        ]
        if form is not None:
            fields += [
                ("Content-Type", "application/x-www-form-urlencoded"),
                ("Content-Length", str(len(form))),
            ]
        method = "GET" if form is None else "POST"
        request = h11.Request(method=method, target=target, headers=fields)
        body = [] if form is None else [h11.Data(data=form)]
        return b"".join(
            connection.send(each) or b"" for each in (request, *body, h11.EndOfMessage())
        )

    async def _head(self, connection: h11.Connection, wire: Wire) -> h11.Response:
        # One byte more than h11 may keep, however the head is split on its way.
        scratch = memoryview(bytearray(MAX_HEAD + 1))
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                try:
                    kept = len(connection.trailing_data[0])
                    count = await wire.receive_into(scratch[: MAX_HEAD + 1 - kept])
                except OSError as error:
                    if isinstance(error, ssl.SSLError) or connection.trailing_data[0]:
                        raise
                    raise _ClosedEarly(reason(error)) from error
                if count == 0 and not connection.trailing_data[0]:
                    raise _ClosedEarly("the connection was closed before an answer")
                connection.receive_data(bytes(scratch[:count]))
            elif isinstance(event, h11.Response):
                return event
            # anything else here is an informational response

    async def _connect(self, url: Url) -> Wire:
        try:
            with trio.fail_after(self._connect_timeout):
                return await self._dial(url)
        except (OSError, trio.TooSlowError) as error:
            where = f"connecting to {url.scheme}://{url.endpoint}"
            failure = _translated(where, error, "no answer", self._connect_timeout)
            if isinstance(error, OSError):  # a name that nobody has will not be had a second later
                failure.is_transient &= retry.is_transient(error)
            raise failure from error

    def _take_idle(self, url: Url) -> Wire | None:
        """Give a kept connection on which nothing waits: surplus bytes answer no question."""
        kept = self._idle[url.origin]
        while kept:
            wire = kept.pop()
            if wire.is_quiet():
                return wire
            wire.close()
        return None

    def _take_back(
        self, url: Url, what: tuple[str, float, str], wire: Wire, received: int, *, reusable: bool
    ) -> None:
        """Tell of a reply that has ended, and keep its connection if it can be used again."""
        line, started, note = what
        elapsed = (trio.current_time() - started) * 1000
        self._report.debug(f"{line}, {received} bytes, {elapsed:.0f} ms{note}")
        if reusable:
            self._give_back(url, wire)
        else:
            wire.close()

    def _give_back(self, url: Url, wire: Wire) -> None:
        kept = self._idle[url.origin]
        if len(kept) < MAX_IDLE:
            kept.append(wire)
        else:
            wire.close()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        for kept in self._idle.values():
            while kept:
                kept.pop().close()


class _ClosedEarly(ConnectionError):
    """A connection ended before the first byte of an answer."""


async def _send(wire: Wire, head: bytes) -> None:
    try:
        await wire.send(head)
    except ssl.SSLError:
        raise
    except OSError as error:
        raise _ClosedEarly(reason(error)) from error


class Response:
    """A reply whose head has arrived; its body is pulled. `size` is in bytes, None if unknown.

    `ends_by_close`: nothing tells the end of the body from the end of a broken connection.
    `release` takes the connection back, with the number of bytes received, and whether it can
    carry another request.
    """

    def __init__(
        self,
        url: Url,
        head: h11.Response,
        connection: h11.Connection,
        wire: Wire,
        stall_timeout: float,
        release: Callable[..., None],
    ) -> None:
        self.url = url
        self.status = head.status_code
        self._fields = head.headers
        self._connection = connection
        self._wire: Wire | None = wire
        self._release = release
        self._stall_timeout = self._patience = stall_timeout
        self._progress = self._received = 0
        self._ended = False
        options = self.header("connection").lower().replace(" ", "").split(",")
        self._reusable = head.http_version == b"1.1" and "close" not in options
        self._frame()

    def _frame(self) -> None:
        """Decide how the body ends: RFC 9112 section 6.3, for a response to GET."""
        length = "0" if self.status in _BODILESS else self.header("content-length")
        self._rest = memoryview(b"")
        if self.header("transfer-encoding") and self.status not in _BODILESS:
            self.size = None
            self.ends_by_close = False
            self._pull = self._pull_chunks
            # With both, the length is ignored and the connection is suspect.
            self._reusable &= not length
            self._scratch = memoryview(bytearray(_SCRATCH))
            return
        self._rest = memoryview(self._connection.trailing_data[0])
        self._pull = self._pull_bytes
        self.size = int(length) if length else None
        self.ends_by_close = self.size is None
        self._left = sys.maxsize if self.size is None else self.size
        self._reusable &= len(self._rest) <= self._left and self.size is not None
        self._rest = self._rest[: self._left]
        if self.size == 0:
            self._end()

    def header(self, name: str) -> str:
        """Give a field's value, several joined by commas, empty where there is none."""
        return ", ".join(self.headers(name))

    def headers(self, name: str) -> list[str]:
        """Give the values of all fields of this name (in lower case)."""
        wanted = name.encode()
        return [value.decode("latin-1") for field, value in self._fields if field == wanted]

    async def receive_into(self, buffer: memoryview) -> int:
        """Put the next bytes of the body at the start of `buffer`; give how many, 0 at the end.

        Raises `UnavailableError` for a body that is cut off, `UnreachableError` for one that
        stalls, `BadUpstreamError` for one that breaks HTTP. The clock runs only while waiting.
        """
        if self._wire is None:
            return 0
        started = trio.current_time()
        try:
            with trio.fail_after(self._patience):
                count = await self._pull(buffer, self._wire)
        except (OSError, trio.TooSlowError, h11.RemoteProtocolError) as error:
            self.close()
            raise self._broken(error) from error
        self._patience -= trio.current_time() - started
        self._progress += count
        self._received += count
        if self._ended:
            self._end()
        if self._progress >= MIN_PROGRESS:
            self._patience, self._progress = self._stall_timeout, 0
        return count

    async def _pull_bytes(self, buffer: memoryview, wire: Wire) -> int:
        if self._rest:
            count = self._take(buffer)
        else:
            count = await wire.receive_into(buffer[: self._left])
            if count == 0:
                if self.size is not None:
                    raise ConnectionError(f"the connection ended {self._left} bytes early")
                self._ended = True
                return 0
        self._left -= count
        if self._left == 0:
            self._ended = True
        return count

    async def _pull_chunks(self, buffer: memoryview, wire: Wire) -> int:
        while not self._rest:
            event = self._connection.next_event()
            if event is h11.NEED_DATA:
                count = await wire.receive_into(self._scratch)
                if count == 0:
                    raise ConnectionError("the connection ended before the last chunk")
                self._connection.receive_data(bytes(self._scratch[:count]))
            elif isinstance(event, h11.Data):
                self._rest = memoryview(event.data)
            else:
                self._reusable &= not self._connection.trailing_data[0]
                self._ended = True
                return 0
        return self._take(buffer)

    def _take(self, buffer: memoryview) -> int:
        """Copy what h11 had received along with something else."""
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    async def read(self, limit: int) -> bytes:
        """Give the whole body.

        Raises what `receive_into` raises, and `InvalidError` for more than `limit` bytes.
        """
        body = bytearray()
        buffer = memoryview(bytearray(min(limit, self.size or limit, _SCRATCH) + 1))
        try:
            with trio.fail_after(DOCUMENT_TIMEOUT):
                while len(body) <= limit and (self.size or 0) <= limit:
                    count = await self.receive_into(buffer)
                    if count == 0:
                        return bytes(body)
                    body += buffer[:count]
        except trio.TooSlowError:
            raise UnreachableError(
                f"GET {self.url}: no whole reply within {DOCUMENT_TIMEOUT:g} s"
            ) from None
        finally:
            self.close()
        raise InvalidError(
            f"GET {self.url}: the reply has more than the {limit} bytes it may have",
            code="SIZE_INVALID",
        )

    def _broken(self, error: Exception) -> Failure:
        if isinstance(error, OSError):
            return UnavailableError(f"GET {self.url}: the reply was cut off: {reason(error)}")
        return _translated(f"GET {self.url}", error, "the reply stalled", self._stall_timeout)

    def _end(self) -> None:
        """Let go of the connection: nothing more belongs to this reply."""
        wire, self._wire = self._wire, None
        if wire is not None:
            self._release(wire, self._received, reusable=self._reusable)

    def close(self) -> None:
        """Give up what is left of the body, and the connection with it. May be called again."""
        self._reusable = False
        self._end()


# By OpenSSL's name of what went wrong; a server that speaks plain http answers no TLS record.
_WAYS_OUT = {
    "CERTIFICATE_VERIFY_FAILED": " (--tls-verify=false would accept it)",
    "WRONG_VERSION_NUMBER": "; it may speak plain http, which --tls-verify=false would allow",
}


def _translated(what: str, error: Exception, doing: str, limit: float) -> Failure:
    """Give the failure that an exception of a lower layer is to whoever asked."""
    if isinstance(error, trio.TooSlowError):
        return UnreachableError(f"{what}: {doing} for {limit:g} s")
    if isinstance(error, ssl.SSLError) and not retry.is_transient(error):
        return BadUpstreamError(
            f"{what}: TLS failed: {reason(error)}{_WAYS_OUT.get(getattr(error, 'reason', ''), '')}",
            code="TLS",
        )
    if isinstance(error, h11.RemoteProtocolError):
        return BadUpstreamError(f"{what}: the server broke HTTP: {clean(str(error))}")
    if isinstance(error, OSError):
        return UnreachableError(f"{what}: {reason(error)}")
    raise error


def reason(error: BaseException) -> str:
    """Give the cause in the system's words; trio groups those of several addresses."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(map(reason, cause.exceptions)))
    if isinstance(error, ssl.SSLCertVerificationError):
        return clean(error.verify_message)
    if isinstance(error, OSError) and error.strerror:
        # The system's own words; trio's have the address in Python's notation. The numbers of
        # TLS are OpenSSL's, and those of name resolution are negative.
        is_system = not isinstance(error, ssl.SSLError) and (error.errno or 0) > 0
        return os.strerror(error.errno or 0) if is_system else clean(error.strerror)
    if isinstance(cause, OSError):
        return reason(cause)
    return clean(str(error))
