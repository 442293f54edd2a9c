"""What an IP address leads to: a metadata service, an internal network, or neither.

An IPv4 address can be spelled as an IPv6 one, which a translator or a tunnel leads to the same
place; each spelling with a fixed prefix is understood here. A network that translates under a
prefix of its own (RFC 6052 section 2.2) is not recognised.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LINK_LOCAL = (ip_network("169.254.0.0/16"), ip_network("fe80::/10"))

# Clouds serve the credentials of a machine to whatever runs on it, mostly on link-local addresses.
# These are the others.
_METADATA_SERVICES = tuple(
    map(
        ip_network,
        [
            "100.100.100.200",  # Alibaba Cloud
            "168.63.129.16",  # Azure, its agent's
            "192.0.0.192",  # Oracle Cloud, older machines
            "fd00:42::42",  # Scaleway
            "fd00:c1::a9fe:a9fe",  # Oracle Cloud
            "fd00:ec2::/32",  # AWS: 254 for machines, 23 for Kubernetes' pods
            "fd20:ce::254",  # Google Cloud
        ],
    )
)

# RFC 6890 and its updates: this host, private use, shared address space, link-local, site-local.
_INTERNAL = (
    *_LINK_LOCAL,
    *map(
        ip_network,
        [
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "::/127",
            "fc00::/7",
            "fec0::/10",
        ],
    ),
)

_SHORT = re.compile(r"(?:0[xX][0-9a-fA-F]+|[0-9]+)(?:\.(?:0[xX][0-9a-fA-F]+|[0-9]+)){0,3}")


def _local_nat64(number: int) -> tuple[int, ...]:
    """Return what may be embedded behind a prefix of 96, 64, 56 or 48 bits.

    Behind the shorter ones an octet of zeros is between the others: RFC 6052 section 2.2.
    """
    without = number >> 64 << 56 | number & (1 << 56) - 1
    return number, without >> 24, without >> 32, without >> 40


# IPv6 networks, and the numbers in whose last 32 bits an address there may have an IPv4 address.
_EMBEDDED: tuple[tuple[str, Callable[[int], tuple[int, ...]]], ...] = (
    ("::/96", lambda number: (number,)),  # compatible, RFC 4291 section 2.5.5.1
    ("::ffff:0:0/96", lambda number: (number,)),  # mapped, section 2.5.5.2
    ("::ffff:0:0:0/96", lambda number: (number,)),  # translated, RFC 2765
    ("64:ff9b::/96", lambda number: (number,)),  # NAT64, RFC 6052
    ("64:ff9b:1::/48", _local_nat64),  # a network's own NAT64, RFC 8215
    ("2002::/16", lambda number: (number >> 80,)),  # 6to4, RFC 3056
    ("2001::/32", lambda number: (number >> 64, ~number)),  # Teredo's server and client, RFC 4380
)
_SPELLINGS = [(ip_network(network), embedded) for network, embedded in _EMBEDDED]


def metadata_service(host: str) -> str:
    """Return what a host is that may serve a machine's credentials, empty for any other.

    Names are not resolved: they are none.
    """
    for address in _meanings(host):
        if any(address in network for network in _LINK_LOCAL):
            return f"the link-local address {address}"
        if any(address in network for network in _METADATA_SERVICES):
            return f"the metadata service {address}"
    return ""


def is_internal(host: str) -> bool:
    """Return whether a host is an address that is certainly not reached over the Internet."""
    address = _parse(host)
    return address is not None and any(address in network for network in _INTERNAL)


def may_be_internal(host: str) -> bool:
    """Return whether a host is an address that `is_internal`, in any spelling of it."""
    return any(address in network for address in _meanings(host) for network in _INTERNAL)


def _parse(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that a host is, None for a name."""
    text = host.partition("%")[0].rstrip(".")
    try:
        return ip_address(text)
    except ValueError:
        return _short_ipv4(text)


def _short_ipv4(text: str) -> IPv4Address | None:
    """Return the address in a form that only inet_aton(3) has, such as `0xA9FE.43518`."""
    if _SHORT.fullmatch(text) is None:
        return None
    try:
        *octets, rest = (_number(part) for part in text.split("."))
        return IPv4Address(bytes(octets) + rest.to_bytes(4 - len(octets), "big"))
    except (ValueError, OverflowError):
        return None


def _number(text: str) -> int:
    if text[:2] in ("0x", "0X"):
        return int(text, 16)
    return int(text, 8 if text.startswith("0") else 10)


def _meanings(host: str) -> Iterator[IPv4Address | IPv6Address]:
    """Yield the address that a host is, and all IPv4 addresses that it may be a spelling of."""
    address = _parse(host)
    if address is None:
        return
    yield address
    if isinstance(address, IPv4Address):
        return
    for network, embedded in _SPELLINGS:
        if address in network:
            yield from (IPv4Address(each & 0xFFFFFFFF) for each in embedded(int(address)))
