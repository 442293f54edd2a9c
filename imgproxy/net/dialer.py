"""Connections to registries: TCP, proxies, TLS.

One `Dialer` serves one endpoint of the configuration and the hosts that it redirects to. Hosts that
only a response names are foreign: no metadata service, where clouds serve the credentials of their
machines, is dialled for them. The addresses of a name are judged before one of them is connected
to. A proxy looks up names by itself, so that of those it is asked for only addresses are judged.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  (for names; later an upgrade may have replaced the file)
from functools import partial
from typing import TYPE_CHECKING

import h11

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
from imgproxy.net.streams import SocketStream, start_tls
from imgproxy.net.tls import make_context
from imgproxy.specs.http import addresses, retry

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

    from imgproxy.config.certs import Certificates
    from imgproxy.net.streams import ByteStream
    from imgproxy.specs.http.proxy import Proxy
    from imgproxy.specs.http.url import Url

# In bytes. A proxy answers CONNECT with a head; some send a page with a refusal.
_MAX_PROXY_HEAD = 16 * 1024


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
        is_foreign = url.host != self._home
        if is_foreign:
            _refuse_metadata_service(url, url.host)
        if proxy is None:
            targets = await tcp.look_up(url.host, url.port)
            if is_foreign:
                for _, address in targets:
                    _refuse_metadata_service(url, address[0])
            sock = await tcp.connect(targets)
            with closing_on_error(sock):
                peer = sock.getpeername()[0]
            stream = await self._secured(sock, url)
            stream.peer = peer
            return stream
        if url.scheme == "http":
            # Connect to the proxy itself, which forwards requests for plain http.
            return await self._secured(await _connect_to_proxy(url, proxy), proxy.url)
        return await self._secured(await _tunnel(url, proxy), url)

    async def _secured(self, sock: socket.socket, url: Url) -> ByteStream:
        """Return a stream over a socket, with TLS for an https URL."""
        if url.scheme == "http":
            return SocketStream(sock)
        name = self._registry if url.host == self._home else url.authority
        with closing_on_error(sock):
            context = self._contexts.get(name) or await self._new_context(name)
        return await start_tls(sock, context, url.host)

    async def _new_context(self, name: str) -> ssl.SSLContext:
        certificates = await blocking_calls.settle(self._certificates, name)
        make = partial(make_context, certificates, verify=self._verify)
        device = mounts.may_hang(*tls.files(certificates))
        return self._contexts.setdefault(name, await blocking_calls.on(device, make))


async def _connect_to_proxy(url: Url, proxy: Proxy) -> socket.socket:
    try:
        return await tcp.connect(await tcp.look_up(proxy.url.host, proxy.url.port))
    except OSError as error:
        what = f"connecting to {url.scheme}://{url.endpoint} through the proxy {proxy}"
        raise shortage(what, error) or UnreachableError(
            f"{what}: {reason(error)}",
            code="PROXY",
            is_transient=retry.is_transient(error),
        ) from error


async def _tunnel(url: Url, proxy: Proxy) -> socket.socket:
    """Return a socket that a proxy has connected to the URL's origin: RFC 9110 section 9.3.6."""
    if proxy.url.scheme == "https":
        raise ConfigurationError(
            f"the proxy {proxy} is reached over TLS, and TLS inside of it is not supported;"
            " use a proxy with an http:// address for https registries",
            variable=proxy.source,
        )
    sock = await _connect_to_proxy(url, proxy)
    with closing_on_error(sock):
        await _request_tunnel(SocketStream(sock), url, proxy)
    return sock


async def _request_tunnel(stream: ByteStream, url: Url, proxy: Proxy) -> None:
    target, fields = proxy.connect(url)
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_PROXY_HEAD)
    request = h11.Request(method="CONNECT", target=target, headers=fields)
    await stream.send(connection.send(request) or b"")
    await stream.send(connection.send(h11.EndOfMessage()) or b"")
    byte = memoryview(bytearray(1))
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            raise BadUpstreamError(
                f"CONNECT {url.endpoint}: the proxy {proxy} broke HTTP: {clean(str(error))}",
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
