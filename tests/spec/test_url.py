from __future__ import annotations

import pytest

from imgproxy.spec import url as urls
from imgproxy.spec.url import Url


@pytest.mark.parametrize(
    ("text", "url", "authority", "endpoint"),
    [
        ("https://h", Url("https", "h", 443, "/"), "h", "h:443"),
        ("HTTP://H.example/", Url("http", "h.example", 80, "/"), "h.example", "h.example:80"),
        ("http://h:443/a/b", Url("http", "h", 443, "/a/b"), "h:443", "h:443"),
        ("https://h:5000/a?b=c%2F#d", Url("https", "h", 5000, "/a?b=c%2F"), "h:5000", "h:5000"),
        ("https://[::1]/x", Url("https", "::1", 443, "/x"), "[::1]", "[::1]:443"),
        ("https://[::1]:80/x", Url("https", "::1", 80, "/x"), "[::1]:80", "[::1]:80"),
        ("http://10.0.0.1:80?q", Url("http", "10.0.0.1", 80, "/?q"), "10.0.0.1", "10.0.0.1:80"),
    ],
)
def test_a_url_says_where_to_dial_and_what_to_ask(
    text: str, url: Url, authority: str, endpoint: str
) -> None:
    assert urls.parse(text) == url
    assert url.authority == authority
    assert url.endpoint == endpoint
    assert url.origin == (url.scheme, url.host, url.port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h/a",
        "//h/a",
        "ftp://h",
        "http:///a",
        "http://u@h",
        "http://@h",
        "http://u:p@h",
        "http://h:x",
        "http://h:65536",
        "http://[::1",
        "http://[fe80::1%25eth0]/",
        "http://a b/",
        "http://h/\n",
        "http://h/\x7f",
        "http://hé/",
        "http://h,i/",
    ],
)
def test_what_is_no_such_url_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        urls.parse(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://h:443/a", "https://h/a"),
        ("https://h/a?X-Signature=secret", "https://h/a?…"),
    ],
)
def test_a_url_in_a_message_has_no_query(text: str, shown: str) -> None:
    assert str(urls.parse(text)) == shown
