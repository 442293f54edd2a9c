"""HTTP/1.1 towards registries: one request, one streamed reply, connections kept alive.

h11 reads and writes heads; a body of known length goes straight from the socket into the caller's
buffer, because h11's own would copy it twice. Whatever is awaited has a limit, and whatever goes
wrong leaves here as a `Failure` (httpcore's habit: exceptions are translated at the door).

RFC 9112. Redirects, tokens and retries are the caller's decisions.
"""

from __future__ import annotations

import ssl
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Protocol

import h11
import trio

from imgproxy.errors import DeniedError, Failure, UnreachableError
from imgproxy.net import request
from imgproxy.net.response import Response, reason, translated
from imgproxy.specs.http import retry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.net.preconnect import Preconnection
    from imgproxy.net.streams import ByteStream
    from imgproxy.specs.http.proxy import Proxy
    from imgproxy.specs.http.url import Url

# For a connection with its TLS handshake; Go's dialler alone allows as much. A shorter stall
# timeout goes before.
CONNECT_TIMEOUT = 30.0

# Cookies and signed URLs make heads of some kilobytes; nginx allows 8 KiB a line.
MAX_HEAD = 64 * 1024

# Conversations are 64 at most and take turns; more idle connections than this to one origin would
# only be forgotten.
MAX_IDLE = 8

_PROXY_AUTHENTICATION_REQUIRED = 407


class Dial(Protocol):
    """How a connection to an origin is made; tests put a scripted one in its place."""

    async def __call__(self, url: Url) -> ByteStream:
        """Give a connection to the origin of `url`, or raise `OSError`."""


class Client:
    """Requests to any origin, over connections that are kept alive.

    `stall_timeout` is in seconds. `user_agent` names this program to registries. `proxy_for` gives
    the proxy that forwards requests to a plain http URL, where `dial` leads to one.
    """

    def __init__(
        self,
        dial: Dial,
        diagnostics: Diagnostics,
        *,
        stall_timeout: float,
        user_agent: str,
        proxy_for: Callable[[Url], Proxy | None] = lambda _: None,
    ) -> None:
        self._dial = dial
        self._diagnostics = diagnostics
        self._stall_timeout = stall_timeout
        self._user_agent = user_agent
        self._proxy_for = proxy_for
        self._early: Preconnection | None = None
        self._asked: dict[
            ByteStream, bytes
        ] = {}  # requests that are on their way, and not given out
        self._connect_timeout = min(CONNECT_TIMEOUT, stall_timeout)
        self._idle: defaultdict[tuple[str, str, int], list[ByteStream]] = defaultdict(list)

    def adopt(self, early: Preconnection) -> None:
        """Use a connection that was begun before there was a client."""
        self._early = early

    async def connect(self, url: Url) -> None:
        """Make sure that a connection to the URL's origin is at hand.

        Raises `UnreachableError` or, where TLS is what fails, `BadUpstreamError`.
        """
        try:
            wire = await self._spare(url) or await self._connect(url)
        except Failure as error:
            self._diagnostics.debug(error.message)
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
        wire = await self._spare(url)
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
            self._diagnostics.debug(error.message + note)
            raise

    async def _exchange(
        self,
        url: Url,
        headers: Mapping[str, str],
        form: bytes | None,
        note: str,
        wire: ByteStream,
        started: float,
    ) -> Response:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        method = "GET" if form is None else "POST"
        proxy = self._proxy_for(url) if url.scheme == "http" else None
        words = request.compose(connection, url, headers, self._user_agent, form=form, proxy=proxy)
        try:
            with trio.fail_after(self._stall_timeout):
                await self._ask(wire, words)
                head = await self._head(connection, wire)
        except BaseException as error:
            wire.close()
            if isinstance(error, Exception):
                raise translated(
                    f"{method} {url}", error, "no answer", self._stall_timeout
                ) from error
            raise
        if head.status_code == _PROXY_AUTHENTICATION_REQUIRED and proxy is not None:
            wire.close()
            raise DeniedError(f"{method} {url}: the proxy {proxy} answered 407", code="PROXY")
        what = f"{method} {url}: {head.status_code}", started, note
        release = partial(self._take_back, url, what)
        return Response(url, head, connection, wire, self._stall_timeout, release)

    async def _ask(self, wire: ByteStream, words: bytes) -> None:
        """Send a request, unless the connection was begun with just this one."""
        asked = self._asked.pop(wire, None)
        if asked is None:
            await _send(wire, words)
        elif asked != words:
            raise _ClosedEarly("the connection was begun with another request")

    async def _head(self, connection: h11.Connection, wire: ByteStream) -> h11.Response:
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

    async def _connect(self, url: Url) -> ByteStream:
        try:
            with trio.fail_after(self._connect_timeout):
                return await self._dial(url)
        except (OSError, trio.TooSlowError) as error:
            where = f"connecting to {url.scheme}://{url.endpoint}"
            failure = translated(where, error, "no answer", self._connect_timeout)
            if isinstance(error, OSError):  # a name that nobody has will not be had a second later
                failure.is_transient &= retry.is_transient(error)
            raise failure from error

    async def _spare(self, url: Url) -> ByteStream | None:
        """Give a connection that was made before, None where there is none."""
        early = self._early
        if early is not None:
            wire = await early.wire()
            self._early = None  # not before: who is cancelled leaves it to the next
            if wire is not None:
                self._give_back(early.url, wire)
                if early.asked:
                    self._asked[wire] = early.asked
        return self._take_idle(url)

    def _take_idle(self, url: Url) -> ByteStream | None:
        """Give a kept connection on which nothing waits: surplus bytes answer no question."""
        kept = self._idle[url.origin]
        while kept:
            wire = kept.pop()
            if wire in self._asked or wire.is_quiet():
                return wire
            wire.close()
        return None

    def _take_back(
        self,
        url: Url,
        what: tuple[str, float, str],
        wire: ByteStream,
        received: int,
        *,
        reusable: bool,
    ) -> None:
        """Tell of a reply that has ended, and keep its connection if it can be used again."""
        line, started, note = what
        elapsed = (trio.current_time() - started) * 1000
        self._diagnostics.debug(f"{line}, {received} bytes, {elapsed:.0f} ms{note}")
        if reusable:
            self._give_back(url, wire)
        else:
            wire.close()

    def _give_back(self, url: Url, wire: ByteStream) -> None:
        kept = self._idle[url.origin]
        if len(kept) < MAX_IDLE:
            kept.append(wire)
        else:
            wire.close()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        if self._early is not None:
            self._early.close()
        for kept in self._idle.values():
            while kept:
                kept.pop().close()


class _ClosedEarly(ConnectionError):
    """A connection ended before the first byte of an answer."""


async def _send(wire: ByteStream, head: bytes) -> None:
    try:
        await wire.send(head)
    except ssl.SSLError:
        raise
    except OSError as error:
        raise _ClosedEarly(reason(error)) from error
