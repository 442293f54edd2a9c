"""An HTTP/1.1 client for registries: one request, one streamed response, connections kept alive.

h11 writes and parses heads; a body of known length goes straight from the socket into the caller's
buffer, because h11's own would copy it twice. Every wait has a limit, and exceptions of lower
layers are translated into a `Failure` here (httpcore's habit).

RFC 9112. Redirects, tokens and retries are the caller's decisions.
"""

from __future__ import annotations

import ssl
from functools import partial
from typing import TYPE_CHECKING, Protocol

import h11
import trio

from imgproxy.errors import (
    BadUpstreamError,
    DeniedError,
    Failure,
    UnreachableError,
    closing_on_error,
)
from imgproxy.net import connect_time, request
from imgproxy.net.connection_pool import Connection, ConnectionPool
from imgproxy.net.response import Response, at, reason, translated
from imgproxy.net.response_parser import ResponseParser
from imgproxy.net.tcp import Route
from imgproxy.specs.http import addresses, retry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.net.preconnect import Preconnection
    from imgproxy.net.request import Method
    from imgproxy.net.streams import ByteStream
    from imgproxy.specs.http.proxy import Proxy
    from imgproxy.specs.http.url import Url

# For a connection with its TLS handshake; Go's dialler alone allows as much. A shorter stall
# timeout takes precedence.
CONNECT_TIMEOUT = 30.0

# For the first byte on a connection that has been idle: a firewall may have forgotten it, and then
# drops what is sent. A server that is only slow gets the request once more, on a new connection.
KEPT_TIMEOUT = 10.0

# Addresses that are remembered because they failed. A server has some dozens at most.
MAX_FAILED = 64

# Informational responses before the final one; a slow server may send one every few seconds.
MAX_INFORMATIONAL = 100

# What an HTTP response begins with, so that a part of it can be told from another protocol.
_BEGINNING = b"HTTP/"

# Cookies and signed URLs make heads of some kilobytes; nginx allows 8 KiB a line.
MAX_HEAD = 64 * 1024

_PROXY_AUTHENTICATION_REQUIRED = 407


class Dial(Protocol):
    """How a connection to an origin is made; tests use a scripted one."""

    async def __call__(self, url: Url, route: Route) -> ByteStream:
        """Return a connection to the origin of `url`, or raise `OSError`.

        `route` says which addresses are tried last, and is told which are tried.
        """


class Client:
    """Requests to any origin, over connections that are kept alive.

    `stall_timeout` is in seconds. `user_agent` names this program to registries. `proxy_for`
    returns the proxy that forwards requests to a plain http URL, where `dial` connects to one.
    `prepare` is called once, while the first response is waited for: what it does costs no time.
    """

    def __init__(
        self,
        dial: Dial,
        diagnostics: Diagnostics,
        *,
        stall_timeout: float,
        user_agent: str,
        proxy_for: Callable[[Url], Proxy | None] = lambda _: None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self._dial = dial
        self._diagnostics = diagnostics
        self._stall_timeout = stall_timeout
        self._user_agent = user_agent
        self._proxy_for = proxy_for
        self._preparations = [prepare]
        self._pool = ConnectionPool()
        # Addresses that failed, the last one last: another try begins with others.
        self._failed: list[str] = []

    def adopt(self, preconnection: Preconnection) -> None:
        """Use a connection that was begun before there was a client."""
        self._pool.put(preconnection.url.origin, preconnection)

    async def connect(self, url: Url, limit: float = float("inf")) -> None:
        """Ensure that an open connection to the URL's origin is kept for the next request.

        It may take `limit` seconds, or less if the usual limits are shorter.
        Raises `UnreachableError` or, where TLS is what fails, `BadUpstreamError`.
        """
        try:
            connection = await self._pool.take(url.origin)
            connection = connection or await self._connect(url, limit)
        except Failure as error:
            self._diagnostics.debug(error.message)
            raise
        self._pool.put(url.origin, connection)

    async def get(
        self,
        url: Url,
        headers: Mapping[str, str],
        *,
        method: Method = request.GET,
        note: str = "",
        internal: bool = True,
        stalls: int = 1,
    ) -> Response:
        """Send a request and return the response as soon as its head is there.

        It is to be closed in any case. `note` is what `--debug` adds to its line. `internal` false
        sends nothing to an internal address. The head may take `stalls` times the stall timeout.
        Raises `UnreachableError`, `BadUpstreamError`, or `DeniedError` where a proxy requires
        credentials.
        """
        noted = note, trio.current_time()
        exchange = partial(self._exchange, method, url, headers, noted, stalls)
        try:
            connection = await self._pool.take(url.origin)
            if connection is not None:
                _check(url, connection, internal=internal)
                # The server may have closed it just now, or be gone. It has answered nothing then,
                # and another connection gets the request.
                try:
                    return await exchange(connection)
                except UnreachableError as error:
                    if not isinstance(error.__cause__, _Unanswered):
                        raise
            connection = await self._connect(url)
            _check(url, connection, internal=internal)
            return await exchange(connection)
        except Failure as error:
            self._diagnostics.debug(error.message + note)
            raise

    async def _exchange(
        self,
        method: Method,
        url: Url,
        headers: Mapping[str, str],
        noted: tuple[str, float],
        stalls: int,
        connection: Connection,
    ) -> Response:
        stream = connection.stream
        http = ResponseParser(MAX_HEAD, method.name)
        proxy = self._proxy_for(url) if url.scheme == "http" else None
        self._diagnostics.hide(request.secrets(url, headers, method.form))
        with closing_on_error(connection):
            message = request.compose(
                http, url, headers, self._user_agent, method=method, proxy=proxy
            )
            try:
                with trio.fail_after(stalls * self._stall_timeout):
                    await _send(connection, message)
                    while self._preparations:
                        self._preparations.pop()()
                    patience = KEPT_TIMEOUT if connection.is_kept else float("inf")
                    head = await _receive_head(http, stream, patience)
            except Exception as error:
                if not connection.is_kept:  # otherwise it worked before, and may only have ended
                    self._avoid([stream.peer])
                what = f"{method.name} {url}{at(url.host, [stream.peer])}"
                limit = stalls * self._stall_timeout
                option = f"{stalls} times --stall-timeout" if stalls > 1 else "--stall-timeout"
                raise translated(what, error, "no answer", limit, option) from error
            if head.status_code == _PROXY_AUTHENTICATION_REQUIRED and proxy is not None:
                raise DeniedError(
                    f"{method.name} {url}: the proxy {proxy} answered 407", code="PROXY"
                )
        line = f"{method.name} {url}: {head.status_code}", *noted
        release = partial(self._release, url, line)
        return Response(url, head, http, stream, self._stall_timeout, release)

    async def _connect(self, url: Url, limit: float = float("inf")) -> Connection:
        route = Route(self._failed)
        limit = min(limit, CONNECT_TIMEOUT, self._stall_timeout)
        try:
            with connect_time.connection() as most:
                limit = min(limit, most)
                with trio.fail_after(limit):
                    return Connection(await self._dial(url, route))
        except (OSError, trio.TooSlowError) as error:
            self._avoid(route.addresses)
            # A name that does not exist will not exist a second later.
            retryable = retry.is_transient(error) if isinstance(error, OSError) else None
            raise translated(
                f"connecting to {url.scheme}://{url.endpoint}{at(url.host, route.addresses)}",
                error,
                "no answer",
                limit,
                retryable=retryable,
            ) from error

    def _avoid(self, failed: Sequence[str]) -> None:
        """Try these addresses after all others from now on."""
        others = [each for each in self._failed if each not in failed]
        self._failed = [*others, *filter(None, failed)][-MAX_FAILED:]

    def _release(
        self,
        url: Url,
        line: tuple[str, str, float],
        stream: ByteStream,
        received: int,
        *,
        reusable: bool,
        failed: bool,
    ) -> None:
        """Write the debug line of a response that has ended; keep its connection if reusable."""
        what, note, started = line
        elapsed = (trio.current_time() - started) * 1000
        self._diagnostics.debug(f"{what}, {received} bytes, {elapsed:.0f} ms{note}")
        if failed:
            self._avoid([stream.peer])
        if reusable:
            self._pool.put(url.origin, Connection(stream, is_kept=True))
        else:
            stream.close()

    def close(self) -> None:
        """Close the connections that no request uses."""
        self._pool.close()


class _Unanswered(ConnectionError):
    """A connection on which the first byte of a response to this request will not arrive."""


async def _send(connection: Connection, message: bytes) -> None:
    """Send a request, unless the very same one has been sent on the connection beforehand."""
    if connection.sent == message:
        return
    if connection.sent:
        raise _Unanswered("another request has been sent on the connection")
    try:
        await connection.stream.send(message)
    except ssl.SSLError:
        raise
    except OSError as error:
        raise _Unanswered(reason(error)) from error


async def _receive_head(http: h11.Connection, stream: ByteStream, patience: float) -> h11.Response:
    """Return the head of a response whose first byte is waited for `patience` seconds."""
    # One byte more than h11 may keep, however the head is split on its way.
    scratch = memoryview(bytearray(MAX_HEAD + 1))
    left = MAX_INFORMATIONAL
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            try:
                kept = len(http.trailing_data[0])
                with trio.fail_after(patience):
                    count = await stream.receive_into(scratch[: MAX_HEAD + 1 - kept])
            except trio.TooSlowError as error:
                raise _Unanswered(f"no answer for {patience:g} s") from error
            except OSError as error:
                if isinstance(error, ssl.SSLError) or http.trailing_data[0]:
                    raise
                raise _Unanswered(reason(error)) from error
            if count == 0:
                if not http.trailing_data[0]:
                    raise _Unanswered("the connection was closed before an answer")
                raise ConnectionError("the connection ended within the head of the reply")
            http.receive_data(bytes(scratch[:count]))
            _check_beginning(http.trailing_data[0])
            patience = float("inf")
        elif isinstance(event, h11.Response):
            return event
        else:
            left -= 1
            if left < 0:
                raise h11.RemoteProtocolError(f"more than {MAX_INFORMATIONAL} replies with 1xx")


def _check_beginning(received: bytes) -> None:
    """Raise `h11.RemoteProtocolError` for bytes that no HTTP response begins with.

    Other servers wait for the client's word after their greeting, which h11 would wait for the end
    of, or close the connection, which is temporary within a response.
    """
    if not _BEGINNING.startswith(received[: len(_BEGINNING)]):
        raise h11.RemoteProtocolError(f"a reply cannot begin with {received[:20]!r}")


def _check(url: Url, connection: Connection, *, internal: bool) -> None:
    """Close a connection and raise `BadUpstreamError` if it may not lead to an `internal` address.

    Behind a proxy, only a host that is an address itself is known to be one.
    """
    address = connection.stream.peer or url.host
    if not internal and addresses.may_be_internal(address):
        connection.close()
        raise BadUpstreamError(
            f"GET {url}: leads to the internal address {address}, which a server with a public"
            " address named: refused (--registry-token needs no token server)"
        )
