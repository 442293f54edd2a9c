"""Connections to registries: TCP, proxies, TLS.

One `Dialer` serves one endpoint of the configuration and the hosts that it redirects to. Hosts that
only a response names are foreign: no metadata service, where clouds serve the credentials of their
machines, is dialled for them. The addresses of a name are judged before one of them is connected
to. A proxy looks up names by itself, so that of those it is asked for only addresses are judged.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  (for names; later an upgrade may have replaced the file)
import ssl
import time
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import h11
import trio

from imgproxy.errors import (
    BadUpstreamError,
    ConfigurationError,
    DeniedError,
    Failure,
    UnavailableError,
    UnreachableError,
    clean,
    closing_on_error,
    shortage,
)
from imgproxy.host import blocking_calls, mounts
from imgproxy.net import tcp, tls
from imgproxy.net.response import reason
from imgproxy.net.response_parser import ResponseParser
from imgproxy.net.streams import SocketStream, start_tls
from imgproxy.specs.http import addresses, retry

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from imgproxy.config.certs import Certificates
    from imgproxy.net.streams import ByteStream
    from imgproxy.specs.http.proxy import Proxy
    from imgproxy.specs.http.url import Url

    Connect = Callable[[], Awaitable["Carrier"]]

# In seconds, for a second look at a certificate that was refused.
LOOK_TIMEOUT = 5.0

# In bytes. A proxy answers CONNECT with a head; some send a page with a refusal.
_MAX_PROXY_HEAD = 16 * 1024


class Carrier(NamedTuple):
    """A connection that leads to a server, and the server's address where that is known."""

    sock: socket.socket
    peer: str = ""


class Dialer:
    """Connections for one endpoint.

    `home` is its host, which the configuration names and which may have any address; None if only
    responses name hosts. `certificates` returns those for `host[:port]`; the endpoint's own are
    looked up as `registry`, its name in references. `proxy_for` returns the proxy for a URL, if
    there is one. `verify` false accepts any certificate.
    """

    def __init__(
        self,
        home: Url | None,
        registry: str,
        certificates: Callable[[str], Certificates],
        proxy_for: Callable[[Url], Proxy | None],
        *,
        verify: bool,
    ) -> None:
        self._home = home and home.host
        self._registry = registry
        self._certificates = certificates
        self.proxy_for = proxy_for
        self._verify = verify
        self._contexts: dict[str, ssl.SSLContext] = {}

    async def __call__(self, url: Url) -> ByteStream:
        """See `client.Dial`."""
        proxy = self.proxy_for(url)
        if url.host != self._home:
            _refuse_metadata_service(url, url.host)
        if proxy is None:
            return await self._secured(partial(self._connect, url), url)
        if url.scheme == "http":
            # Connect to the proxy itself, which forwards requests for plain http.
            return await self._secured(partial(_connect_to_proxy, url, proxy), proxy.url)
        return await self._secured(partial(_tunnel, url, proxy), url)

    async def _connect(self, url: Url) -> Carrier:
        targets = await tcp.look_up(url.host, url.port)
        if url.host != self._home:
            for _, address in targets:
                _refuse_metadata_service(url, address[0])
        sock = await tcp.connect(targets)
        with closing_on_error(sock):
            return Carrier(sock, sock.getpeername()[0])

    async def _secured(self, connect: Connect, url: Url) -> ByteStream:
        """Return a stream over a new connection, with TLS for an https URL."""
        sock, peer = await connect()
        stream = SocketStream(sock)
        if url.scheme == "https":
            name = self._registry if url.host == self._home else url.authority
            with closing_on_error(sock):
                context = self._contexts.get(name) or await self._new_context(name)
            try:
                stream = await start_tls(sock, context, url.host)
            except ssl.SSLCertVerificationError as error:
                if error.verify_code in tls.EXPLICABLE:
                    look = partial(self._look, name, connect, url.host)
                    error.verify_message += await _explanation(error.verify_code, look)
                raise
        stream.peer = peer
        return stream

    async def _look(self, name: str, connect: Connect, host: str) -> dict[str, Any]:
        """Return the fields of a server's certificate of a wrong time or name, else verified.

        Nothing is sent but the handshake, and no certificate of a client is shown.
        """
        context = await self._read_certificates(name, tls.make_lenient_context)
        sock, _ = await connect()
        stream = await start_tls(sock, context, host)
        with closing(stream):
            return stream.certificate

    async def _new_context(self, name: str) -> ssl.SSLContext:
        make = partial(tls.make_context, verify=self._verify)
        return self._contexts.setdefault(name, await self._read_certificates(name, make))

    async def _read_certificates(
        self, name: str, make: Callable[[Certificates], ssl.SSLContext]
    ) -> ssl.SSLContext:
        certificates = await blocking_calls.settle(self._certificates, name)
        device = mounts.may_hang(*tls.files(certificates))
        return await blocking_calls.on(device, partial(make, certificates))


async def _explanation(code: int, look: Callable[[], Awaitable[dict[str, Any]]]) -> str:
    """Return why a certificate was refused, nothing if a second look at it does not tell.

    The failure is known already: nothing that goes wrong here may come in its place.
    """
    left = trio.current_effective_deadline() - trio.current_time()
    with trio.move_on_after(min(LOOK_TIMEOUT, left / 2)), suppress(OSError, Failure):
        return tls.explanation(code, await look(), time.time())
    return ""


async def _connect_to_proxy(url: Url, proxy: Proxy) -> Carrier:
    try:
        return Carrier(await tcp.connect(await tcp.look_up(proxy.url.host, proxy.url.port)))
    except OSError as error:
        what = f"connecting to {url.scheme}://{url.endpoint} through the proxy {proxy}"
        raise shortage(what, error) or UnreachableError(
            f"{what}: {reason(error)}",
            code="PROXY",
            is_transient=retry.is_transient(error),
        ) from error


async def _tunnel(url: Url, proxy: Proxy) -> Carrier:
    """Return a connection that a proxy has made to the URL's origin: RFC 9110 section 9.3.6."""
    if proxy.url.scheme == "https":
        raise ConfigurationError(
            f"the proxy {proxy} is reached over TLS, and TLS inside of it is not supported;"
            " use a proxy with an http:// address for https registries",
            variable=proxy.source,
        )
    carrier = await _connect_to_proxy(url, proxy)
    with closing_on_error(carrier.sock):
        await _request_tunnel(SocketStream(carrier.sock), url, proxy)
    return carrier


async def _request_tunnel(stream: ByteStream, url: Url, proxy: Proxy) -> None:
    target, fields = proxy.connect(url)
    connection = ResponseParser(_MAX_PROXY_HEAD)
    request = h11.Request(method="CONNECT", target=target, headers=fields)
    await stream.send(connection.send(request) or b"")
    await stream.send(connection.send(h11.EndOfMessage()) or b"")
    byte = memoryview(bytearray(1))
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            raise BadUpstreamError(
                f"CONNECT {url.endpoint}: the proxy {proxy} broke HTTP: {reason(error)}",
                code="PROXY",
            ) from None
        if event is h11.NEED_DATA:
            # Read single bytes: what follows the head belongs to TLS and must stay in the socket.
            if await stream.receive_into(byte) == 0:
                raise ConnectionError(f"the proxy {proxy} closed the connection")
            connection.receive_data(bytes(byte))
        elif isinstance(event, h11.Response):
            if event.status_code // 100 != 2:
                raise _refusal(
                    event.status_code,
                    f"CONNECT {url.endpoint}: the proxy {proxy} answered {event.status_code}"
                    f" {clean(event.reason.decode('latin-1'))}",
                )
            return


def _refusal(status: int, message: str) -> Failure:
    if status == 407:
        return DeniedError(message, code="PROXY")
    is_transient = retry.is_transient_status(status)
    return (UnavailableError if is_transient else BadUpstreamError)(message, code="PROXY")


def _refuse_metadata_service(url: Url, host: str) -> None:
    service = addresses.metadata_service(host)
    if service:
        raise BadUpstreamError(
            f"GET {url}: leads to {service}, where clouds serve the credentials of their machines:"
            " refused"
        )
