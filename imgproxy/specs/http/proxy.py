"""Which proxy a request goes through, and how the proxy is asked: RFC 9110 sections 7.6 and 9.3.6.

The variables HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY have no specification. They are read
as Go reads them, in which registries' other clients are written:

- the upper-case name wins over the lower-case one (curl has it the other way round), and an empty
  value is as good as none;
- HTTP_PROXY is not believed where REQUEST_METHOD is set: a CGI program gets its client's `Proxy`
  field under that name. The lower-case name can't be forged so, and is;
- loopback is never asked for through a proxy;
- NO_PROXY is `*`, or names, addresses and networks between commas. `example.org` is that name and
  all names under it, `.example.org` and `*.example.org` are those under it alone; a name or an
  address may have a port.

And as curl reads them, where Go has nothing to say: ALL_PROXY stands for both others, and blanks
separate the entries of NO_PROXY as well as commas do.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from imgproxy.errors import ConfigurationError
from imgproxy.specs.http import basic
from imgproxy.specs.http import url as urls

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Address, IPv6Address

    from imgproxy.specs.http.url import Url

_ENTRY = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*)(?::(?P<port>[0-9]*))?")
_SEPARATORS = re.compile(r"[\s,]+")


class Proxy(NamedTuple):
    """Where to dial in place of a request's own origin, over TLS where that URL says https.

    `authorization` is the value of `Proxy-Authorization`, empty where there are no credentials;
    `source` is the variable that named the proxy.
    """

    url: Url
    authorization: str
    source: str

    def __str__(self) -> str:
        return f"{self.url.scheme}://{self.url.authority} ({self.source})"

    def __repr__(self) -> str:
        return f"<Proxy {self}>"

    def connect(self, url: Url) -> tuple[str, list[tuple[str, str]]]:
        """Give target and fields of the CONNECT that opens a tunnel to the URL's origin.

        The credentials are for this request alone; what goes through the tunnel is not the
        proxy's.
        """
        return url.endpoint, [("Host", url.endpoint), *self._credentials()]

    def forward(self, url: Url) -> tuple[str, list[tuple[str, str]]]:
        """Give target (RFC 9112 section 3.2.2) and fields of a request for a plain http URL."""
        target = f"{url.scheme}://{url.authority}{url.target}"
        return target, [("Host", url.authority), *self._credentials()]

    def _credentials(self) -> list[tuple[str, str]]:
        return [("Proxy-Authorization", self.authorization)] if self.authorization else []


def choose(url: Url, environment: Mapping[str, str]) -> Proxy | None:
    """Give the proxy for a URL, None where its origin is dialled directly.

    Raises `ConfigurationError` for a proxy that can't be used. It never shows the value, which may
    hold a password wherever it is malformed.
    """
    names = [f"{url.scheme.upper()}_PROXY", f"{url.scheme}_proxy", "ALL_PROXY", "all_proxy"]
    if environment.get("REQUEST_METHOD"):
        names = [name for name in names if name != "HTTP_PROXY"]
    source = next((name for name in names if environment.get(name)), None)
    exempt = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    if source is None or _is_exempt(url, exempt):
        return None
    return parse(environment[source], source)


def parse(text: str, source: str) -> Proxy:
    """Give the proxy that `[SCHEME://][USER[:PASSWORD]@]HOST[:PORT]` spells; http is the default.

    `source` is the variable it comes from. Raises `ConfigurationError`.
    """
    scheme, found, rest = text.strip().partition("://")
    scheme, rest = (scheme.lower(), rest) if found else ("http", text.strip())
    if scheme.startswith("socks"):
        raise _unusable(source, "names a SOCKS proxy, which is not supported")
    if scheme not in ("http", "https"):
        raise _unusable(source, "names a proxy that is neither http nor https")
    userinfo, _, endpoint = rest.rpartition("@")
    try:
        # What the exceptions say is left out: it may quote a part of the password. A slash in one
        # ends up in `userinfo` like any other character, and not in the host.
        return Proxy(urls.parse(f"{scheme}://{endpoint}"), _authorization(userinfo), source)
    except ValueError:
        raise _unusable(
            source,
            "is not the URL of a proxy (expected http://[USER[:PASSWORD]@]HOST[:PORT], with"
            " special characters of user and password as %XX)",
        ) from None


def _authorization(userinfo: str) -> str:
    """Give the value of `Proxy-Authorization`. Raises `ValueError` for what isn't UTF-8."""
    username, _, password = (unquote(part, errors="strict") for part in userinfo.partition(":"))
    return basic.authorization(username, password) if userinfo else ""


def _unusable(source: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"the environment variable {source} {reason}; NO_PROXY lists the hosts that need no proxy",
        variable=source,
    )


def _is_exempt(url: Url, exempt: str) -> bool:
    """Whether a URL's origin is dialled directly, as loopback is and what NO_PROXY lists."""
    host = url.host.lower().rstrip(".")
    address = _address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    entries = _SEPARATORS.split(exempt.lower())
    return any(_fits(entry, host, str(url.port), address) for entry in entries)


def _fits(entry: str, host: str, port: str, address: IPv4Address | IPv6Address | None) -> bool:
    """Whether an entry of NO_PROXY speaks of a host. `address` is the host's, if it is one.

    What is malformed speaks of none, as in Go and curl.
    """
    if entry == "*":
        return True
    if address is not None and "/" in entry:
        return _is_in(address, entry)
    match = _ENTRY.fullmatch(entry)
    name, wanted_port = match.group("host", "port") if match else (entry, None)
    if wanted_port not in (None, "", port):
        return False
    if address is not None:
        return _address(name.strip("[]")) == address
    name = name.removeprefix("*") if name.startswith("*.") else name
    name = name.rstrip(".")
    return bool(name) and (host == name or host.endswith(f".{name.removeprefix('.')}"))


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Give the address that `text` spells; an IPv4 address in IPv6 form is an IPv4 address."""
    from ipaddress import ip_address

    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_in(address: IPv4Address | IPv6Address, network: str) -> bool:
    from ipaddress import ip_network

    try:
        return address in ip_network(network, strict=False)
    except ValueError:
        return False
