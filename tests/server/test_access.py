"""Which requests a listener answers.

A page in a browser can send requests to a listener of its reader's machine, and read the replies
wherever the browser takes the listener for the page's own site. That is so where the page's name
resolves to this host (DNS rebinding), which is for whoever wrote the page to decide: such a request
has no `Origin`, its `Sec-Fetch-Site` is `same-origin`, and its `Host` is the one thing that tells.
"""

from __future__ import annotations

import h11
import pytest

from imgproxy.errors import DeniedError
from imgproxy.server.access import Access, is_loopback, parse_host

TCP, UNIX = Access([]), Access(None)


def request(host: str, target: str = "/manifest", **fields: str) -> h11.Request:
    given = {"Host": host, **{name.replace("_", "-"): value for name, value in fields.items()}}
    headers = [(name.encode(), value.encode()) for name, value in given.items()]
    return h11.Request(method="GET", target=target, headers=headers)


LOOPBACK = [
    "localhost",
    "localhost:5000",
    "localhost:",
    "LocalHost:80",
    "localhost.",
    "image.localhost:8080",
    "127.0.0.1",
    "127.0.0.1:1",
    "127.255.255.254:65535",
    "[::1]",
    "[::1]:5000",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]:80",
]

FOREIGN = [
    "",
    ":80",
    "attacker.example",
    "attacker.example:5000",
    "localhost.attacker.example",
    "127.0.0.1.attacker.example",
    "notlocalhost",
    "localhost..",
    ".localhost",
    "localhost@attacker.example",
    "attacker.example@localhost",
    "attacker.example:80@localhost:80",
    "localhost:80:attacker.example",
    "localhost:http",
    "localhost/attacker.example",
    "localhost attacker.example",
    "localhost,attacker.example",
    "localhost\\attacker.example",
    "[localhost]",
    "[::1].attacker.example",
    "[::1",
    "::1",
    # which some take for loopback, and browsers have made of what was typed
    "127.1",
    "2130706433",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "0",
    "0.0.0.0",  # noqa: S104  (it is refused)
    "0.0.0.0:5000",
    "[::]",
    # hosts of a network
    "10.0.0.1",
    "192.168.0.1:5000",
    "[2001:db8::1]",
    "[::ffff:10.0.0.1]",
    "l\N{LATIN SMALL LETTER O WITH DIAERESIS}calhost",
    "\N{LATIN SMALL LETTER LONG S}localhost",
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_with_any_port_is_answered(host: str) -> None:
    TCP.check(request(host))
    TCP.check(request("localhost", f"http://{host}/manifest"))


@pytest.mark.parametrize("host", FOREIGN)
def test_another_host_is_refused_at_a_tcp_listener(host: str) -> None:
    with pytest.raises(DeniedError, match=r"--host"):
        TCP.check(request(host))


@pytest.mark.parametrize("host", [*FOREIGN, *LOOPBACK])
def test_any_host_is_answered_at_a_unix_socket(host: str) -> None:
    """No browser connects to one, and clients put there what they like: http://image/manifest."""
    UNIX.check(request(host))


def test_the_refusal_names_the_host_and_the_way_out() -> None:
    with pytest.raises(DeniedError) as caught:
        TCP.check(request("attacker.example:80"))
    assert '"attacker.example:80"' in caught.value.message
    assert "names given with --host" in caught.value.message
    assert (caught.value.status, caught.value.code) == (403, "DENIED")


@pytest.mark.parametrize(
    "target",
    [
        "http://attacker.example/manifest",
        "HTTPS://attacker.example:5000/manifest",
        "http://attacker.example",
        "http://attacker.example?x",
        "http://localhost@attacker.example/manifest",
        "http://attacker.example#@localhost/manifest",
        "http://attacker.example\\@localhost/manifest",
        "http:///manifest",
        "ws://attacker.example/manifest",
    ],
)
def test_the_absolute_form_of_a_target_counts_as_a_host(target: str) -> None:
    """RFC 9112 section 3.2.2: it takes the place of the field, and is no way around it either."""
    with pytest.raises(DeniedError, match=r"--host"):
        TCP.check(request("localhost", target))
    UNIX.check(request("localhost", target))


def test_the_field_is_not_overruled_by_the_absolute_form() -> None:
    with pytest.raises(DeniedError, match=r"attacker\.example"):
        TCP.check(request("attacker.example", "http://localhost/manifest"))


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("registry.lan", "registry.lan"),
        ("registry.lan", "registry.lan:5000"),
        ("Registry.LAN.", "registry.lan"),
        ("registry.lan", "REGISTRY.lan.:80"),
        ("10.0.0.1", "10.0.0.1:5000"),
        ("10.0.0.1", "[::ffff:10.0.0.1]"),
        ("[2001:DB8::1]", "[2001:db8:0::1]:80"),
        ("2001:db8::1", "[2001:db8::1]"),
        ("build_1", "build_1:80"),
    ],
)
def test_a_host_that_was_named_is_answered_with_any_port(given: str, asked: str) -> None:
    access = Access([parse_host("other.lan"), parse_host(given)])
    access.check(request(asked))
    access.check(request("localhost", f"http://{asked}/manifest"))
    access.check(request("localhost"))
    for host in (f"x.{given}", "attacker.example", "lan"):
        with pytest.raises(DeniedError):
            access.check(request(host))


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "a b", "registry.lan:5000", "10.0.0.1:80", "[::1]:80", "http://a", "a/b", "*"),
        *("*.a", "a..b", "[a]", "[]", "\N{LATIN SMALL LETTER E WITH ACUTE}.lan", "a,b", "a@b"),
    ],
)
def test_what_is_no_host_cannot_be_named(text: str) -> None:
    with pytest.raises(ValueError, match="expected the name or the address of a host, without a"):
        parse_host(text)


@pytest.mark.parametrize("access", [TCP, UNIX], ids=["tcp", "unix"])
@pytest.mark.parametrize(
    "site", ["cross-site", "same-site", "", "None", "same-origin, cross-site", "new-word"]
)
def test_a_request_of_another_site_is_refused_at_a_listener(site: str, access: Access) -> None:
    """Such as an image or a script has, which a browser fetches without an `Origin`."""
    with pytest.raises(DeniedError, match=f"Sec-Fetch-Site: {site}"):
        access.check(request("localhost", Sec_Fetch_Site=site))


@pytest.mark.parametrize("access", [TCP, UNIX], ids=["tcp", "unix"])
@pytest.mark.parametrize("site", ["none", "same-origin"])
def test_a_request_of_no_other_site_is_answered(site: str, access: Access) -> None:
    access.check(request("localhost", Sec_Fetch_Site=site))


def test_every_field_of_a_name_counts() -> None:
    fields = [("Host", "localhost"), ("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site")]
    with pytest.raises(DeniedError, match="cross-site"):
        TCP.check(h11.Request(method="GET", target="/", headers=fields))


@pytest.mark.parametrize("access", [TCP, UNIX], ids=["tcp", "unix"])
@pytest.mark.parametrize("origin", ["null", "http://localhost", "", "http://attacker.example"])
def test_a_request_with_an_origin_is_refused_at_a_listener(origin: str, access: Access) -> None:
    with pytest.raises(DeniedError, match="Origin header comes from a browser"):
        access.check(request("localhost", Origin=origin))


def test_loopback_is_what_parsing_makes_of_it() -> None:
    for text in ("localhost.", "::ffff:127.0.0.1", "[::1]", "127.9.9.9", "a.b.LOCALHOST"):
        assert is_loopback(parse_host(text))
