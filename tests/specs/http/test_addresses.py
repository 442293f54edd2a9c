"""Which addresses lead to a metadata service or an internal network, however they are spelled.

Clouds give the credentials of a machine to whoever asks from it. A server that names such an
address in a redirect, a realm or a foreign layer would have this program ask.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import pytest

from imgproxy.specs.http import addresses

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICES = [
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
]
SERVICES_6 = [
    "fe80::a9fe:a9fe",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "FD00:0EC2:0:0::0254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:c1::a9fe:a9fe",
    "fd00:42::42",
]


def behind(prefix: str, length: int) -> Callable[[int], str]:
    """Return how RFC 6052 section 2.2 puts an IPv4 address behind a prefix of so many bits."""

    def spell(number: int) -> str:
        if length == 96:
            return str(IPv6Address(int(IPv6Address(prefix)) | number))
        bits = f"{int(IPv6Address(prefix)):0128b}"[:length] + f"{number:032b}"
        bits = bits[:64] + "0" * 8 + bits[64:]
        return str(IPv6Address(int(bits.ljust(128, "0"), 2)))

    return spell


SPELLINGS: dict[str, Callable[[int], str]] = {
    "dotted": lambda number: str(IPv4Address(number)),
    "with a dot at the end": lambda number: f"{IPv4Address(number)}.",
    "decimal": str,
    "hexadecimal": hex,
    "in capitals": lambda number: f"0X{number:X}",
    "octal": lambda number: f"0{number:o}",
    "octal octets": lambda number: ".".join(f"0{each:o}" for each in number.to_bytes(4, "big")),
    "two parts": lambda number: f"{number >> 24}.{number & 0xFFFFFF}",
    "three parts": lambda number: f"{number >> 24}.{number >> 16 & 255:#x}.{number & 0xFFFF}",
    "compatible": lambda number: f"::{IPv4Address(number)}",
    "mapped": lambda number: f"::ffff:{IPv4Address(number)}",
    "mapped, with zeros": lambda number: f"0:0:0:0:0:FFFF:{number >> 16:04X}:{number & 65535:04X}",
    "translated": lambda number: f"::ffff:0:{IPv4Address(number)}",
    "NAT64": behind("64:ff9b::", 96),
    "a network's NAT64": behind("64:ff9b:1::", 96),
    "another one": behind("64:ff9b:1:1:2:3::", 96),
    "behind 48 bits": behind("64:ff9b:1::", 48),
    "behind 56 bits": behind("64:ff9b:1:100::", 56),
    "behind 64 bits": behind("64:ff9b:1:1::", 64),
    "6to4": lambda number: str(IPv6Address(0x2002 << 112 | number << 80 | 1)),
    "a server of Teredo": lambda number: str(IPv6Address(0x20010000 << 96 | number << 64 | 1)),
    "a client of Teredo": lambda number: str(
        IPv6Address(0x20010000 << 96 | 0x41000000 << 64 | number ^ 0xFFFFFFFF)
    ),
}


@pytest.mark.parametrize("how", SPELLINGS)
@pytest.mark.parametrize("service", SERVICES)
def test_a_metadata_service_is_recognised_however_it_is_spelled(service: str, how: str) -> None:
    assert addresses.metadata_service(SPELLINGS[how](int(IPv4Address(service))))


@pytest.mark.parametrize("host", SERVICES_6)
def test_a_metadata_service_with_an_address_of_its_own_is_recognised(host: str) -> None:
    assert addresses.metadata_service(host)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "10.0.0.5", "100.100.100.201", "169.255.0.1", "192.0.0.193", "8.8.8.8"),
        *("::", "::1", "fd00:ec3::254", "fd20:ce::253", "fec0::1", "2606:4700::6810:84e5"),
        *("64:ff9b::808:808", "2002:808:808::1"),
        # Names, which only look like numbers.
        *("localhost", "169.254.169.254.example.org", "0xa9fea9fe.example", "1.2.3.4.5", "0x"),
        *("08.8.8.8", "256.1.1.1", "4294967296", "1.16777216", "a9fea9fe", "169..254", "", "."),
    ],
)
def test_another_host_is_none(host: str) -> None:
    assert addresses.metadata_service(host) == ""


INTERNAL = ["127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0"]  # noqa: S104
INTERNAL_6 = ["::1", "::", "fd12:3456::1", "fc00::1", "fe80::1%eth0", "fec0::1"]
PUBLIC = ["8.8.8.8", "172.32.0.1", "11.0.0.1", "100.128.0.1", "198.51.100.7", "2001:db8::1"]


def test_an_internal_address_is_distinguished_from_a_public_one() -> None:
    assert all(map(addresses.is_internal, INTERNAL + INTERNAL_6))
    assert all(map(addresses.may_be_internal, INTERNAL + INTERNAL_6))
    names = ["internal.example", "localhost", ""]
    assert not any(map(addresses.is_internal, PUBLIC + names))
    assert not any(map(addresses.may_be_internal, PUBLIC + names))


@pytest.mark.parametrize("how", [how for how in SPELLINGS if ":" in SPELLINGS[how](1 << 24)])
@pytest.mark.parametrize("address", INTERNAL)
def test_a_spelling_of_an_internal_address_may_be_internal_and_is_not_for_certain(
    address: str, how: str
) -> None:
    """A server that must prove to be internal cannot do it by an address that may be either."""
    host = SPELLINGS[how](int(IPv4Address(address)))
    assert addresses.may_be_internal(host)
    assert not addresses.is_internal(host) or host in ("::", "::0.0.0.0")
