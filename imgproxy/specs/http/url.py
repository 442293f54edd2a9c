"""Absolute URLs: the part of RFC 3986 that registries and proxies use."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from imgproxy.errors import clean

if TYPE_CHECKING:
    from collections.abc import Container

_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_WEB = ("http", "https")
_HOST = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?|\[[0-9a-f:.]+\]")
_SHOWN = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]{0,15})://(?:[^/?#\\]*@)?([A-Za-z0-9._-]{1,255})(?=[:/]|$)"
)


class Url(NamedTuple):
    """An absolute URL: the host to dial, and the target of a request there."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: the scope of credentials and connections."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """The value of the `Host` field: with the port where it is not the scheme's default."""
        if self.port == _PORTS[self.scheme]:
            return self.endpoint.rpartition(":")[0]
        return self.endpoint

    @property
    def endpoint(self) -> str:
        """The host, always with its port: the target of a CONNECT request to a proxy."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        """Return the URL without its query, which may hold a signature or a token."""
        path, query, _ = self.target.partition("?")
        return clean(f"{self.scheme}://{self.authority}{path}") + ("?…" if query else "")


def parse(text: str, schemes: Container[str] = _WEB) -> Url:
    """Parse a URL.

    Raises `ValueError` for anything but a URL of one of these schemes, in printable ASCII and
    without userinfo.
    """
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("not a URL of printable ASCII")
    try:
        parts = urlsplit(text)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
    except ValueError:  # its message may quote a secret
        raise ValueError("its host or port is malformed") from None
    if scheme not in schemes:
        raise ValueError("neither http nor https")
    written = f"[{host}]" if "[" in parts.netloc else host
    if parts.username is not None:
        raise ValueError("it has user information (USER:PASSWORD@)")
    if _HOST.fullmatch(written) is None:
        raise ValueError("its host is malformed")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(scheme, host, _PORTS[scheme] if port is None else port, target)


def redacted(text: str) -> str:
    """Return the parts of a possible URL that are no secret: scheme and host, if it has them."""
    match = _SHOWN.match(text)
    return f"{match[1]}://{match[2]}/…" if match else "(not shown)"
