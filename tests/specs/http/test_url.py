"""Absolute URLs: their parsing, and their display without secrets."""

from __future__ import annotations

import re

import pytest

from imgproxy.specs.http.url import Url, parse, redacted


@pytest.mark.parametrize(
    ("text", "url", "authority", "endpoint"),
    [
        ("https://a", Url("https", "a", 443, "/"), "a", "a:443"),
        ("http://a", Url("http", "a", 80, "/"), "a", "a:80"),
        ("HTTPS://A.Example/B", Url("https", "a.example", 443, "/B"), "a.example", "a.example:443"),
        ("https://a:443/", Url("https", "a", 443, "/"), "a", "a:443"),
        ("https://a:80/", Url("https", "a", 80, "/"), "a:80", "a:80"),
        ("http://a:5000/b/c", Url("http", "a", 5000, "/b/c"), "a:5000", "a:5000"),
        ("https://a:/b", Url("https", "a", 443, "/b"), "a", "a:443"),
        ("https://a?b=c&d", Url("https", "a", 443, "/?b=c&d"), "a", "a:443"),
        ("https://a/b?c#d", Url("https", "a", 443, "/b?c"), "a", "a:443"),
        ("https://a/%2f%20?%00", Url("https", "a", 443, "/%2f%20?%00"), "a", "a:443"),
        ("https://127.0.0.1:1/", Url("https", "127.0.0.1", 1, "/"), "127.0.0.1:1", "127.0.0.1:1"),
        ("https://[::1]/b", Url("https", "::1", 443, "/b"), "[::1]", "[::1]:443"),
        (
            "https://[2001:DB8::1]:1/",
            Url("https", "2001:db8::1", 1, "/"),
            "[2001:db8::1]:1",
            "[2001:db8::1]:1",
        ),
        (
            "https://[::ffff:1.2.3.4]/",
            Url("https", "::ffff:1.2.3.4", 443, "/"),
            "[::ffff:1.2.3.4]",
            "[::ffff:1.2.3.4]:443",
        ),
        ("http://10.0.0.1:80?q", Url("http", "10.0.0.1", 80, "/?q"), "10.0.0.1", "10.0.0.1:80"),
        ("https://a:0", Url("https", "a", 0, "/"), "a:0", "a:0"),
        ("https://a_b-c.d./", Url("https", "a_b-c.d.", 443, "/"), "a_b-c.d.", "a_b-c.d.:443"),
    ],
)
def test_a_url_says_where_to_dial_and_what_to_ask(
    text: str, url: Url, authority: str, endpoint: str
) -> None:
    assert parse(text) == url
    assert url.authority == authority
    assert url.endpoint == endpoint
    assert url.origin == (url.scheme, url.host, url.port)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "neither http nor https"),
        ("/v2/", "neither http nor https"),
        ("//a/b", "neither http nor https"),
        ("a/b", "neither http nor https"),
        ("ftp://a/", "neither http nor https"),
        ("file:///etc/passwd", "neither http nor https"),
        ("https:/a", "its host is malformed"),
        ("https:///a", "its host is malformed"),
        ("https://:80/", "its host is malformed"),
        ("https://user@a/", "it has user information (USER:PASSWORD@)"),
        ("https://user:password@a/", "it has user information (USER:PASSWORD@)"),
        ("https://@a/", "it has user information (USER:PASSWORD@)"),
        ("https://a\\@b/", "it has user information (USER:PASSWORD@)"),
        ("https://a%00/", "its host is malformed"),
        ("https://a..b/", "its host is malformed"),
        ("https://.a/", "its host is malformed"),
        ("https://./", "its host is malformed"),
        ("https://a,b/", "its host is malformed"),
        pytest.param(f"https://{'a' * 64}/", "its host is malformed", id="label-too-long"),
        ("https://[v1.a]/", "its host is malformed"),
        ("https://[fe80::1%25eth0]/", "its host is malformed"),
        ("https://[::1/", "its host or port is malformed"),
        ("https://[::::]/", "its host or port is malformed"),
        ("https://a:65536/", "its host or port is malformed"),
        ("https://a:b/", "its host or port is malformed"),
        pytest.param(f"https://a:{'1' * 5000}/", "its host or port is malformed", id="port"),
        ("https://a/ b", "not a URL of printable ASCII"),
        ("https://a/\t", "not a URL of printable ASCII"),
        ("https://a/\r\nX: y", "not a URL of printable ASCII"),
        ("https://\u00e4/", "not a URL of printable ASCII"),
        ("https://a/\x7f", "not a URL of printable ASCII"),
    ],
)
def test_anything_else_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}$"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://a/b", "https://a/b"),
        ("http://a:80", "http://a/"),
        ("https://a/b?X-Amz-Signature=secret", "https://a/b?…"),
    ],
)
def test_a_url_in_a_message_has_no_query(text: str, shown: str) -> None:
    assert str(parse(text)) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://a", "https://a/…"),
        ("https://a/secret", "https://a/…"),
        ("https://user:secret@a/b@c", "https://a/…"),
        ("https://us@er:secret@a", "https://a/…"),
        ("https://a:secret/", "https://a/…"),
        ("ftp://a/", "ftp://a/…"),
        ("https://a?secret", "(not shown)"),
        ("https://a#secret", "(not shown)"),
        ("https://user:secret\\@a/", "https://user/…"),
        ("//user:secret@a", "(not shown)"),
        ("https:/user:secret@a", "(not shown)"),
        ("/secret", "(not shown)"),
        ("", "(not shown)"),
        ("ftp://a\x1b[31m/", "(not shown)"),
    ],
)
def test_what_only_resembles_a_url_is_shown_without_secrets(text: str, shown: str) -> None:
    assert redacted(text) == shown
