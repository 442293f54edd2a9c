"""Connections to registries: TCP, proxies, TLS.

One `Dialer` serves one endpoint of the configuration and the hosts that it redirects to. Hosts that
only a response names are foreign: no metadata service, where clouds serve the credentials of their
machines, is dialled for them. The addresses of a name are judged before one of them is connected
to. Most proxies look up names by themselves, so that of those only addresses are judged.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  (for names; later an upgrade may have replaced the file)
import socket
import ssl
import time
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import h11
import trio

from imgproxy.errors import (
    BadUpstreamError,
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
from imgproxy.net.response import reason, translated
from imgproxy.net.response_parser import ResponseParser
from imgproxy.net.streams import SocketStream, start_tls
from imgproxy.specs.http import addresses, retry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from imgproxy.config.certs import Certificates
    from imgproxy.net.nested_tls import NestedTlsStream
    from imgproxy.net.streams import ByteStream, TlsStream
    from imgproxy.net.tcp import Target
    from imgproxy.specs.http.proxy import Proxy
    from imgproxy.specs.http.url import Url

    Connect = Callable[[], Awaitable["Carrier"]]

# In seconds, for a second look at a certificate that was refused.
LOOK_TIMEOUT = 5.0

# Of a host behind a SOCKS proxy, which is told one at a time.
_MAX_ADDRESSES = 4

# In bytes. A proxy answers CONNECT with a head; some send a page with a refusal.
_MAX_PROXY_HEAD = 16 * 1024


class Carrier(NamedTuple):
    """A connection that leads to a server, and the server's address where that is known."""

    way: socket.socket | ByteStream
    peer: str = ""


def _stream(carrier: Carrier) -> ByteStream:
    way = carrier.way
    return SocketStream(way) if isinstance(way, socket.socket) else way


async def _start_tls(
    carrier: Carrier, context: ssl.SSLContext, host: str
) -> TlsStream | NestedTlsStream:
    if isinstance(carrier.way, socket.socket):
        return await start_tls(carrier.way, context, host)
    from imgproxy.net import nested_tls

    return await nested_tls.start_tls(carrier.way, context, host)


class Dialer:
    """Connections for one endpoint.

    `home` is its host, which the configuration names and which may have any address; None if only
    responses name hosts. `certificates` returns those for `host[:port]`; the endpoint's own are
    looked up as `registry`, its name in references. `proxy_for` returns the proxy for a URL, if
    there is one. `verify` false accepts any certificate. `contexts` are those for TLS that other
    dialers use too.
    """

    def __init__(
        self,
        home: Url | None,
        registry: str,
        certificates: Callable[[str], Certificates],
        proxy_for: Callable[[Url], Proxy | None],
        *,
        verify: bool,
        contexts: tls.Contexts | None = None,
    ) -> None:
        self._home = home and home.host
        self._registry = registry
        self._certificates = certificates
        self.proxy_for = proxy_for
        self._verify = verify
        self._all_contexts = {} if contexts is None else contexts
        self._contexts: dict[str, ssl.SSLContext] = {}

    async def __call__(self, url: Url, route: tcp.Route) -> ByteStream:
        """See `client.Dial`."""
        proxy = self.proxy_for(url)
        if url.host != self._home:
            _refuse_metadata_service(url, url.host)
        if proxy is None:
            return await self._secured(partial(self._connect, url, route), url)
        if self.forwarder(url):
            return await self._reach(url, proxy)
        tunnel = self._tunnel_by_socks if proxy.is_socks else self._tunnel
        return await self._secured(partial(tunnel, url, proxy), url)

    def forwarder(self, url: Url) -> Proxy | None:
        """Return the proxy that forwards the requests for a URL, if there is one."""
        proxy = self.proxy_for(url) if url.scheme == "http" else None
        return None if proxy is None or proxy.is_socks else proxy

    async def _connect(self, url: Url, route: tcp.Route) -> Carrier:
        sock, peer = await tcp.connect(route.ordered(await self._look_up(url)))
        route.addresses = [peer]
        return Carrier(sock, peer)

    async def _look_up(self, url: Url) -> list[Target]:
        """Return the addresses of a URL's host, all of which may be connected to."""
        targets = await tcp.look_up(url.host, url.port)
        if url.host != self._home:
            for _, address in targets:
                _refuse_metadata_service(url, address[0])
        return targets

    async def _reach(self, url: Url, proxy: Proxy) -> ByteStream:
        """Return a stream to an HTTP proxy."""
        with _tls_of_proxy(url, proxy):
            return await self._secured(partial(_connect_to_proxy, url, proxy), proxy.url)

    async def _tunnel(self, url: Url, proxy: Proxy) -> Carrier:
        """Return a connection that a proxy has made to the URL's origin: RFC 9110 section 9.3.6."""
        if proxy.url.scheme == "https":
            stream = await self._reach(url, proxy)
            with closing_on_error(stream), _tls_of_proxy(url, proxy):
                await _request_tunnel(stream, url, proxy)
            return Carrier(stream)
        carrier = await _connect_to_proxy(url, proxy)
        with closing_on_error(carrier.way):
            await _request_tunnel(_stream(carrier), url, proxy)
        return carrier

    async def _tunnel_by_socks(self, url: Url, proxy: Proxy) -> Carrier:
        """Return a connection that a SOCKS proxy has made to one of the addresses of a URL's host.

        Where the proxy resolves names, it is told the name, and the address is not known.
        """
        from imgproxy.net import socks

        targets = [] if proxy.resolves_names else await self._look_up(url)
        hosts = [address[0] for _, address in targets[:_MAX_ADDRESSES]] or [url.host]
        while True:
            host = hosts.pop(0)
            carrier = await _connect_to_proxy(url, proxy)
            try:
                with closing_on_error(carrier.way):
                    await socks.request(_stream(carrier), url, proxy, host)
            except (UnavailableError, BadUpstreamError):
                if not hosts:
                    raise
            else:
                return carrier._replace(peer="" if proxy.resolves_names else host)

    async def _secured(self, connect: Connect, url: Url) -> ByteStream:
        """Return a stream over a new connection, with TLS for an https URL."""
        carrier = await connect()
        stream = _stream(carrier)
        if url.scheme == "https":
            name = self._registry if url.host == self._home else url.authority
            with closing_on_error(stream):
                context = self._contexts.get(name) or await self._new_context(name)
            try:
                stream = await _start_tls(carrier, context, url.host)
            except ssl.SSLCertVerificationError as error:
                if error.verify_code in tls.EXPLICABLE:
                    look = partial(self._look, name, connect, url.host)
                    error.verify_message += await _explanation(error.verify_code, look)
                raise
        stream.peer = carrier.peer
        return stream

    async def _look(self, name: str, connect: Connect, host: str) -> dict[str, Any]:
        """Return the fields of a server's certificate of a wrong time or name, else verified.

        Nothing is sent but the handshake, and no certificate of a client is shown.
        """
        context = await self._read_certificates(name, tls.make_lenient_context)
        stream = await _start_tls(await connect(), context, host)
        with closing(stream):
            return stream.certificate

    async def _new_context(self, name: str) -> ssl.SSLContext:
        make = partial(tls.context, self._all_contexts, verify=self._verify)
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
    # `ValueError` is for a time that cannot be read.
    with trio.move_on_after(min(LOOK_TIMEOUT, left / 2)), suppress(OSError, Failure, ValueError):
        return tls.explanation(code, await look(), time.time())
    return ""


@contextmanager
def _tls_of_proxy(url: Url, proxy: Proxy) -> Iterator[None]:
    """Name the proxy in a failure of TLS, which would be taken for the registry's."""
    try:
        yield
    except ssl.SSLError as error:
        what = f"connecting to {url.scheme}://{url.endpoint} through the proxy {proxy}"
        raise translated(what, error, "no answer", 0) from error


async def _connect_to_proxy(url: Url, proxy: Proxy) -> Carrier:
    try:
        sock, _ = await tcp.connect(await tcp.look_up(proxy.url.host, proxy.url.port))
    except OSError as error:
        what = f"connecting to {url.scheme}://{url.endpoint} through the proxy {proxy}"
        raise shortage(what, error) or UnreachableError(
            f"{what}: {reason(error)}",
            code="PROXY",
            retryable=retry.is_transient(error),
        ) from error
    return Carrier(sock)


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
