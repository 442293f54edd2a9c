from __future__ import annotations

import base64
import random

import pytest

from imgproxy.errors import ConfigurationError
from imgproxy.specs.http import proxy as proxies
from imgproxy.specs.http import url as urls

HTTP = "http://registry.example:5000/v2/a/manifests/1?x=y"
HTTPS = "https://registry.example/v2/a/manifests/1?x=y"
PROXY = "http://proxy.example:3128"
SECRET = "s3cr3t-p4ss"


def chosen(url: str, **environment: str) -> str:
    return str(proxies.choose(urls.parse(url), environment))


# --- which variable ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        (HTTPS, {}, "None"),
        (HTTPS, {"HTTPS_PROXY": "http://a"}, "http://a (HTTPS_PROXY)"),
        (HTTPS, {"https_proxy": "http://a"}, "http://a (https_proxy)"),
        (HTTPS, {"HTTPS_PROXY": "a", "https_proxy": "b"}, "http://a (HTTPS_PROXY)"),
        (HTTPS, {"HTTPS_PROXY": "", "https_proxy": "b"}, "http://b (https_proxy)"),
        (HTTPS, {"HTTPS_PROXY": "a", "ALL_PROXY": "b"}, "http://a (HTTPS_PROXY)"),
        (HTTPS, {"https_proxy": "a", "ALL_PROXY": "b"}, "http://a (https_proxy)"),
        (HTTPS, {"ALL_PROXY": "a", "all_proxy": "b"}, "http://a (ALL_PROXY)"),
        (HTTPS, {"HTTPS_PROXY": "", "all_proxy": "b"}, "http://b (all_proxy)"),
        (HTTPS, {"HTTP_PROXY": "a", "http_proxy": "b"}, "None"),
        (HTTPS, {"HTTPS_PROXY": "a", "REQUEST_METHOD": "GET"}, "http://a (HTTPS_PROXY)"),
        (HTTP, {"HTTP_PROXY": "a"}, "http://a (HTTP_PROXY)"),
        (HTTP, {"http_proxy": "a"}, "http://a (http_proxy)"),
        (HTTP, {"HTTP_PROXY": "a", "http_proxy": "b"}, "http://a (HTTP_PROXY)"),
        (HTTP, {"ALL_PROXY": "a"}, "http://a (ALL_PROXY)"),
        (HTTP, {"HTTPS_PROXY": "a", "https_proxy": "b"}, "None"),
        (HTTP, {"HTTP_PROXY": "a", "REQUEST_METHOD": "GET"}, "None"),
        (HTTP, {"HTTP_PROXY": "a", "REQUEST_METHOD": ""}, "http://a (HTTP_PROXY)"),
        (
            HTTP,
            {"HTTP_PROXY": "a", "http_proxy": "b", "REQUEST_METHOD": "GET"},
            "http://b (http_proxy)",
        ),
        (
            HTTP,
            {"HTTP_PROXY": "a", "ALL_PROXY": "b", "REQUEST_METHOD": "GET"},
            "http://b (ALL_PROXY)",
        ),
        # NO_PROXY by the same rule
        (HTTPS, {"HTTPS_PROXY": "a", "NO_PROXY": "*"}, "None"),
        (HTTPS, {"HTTPS_PROXY": "a", "no_proxy": "*"}, "None"),
        (HTTPS, {"HTTPS_PROXY": "a", "NO_PROXY": "x", "no_proxy": "*"}, "http://a (HTTPS_PROXY)"),
        (HTTPS, {"HTTPS_PROXY": "a", "NO_PROXY": "", "no_proxy": "*"}, "None"),
        # An unusable proxy is not an error for a request that does not need it.
        (HTTPS, {"HTTPS_PROXY": "socks4://a", "NO_PROXY": "*"}, "None"),
        (HTTPS, {"HTTPS_PROXY": "a", "ALL_PROXY": "socks4://b"}, "http://a (HTTPS_PROXY)"),
        (HTTPS, {"ALL_PROXY": "socks5://a"}, "socks5://a (ALL_PROXY)"),
        (HTTPS, {"HTTPS_PROXY": "socks5h://a:1081"}, "socks5h://a:1081 (HTTPS_PROXY)"),
        (HTTP, {"ALL_PROXY": "socks5h://u:p@a"}, "socks5h://a (ALL_PROXY)"),
    ],
)
def test_which_variable_names_the_proxy(url: str, environment: dict[str, str], proxy: str) -> None:
    assert chosen(url, **environment) == proxy


# --- NO_PROXY ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exempt", "host", "direct"),
    [
        ("", "example.org", False),
        (" , ,", "example.org", False),
        ("*", "example.org", True),
        ("*", "10.0.0.1", True),
        ("a, * ,b", "example.org", True),
        ("example.org", "example.org", True),
        ("Example.ORG", "eXample.org", True),
        ("example.org", "a.b.example.org", True),
        ("example.org", "notexample.org", False),
        ("example.org", "example.org.uk", False),
        ("org", "example.org", True),
        (".example.org", "a.example.org", True),
        (".example.org", "example.org", False),
        ("*.example.org", "a.example.org", True),
        ("*.example.org", "example.org", False),
        ("*example.org", "example.org", False),
        ("example.org.", "example.org", True),
        ("example.org", "example.org.", True),
        (".", "example.org", False),
        ("..", "example.org", False),
        (":5000", "example.org:5000", False),
        ("a,b,example.org,c", "example.org", True),
        (" a  example.org\t", "example.org", True),
        ("example.org:443", "example.org", True),
        ("example.org:443", "example.org:5000", False),
        ("example.org:5000", "a.example.org:5000", True),
        ("example.org:5000", "example.org", False),
        (".example.org:5000", "a.example.org:5000", True),
        ("example.org:", "example.org:5000", True),
        ("example.org:x", "example.org:5000", False),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.10", False),
        ("0.0.1", "10.0.0.1", False),
        ("10.0.0.1:5000", "10.0.0.1:5000", True),
        ("10.0.0.1:5000", "10.0.0.1", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.1.2.3/8", "10.255.0.1", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/33", "10.0.0.0", False),
        ("10.0.0.0/8", "example.org", False),
        ("10.0.0.0/8", "[fd00::1]", False),
        ("fd00::1", "[fd00::1]", True),
        ("[fd00::1]", "[fd00::1]", True),
        ("[fd00::1]:443", "[fd00::1]", True),
        ("[fd00::1]:5000", "[fd00::1]", False),
        ("fd00:0:0::1", "[fd00::1]", True),
        ("fd00::/8", "[fd12::1]", True),
        ("fd00::/8", "[fe80::1]", False),
        ("10.0.0.1", "[::ffff:10.0.0.1]", True),
        ("10.0.0.0/8", "[::ffff:10.0.0.1]", True),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("example.org", "10.0.0.1", False),
        ("1.2.3", "1.2.3", True),  # a name, though it looks like an address
        # loopback, always
        ("", "localhost", True),
        ("", "LOCALHOST:5000", True),
        ("", "127.0.0.1", True),
        ("", "127.8.9.10:5000", True),
        ("", "[::1]:5000", True),
        ("", "[::ffff:127.0.0.1]", True),
        ("", "localhost.example.org", False),
        ("", "127.0.0.1.example.org", False),
    ],
)
def test_what_is_dialled_directly(exempt: str, host: str, direct: bool) -> None:  # noqa: FBT001
    for name in "NO_PROXY", "no_proxy":
        environment = {"HTTPS_PROXY": PROXY, name: exempt}
        assert (chosen(f"https://{host}/v2/", **environment) == "None") is direct


# --- the proxy itself --------------------------------------------------------------------------


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    ("value", "dialled", "authorization"),
    [
        ("http://proxy", ("http", "proxy", 80), ""),
        ("https://proxy", ("https", "proxy", 443), ""),
        ("HTTP://PROXY:3128", ("http", "proxy", 3128), ""),
        ("http://proxy:3128/ignored?and#so", ("http", "proxy", 3128), ""),
        ("proxy", ("http", "proxy", 80), ""),
        ("proxy:3128", ("http", "proxy", 3128), ""),
        (" proxy:3128 ", ("http", "proxy", 3128), ""),
        ("10.0.0.1:3128", ("http", "10.0.0.1", 3128), ""),
        ("[fd00::1]:3128", ("http", "fd00::1", 3128), ""),
        ("http://u@proxy", ("http", "proxy", 80), basic("u:")),
        ("http://u:p@proxy", ("http", "proxy", 80), basic("u:p")),
        ("u:p@proxy:3128", ("http", "proxy", 3128), basic("u:p")),
        ("http://u:p:q@proxy", ("http", "proxy", 80), basic("u:p:q")),
        ("http://:p@proxy", ("http", "proxy", 80), basic(":p")),
        ("http://u%40h:p%3A%2f%25@proxy", ("http", "proxy", 80), basic("u@h:p:/%")),
        ("http://u:p@q/r#%s@proxy", ("http", "proxy", 80), basic("u:p@q/r#%s")),
        ("http://u:%C3%A9@proxy", ("http", "proxy", 80), basic("u:é")),
        ("http://u:é@proxy", ("http", "proxy", 80), basic("u:é")),
        ("http://@proxy", ("http", "proxy", 80), ""),
        ("socks5://proxy", ("socks5", "proxy", 1080), ""),
        ("SOCKS5h://u:p@proxy:80", ("socks5h", "proxy", 80), basic("u:p")),
    ],
)
def test_the_parts_of_a_proxy(
    value: str, dialled: tuple[str, str, int], authorization: str
) -> None:
    proxy = proxies.choose(urls.parse(HTTPS), {"HTTPS_PROXY": value})
    assert proxy is not None
    assert proxy.url.origin == dialled
    assert proxy.authorization == authorization


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (f"socks://u:{SECRET}@proxy:1080", "SOCKS proxy, which is not supported"),
        (f"SOCKS4a://u:{SECRET}@proxy:1080", "SOCKS proxy, which is not supported"),
        ("socks4://proxy:1080", "not supported but by socks5:// and socks5h://"),
        (f"socks5://u:{SECRET * 30}@proxy:1080", "of more than 255 bytes"),
        (f"socks5://{'é' * 128}:{SECRET}@proxy:1080", "of more than 255 bytes"),
        (f"socks5://u:{SECRET}@", "not the URL of a proxy"),
        (f"ftp://u:{SECRET}@proxy", "neither http nor https"),
        (f"u:{SECRET}://proxy", "neither http nor https"),
        ("http://", "not the URL of a proxy"),
        (" ", "not the URL of a proxy"),
        (f"http://u:{SECRET}@", "not the URL of a proxy"),
        (f"http://u:{SECRET}", "not the URL of a proxy"),
        (f"http://u:{SECRET}@proxy:port", "not the URL of a proxy"),
        (f"http://u:{SECRET}@proxy:99999", "not the URL of a proxy"),
        (f"http://u:{SECRET}@pro xy", "not the URL of a proxy"),
        (f"http://u:{SECRET}@[::1", "not the URL of a proxy"),
        (f"http://u:{SECRET}%FF@proxy", "not the URL of a proxy"),
        (f"http://u:{SECRET}\udcff@proxy", "not the URL of a proxy"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_by_its_variable(value: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as broken:
        chosen(HTTPS, ALL_PROXY=value)
    message = broken.value.message
    assert message.startswith("the environment variable ALL_PROXY ")
    assert words in message
    assert SECRET not in message
    assert broken.value.detail == {"variable": "ALL_PROXY"}


def test_a_proxy_is_shown_without_its_password() -> None:
    proxy = proxies.parse(f"https://user:{SECRET}@proxy:3128/", "HTTPS_PROXY")
    for shown in str(proxy), repr(proxy), f"{proxy}", f"{[proxy]}":
        assert "https://proxy:3128 (HTTPS_PROXY)" in shown
        assert SECRET not in shown
        assert proxy.authorization not in shown


def test_mutated_values_never_raise_anything_else_nor_show_the_password() -> None:
    chance = random.Random(7)
    for _ in range(5000):
        text = list(f"http://user:{SECRET}@proxy.example:3128/")
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(text))
            text[at : at + chance.randrange(3)] = chance.choice("@:/?#%[] \x00\udcffé.x")
        value = "".join(text)
        try:
            outcome: object = proxies.parse(value, "HTTPS_PROXY")
        except ConfigurationError as error:
            outcome = error
        # The text after the only @, or without one, can only be a host.
        assert SECRET not in str(outcome) or value.count("@") != 1
        assert "HTTPS_PROXY" in str(outcome)


# --- what it is asked --------------------------------------------------------------------------

CREDENTIALS = ("Proxy-Authorization", basic("u:p"))


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("https://registry.example/v2/", "registry.example:443"),
        ("https://registry.example:5000/v2/?q", "registry.example:5000"),
        ("https://[fd00::1]/v2/", "[fd00::1]:443"),
    ],
)
def test_a_tunnel_is_opened_to_host_and_port(url: str, endpoint: str) -> None:
    host = ("Host", endpoint)
    target = urls.parse(url)
    assert proxies.parse("proxy", "").connect(target) == (endpoint, [host])
    assert proxies.parse("u:p@proxy", "").connect(target) == (endpoint, [host, CREDENTIALS])


@pytest.mark.parametrize(
    ("url", "absolute", "host"),
    [
        ("http://r.example/v2/a?b", "http://r.example/v2/a?b", "r.example"),
        ("http://r.example:80", "http://r.example/", "r.example"),
        ("http://[fd00::1]:5000/v2/", "http://[fd00::1]:5000/v2/", "[fd00::1]:5000"),
    ],
)
def test_plain_http_is_forwarded(url: str, absolute: str, host: str) -> None:
    fields = [("Host", host)]
    target = urls.parse(url)
    assert proxies.parse("proxy", "").forward(target) == (absolute, fields)
    assert proxies.parse("u:p@proxy", "").forward(target) == (absolute, [*fields, CREDENTIALS])


# --- what else is told of a proxy --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "resolves_names"),
    [("socks5://a", False), ("socks5h://a", True), ("http://a", True), ("https://a", True)],
)
def test_only_by_socks5_are_names_looked_up_here(text: str, *, resolves_names: bool) -> None:
    assert proxies.parse(text, "").resolves_names is resolves_names


@pytest.mark.parametrize(
    ("environment", "configured"),
    [
        ({}, False),
        ({"NO_PROXY": "*", "HTTPS_PROXY": ""}, False),
        ({"HTTPS_PROXY": "a"}, True),
        ({"http_proxy": "a"}, True),
        ({"all_proxy": "socks5://a"}, True),
    ],
)
def test_whether_there_is_a_proxy_for_anything(
    environment: dict[str, str], *, configured: bool
) -> None:
    assert proxies.is_configured(environment) is configured
