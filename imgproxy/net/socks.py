"""Connections through a proxy that speaks SOCKS 5: RFC 1928, and RFC 1929 for its users."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from imgproxy.errors import BadUpstreamError, DeniedError, Failure, UnavailableError

if TYPE_CHECKING:
    from imgproxy.net.streams import ByteStream
    from imgproxy.specs.http.proxy import Proxy
    from imgproxy.specs.http.url import Url

_VERSION, _CONNECT = 5, 1
_ANYBODY, _PASSWORD, _NOBODY = 0, 2, 0xFF
_IPV4, _NAME, _IPV6 = 1, 3, 4
_MAX_NAME = 255

# Section 6, by the code of the reply.
_REFUSALS: dict[int, tuple[type[Failure], str]] = {
    1: (UnavailableError, "a failure of its own"),
    2: (BadUpstreamError, "its rules do not allow it"),
    3: (UnavailableError, "the network is unreachable"),
    4: (UnavailableError, "the host is unreachable"),
    5: (UnavailableError, "the connection was refused"),
    6: (UnavailableError, "the packets are lost on the way"),
    7: (BadUpstreamError, "it does not connect for others"),
    8: (BadUpstreamError, "it does not know this kind of address"),
}


async def request(stream: ByteStream, url: Url, proxy: Proxy, host: str) -> None:
    """Request a connection to `host`, an address or a name, and to the port of `url`.

    Nothing that follows the proxy's answer is read: it is the server's. Raises `Failure`.
    """
    what = f"connecting to {url.endpoint} at {host}: the proxy {proxy}"
    is_known = bool(proxy.authorization)
    methods = [_ANYBODY, _PASSWORD] if is_known else [_ANYBODY]
    await stream.send(bytes([_VERSION, len(methods), *methods]))
    version, chosen = await _receive(stream, 2, proxy)
    if version == _VERSION and chosen == _NOBODY:
        wanted = "another login than by a user and a password" if is_known else "a login"
        raise DeniedError(f"{what} wants {wanted}", code="PROXY")
    if version != _VERSION or chosen not in methods:
        raise _broken(what)
    if chosen == _PASSWORD:
        words = [each.encode() for each in (proxy.username, proxy.password)]
        await stream.send(b"\x01" + b"".join(bytes([len(each)]) + each for each in words))
        _, status = await _receive(stream, 2, proxy)
        if status:
            raise DeniedError(f"{what} refused the user or the password", code="PROXY")
    port = url.port.to_bytes(2, "big")
    await stream.send(bytes([_VERSION, _CONNECT, 0]) + _address(what, host) + port)
    version, code, _, kind = await _receive(stream, 4, proxy)
    if version != _VERSION:
        raise _broken(what)
    if code:
        failure, reason = _REFUSALS.get(code, (BadUpstreamError, "an unknown reason"))
        raise failure(f"{what} answered {code}: {reason}", code="PROXY")
    sizes = {_IPV4: 4, _IPV6: 16}
    if kind not in (*sizes, _NAME):
        raise _broken(what)
    size = sizes.get(kind) or (await _receive(stream, 1, proxy))[0]
    await _receive(stream, size + len(port), proxy)


def _address(what: str, host: str) -> bytes:
    """Return the type and the bytes of an address or a name: section 5."""
    for kind, family in ((_IPV4, socket.AF_INET), (_IPV6, socket.AF_INET6)):
        try:
            return bytes([kind]) + socket.inet_pton(family, host)
        except OSError:
            continue
    name = host.encode()
    if len(name) > _MAX_NAME:
        raise BadUpstreamError(f"{what} cannot be told a name of {len(name)} bytes", code="PROXY")
    return bytes([_NAME, len(name)]) + name


async def _receive(stream: ByteStream, count: int, proxy: Proxy) -> bytes:
    received = memoryview(bytearray(count))
    rest = received
    while rest:
        size = await stream.receive_into(rest)
        if size == 0:
            raise ConnectionError(f"the proxy {proxy} closed the connection")
        rest = rest[size:]
    return bytes(received)


def _broken(what: str) -> Failure:
    return BadUpstreamError(f"{what} does not answer as SOCKS 5 does", code="PROXY")
