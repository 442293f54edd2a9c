"""Names of registries, `host[:port]`, in the forms in which they are compared.

One registry can be written in many ways, and a rule about it must not depend on which. There are
two forms:

- `normal` is the form of names: in lower case, and Docker Hub is `docker.io`. References have it,
  and so have the names in signatures and archives.
- `place` unites the names that lead to one place as well: notations of an address, zeros before a
  port, Docker Hub and its server, and over TLS `host:443` and `host`. Rules compare places, since
  each name gets the same bytes. For credentials, 443 is a port of its own where plain http may be
  used.
"""

from __future__ import annotations

import re

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*"
_REGISTRY = re.compile(rf"({_DOMAIN}|\[[a-fA-F0-9:]+\])(?::([0-9]{{1,5}}))?")
_WILDCARD = re.compile(rf"\*\.{_DOMAIN}")
_NUMBER = "(?:0x[0-9a-f]{1,8}|[0-9]{1,11})"
_IPV4 = re.compile(rf"{_NUMBER}(?:\.{_NUMBER}){{0,3}}")
_OCTAL = re.compile("0[0-9]*")

_PORTS = range(1, 65536)
_TLS = "443"

_HUB = "docker.io"
_HUB_NAMES = frozenset({_HUB, "index.docker.io"})
# The server behind the name, where repositories have no default namespace.
_HUB_SERVER = "registry-1.docker.io"


def is_registry(text: str) -> bool:
    """Return whether the text is a host with or without a port."""
    match = _REGISTRY.fullmatch(text)
    if match is None:
        return False
    host, port = match.groups()
    return int(port or 1) in _PORTS and (host[0] != "[" or _address(host) is not None)


def split(registry: str) -> tuple[str, str]:
    """Return host and port of a registry; the port is empty where there is none."""
    match = _REGISTRY.fullmatch(registry)
    return (registry, "") if match is None else (match[1], match[2] or "")


def normal(name: str) -> str:
    """Return a name that begins with `host[:port]` or `*.domain`, with that in normal form.

    What begins with neither is returned unchanged.
    """
    registry, slash, path = name.partition("/")
    if _WILDCARD.fullmatch(registry) or is_registry(registry):
        registry = registry.lower()
        host, port = split(registry)
        # Docker Hub is never reached by plain http, so that 443 is its only port.
        if host in _HUB_NAMES and port.lstrip("0") in ("", _TLS):
            registry = _HUB
    return registry + slash + path


def place(name: str, *, tls: bool = True) -> str:
    """Return a name like `normal`, with one name for each place; `tls`: it is reached over TLS."""
    registry, slash, path = normal(name).partition("/")
    if is_registry(registry):
        host, port = split(registry)
        host, port = _address(host) or host, port.lstrip("0")
        registry = host if not port or (tls and port == _TLS) else f"{host}:{port}"
    return (_HUB if registry == _HUB_SERVER else registry) + slash + path


def _address(host: str) -> str | None:
    """Return an address in its usual notation, None for a name and for a malformed address.

    An IPv4 address in an IPv6 one is the former, as it is for the system that connects to it.
    """
    if host[0] != "[":
        return _ipv4(host)
    import ipaddress

    try:
        address = ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return None
    return str(address.ipv4_mapped or f"[{address}]")


def _ipv4(host: str) -> str | None:
    """Return an IPv4 address in any notation that systems dial: inet_aton(3).

    That is one to four numbers, octal after `0` and hexadecimal after `0x`; the last one fills the
    bytes that are left.
    """
    if _IPV4.fullmatch(host) is None:
        return None
    try:
        *first, last = (int(text, 8 if _OCTAL.fullmatch(text) else 0) for text in host.split("."))
        address = bytes(first) + last.to_bytes(4 - len(first))
    except (ValueError, OverflowError):  # 08, 256.1
        return None
    return ".".join(map(str, address))
