"""Absolute http and https URLs: RFC 3986, as far as registries and proxies use it."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from imgproxy.errors import clean

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")


class Url(NamedTuple):
    """An absolute http or https URL: where to dial, and what to ask there."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """What credentials and connections belong to: scheme, host and port."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """The `Host` field: the port is said where it is not the scheme's own."""
        if self.port == _PORTS[self.scheme]:
            return self.endpoint.rpartition(":")[0]
        return self.endpoint

    @property
    def endpoint(self) -> str:
        """The host with its port, which is always said: what a proxy is asked to connect to."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        """Give the URL without its query, which may hold a signature or a token."""
        path, query, _ = self.target.partition("?")
        return clean(f"{self.scheme}://{self.authority}{path}") + ("?…" if query else "")


def parse(text: str) -> Url:
    """Give the URL that `text` spells.

    Raises `ValueError` for anything but an http or https URL of printable ASCII without userinfo.
    """
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("not a URL of printable ASCII")
    parts = urlsplit(text)
    scheme, host = parts.scheme, parts.hostname or ""
    if scheme not in _PORTS:
        raise ValueError("neither http nor https")
    if parts.username is not None or _HOST.fullmatch(host) is None:
        raise ValueError("its host is malformed")
    port = _PORTS[scheme] if parts.port is None else parts.port
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(scheme, host, port, target)
