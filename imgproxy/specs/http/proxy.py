"""The choice of a proxy for a request, and requests to it: RFC 9110 sections 7.6 and 9.3.6.

`http://` and `https://` name an HTTP proxy, `socks5://` and `socks5h://` a SOCKS 5 proxy. As for
curl, this host resolves names for socks5, and the proxy for socks5h.

The variables HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY have no specification. They are
interpreted as by Go, in which the other clients of registries are written:

- the upper-case name has precedence over the lower-case one (curl has it the other way round), and
  an empty value counts as unset;
- HTTP_PROXY is ignored where REQUEST_METHOD is set: a CGI program gets its client's `Proxy` field
  under that name. The lower-case name cannot be forged in this way, and counts;
- requests to loopback never go through a proxy;
- NO_PROXY is `*`, or names, addresses and networks separated by commas. `example.org` is that name
  and all names below it, `.example.org` and `*.example.org` are those below it alone; a name or an
  address may have a port.

Where Go defines nothing, they are interpreted as by curl: ALL_PROXY stands for both others, and
blanks separate the entries of NO_PROXY as well as commas do.
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


_SOCKS = ("socks5", "socks5h")
_SCHEMES = ("http", "https", *_SOCKS)

# RFC 1929 section 2: their lengths are octets.
_MAX_SOCKS_WORD = 255


class Proxy(NamedTuple):
    """A proxy, reached over TLS where its URL is https.

    `username` and `password` are empty where there are no credentials; `source` is the variable
    that names the proxy.
    """

    url: Url
    username: str
    password: str
    source: str

    @property
    def authorization(self) -> str:
        """The value of `Proxy-Authorization`, empty where there are no credentials."""
        if not self.username and not self.password:
            return ""
        return basic.authorization(self.username, self.password)

    @property
    def is_socks(self) -> bool:
        """Whether it speaks SOCKS, and knows nothing of HTTP."""
        return self.url.scheme in _SOCKS

    @property
    def resolves_names(self) -> bool:
        """Whether the proxy looks up the names of hosts, and not this host."""
        return self.url.scheme != "socks5"

    def __str__(self) -> str:
        return f"{self.url.scheme}://{self.url.authority} ({self.source})"

    def __repr__(self) -> str:
        return f"<Proxy {self}>"

    def connect(self, url: Url) -> tuple[str, list[tuple[str, str]]]:
        """Return target and fields of the CONNECT that opens a tunnel to the URL's origin.

        Only this request carries the credentials: the requests through the tunnel go to another
        server.
        """
        return url.endpoint, [("Host", url.endpoint), *self._credentials()]

    def forward(self, url: Url) -> tuple[str, list[tuple[str, str]]]:
        """Return target (RFC 9112 section 3.2.2) and fields of a request for a plain http URL."""
        target = f"{url.scheme}://{url.authority}{url.target}"
        return target, [("Host", url.authority), *self._credentials()]

    def _credentials(self) -> list[tuple[str, str]]:
        return [("Proxy-Authorization", self.authorization)] if self.authorization else []


def is_configured(environment: Mapping[str, str]) -> bool:
    """Return whether there is a proxy for anything."""
    names = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
    return any(environment.get(each) for name in names for each in (name, name.lower()))


def choose(url: Url, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for a URL, None where its origin is dialled directly.

    Raises `ConfigurationError` for an unusable proxy. Its message never shows the value, which, if
    malformed, may hold a password anywhere.
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
    """Parse `[SCHEME://][USER[:PASSWORD]@]HOST[:PORT]`; the default scheme is http.

    `source` is the variable that has this value. Raises `ConfigurationError`.
    """
    scheme, found, rest = text.strip().partition("://")
    scheme, rest = (scheme.lower(), rest) if found else ("http", text.strip())
    if scheme not in _SCHEMES:
        if scheme.startswith("socks"):
            raise _unusable(
                source,
                "names a SOCKS proxy, which is not supported but by socks5:// and socks5h://",
            )
        raise _unusable(source, "names a proxy that is neither http nor https nor socks5")
    userinfo, _, endpoint = rest.rpartition("@")
    try:
        # The messages of the exceptions are omitted, since they may quote a part of the password.
        # A slash in a password ends up in `userinfo` like any other character, not in the host.
        url = urls.parse(f"{scheme}://{endpoint}", _SCHEMES)
        username, _, password = (unquote(each, errors="strict") for each in userinfo.partition(":"))
        longest = max(len(username.encode()), len(password.encode()))
    except ValueError:
        raise _unusable(
            source,
            "is not the URL of a proxy (expected http://[USER[:PASSWORD]@]HOST[:PORT], with"
            " special characters of user and password as %XX)",
        ) from None
    proxy = Proxy(url, username, password, source)
    if proxy.is_socks and longest > _MAX_SOCKS_WORD:
        raise _unusable(source, f"has a user or a password of more than {_MAX_SOCKS_WORD} bytes")
    return proxy


def _unusable(source: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"the environment variable {source} {reason}; NO_PROXY lists the hosts that need no proxy",
        variable=source,
    )


def _is_exempt(url: Url, exempt: str) -> bool:
    """Return whether a URL's origin is dialled directly: loopback, or listed in NO_PROXY."""
    host = url.host.lower().rstrip(".")
    address = _address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    entries = _SEPARATORS.split(exempt.lower())
    return any(_matches(entry, host, str(url.port), address) for entry in entries)


def _matches(entry: str, host: str, port: str, address: IPv4Address | IPv6Address | None) -> bool:
    """Return whether an entry of NO_PROXY matches a host; `address` is set where that is one.

    A malformed entry matches no host, as in Go and curl.
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
    """Return the IP address in `text`, None for other text; IPv4 in IPv6 form becomes IPv4."""
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
