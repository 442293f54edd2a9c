"""Which requests a listener answers: none that a page in a browser could have sent.

A browser sends requests to this host for the pages of any site. Those of other sites have an
`Origin` or a `Sec-Fetch-Site` that says so. A page whose own name is made to resolve to this host
(DNS rebinding) sends neither: to the browser it is the same site, and only `Host` has its name. A
TCP listener therefore answers to names that only this host's owner can give it. A Unix socket has
no such rule for `Host`, because no browser connects to one, and neither has a descriptor that was
inherited as a connection.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING

from imgproxy.errors import DeniedError, clean

if TYPE_CHECKING:
    from collections.abc import Iterable

    from imgproxy.server.request_reader import ReadRequest

_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?")
_AUTHORITY = re.compile(r"([^\[\]:@]*|\[[^\[\]@]*\])(?::[0-9]*)?")
_ABSOLUTE_FORM = re.compile(rb"[a-z][a-z0-9+.-]*://([^/?#]*)", re.IGNORECASE)

# The page itself, and what a person typed; `same-site` is another host of the page's domain.
_OWN_SITES = frozenset({b"none", b"same-origin"})


class Access:
    """The rules of one listener. `hosts` are what `--host` names, None where any Host will do."""

    def __init__(self, hosts: Iterable[str] | None) -> None:
        self._hosts = None if hosts is None else frozenset(hosts)

    def check(self, request: ReadRequest) -> None:
        """Raise `DeniedError` for a request that a page in a browser could have sent."""
        for name, value in request.headers:
            if name == b"origin":
                raise DeniedError(
                    "a request with an Origin header comes from a browser, and is refused"
                )
            if name == b"sec-fetch-site" and value not in _OWN_SITES:
                raise DeniedError(
                    f"a request with Sec-Fetch-Site: {clean(value.decode('latin-1'))} comes from"
                    " a page of another site in a browser, and is refused"
                )
        if self._hosts is not None:
            for authority in _authorities(request):
                _check_authority(authority, self._hosts)


def parse_host(text: str) -> str:
    """Return a host, a name or an address without a port, in the one form that is compared.

    Raises `ValueError` for anything else.
    """
    host = text.lower()
    try:
        address = ip_address(host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host)
    except ValueError:
        if _NAME.fullmatch(host) is None:
            raise ValueError("expected the name or the address of a host, without a port") from None
        return host.removesuffix(".")
    return str(getattr(address, "ipv4_mapped", None) or address)


def is_loopback(host: str) -> bool:
    """Return whether a host in the form of `parse_host` is this one: RFC 6761 section 6.3."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _authorities(request: ReadRequest) -> list[str]:
    """Return all hosts that a request names: in `Host`, and in a target in absolute form."""
    named = [value for name, value in request.headers if name == b"host"]
    if absolute := _ABSOLUTE_FORM.match(request.target):
        named.append(absolute[1])
    return [value.decode("latin-1") for value in named]


def _check_authority(authority: str, hosts: frozenset[str]) -> None:
    match = _AUTHORITY.fullmatch(authority)
    try:
        host = parse_host(match[1]) if match else ""
    except ValueError:
        host = ""
    if not (is_loopback(host) or host in hosts):
        raise DeniedError(
            f'the request is for the host "{clean(authority)}", and a TCP listener answers to'
            " localhost, loopback addresses and the names given with --host alone, because a page"
            " in a browser can give this host any other name (DNS rebinding)"
        )
