"""The exact bytes of a request: a preconnection relies on them."""

from __future__ import annotations

import h11
import pytest

from imgproxy.net.request import USER_AGENT, compose, post, secrets
from imgproxy.specs.http import proxy
from imgproxy.specs.http import url as urls

TEXT = "https://registry.test:5000/v2/acme/os/manifests/1?a=b"
URL = urls.parse(TEXT)


def composed(text: str = TEXT, **options: object) -> bytes:
    connection = h11.Connection(h11.CLIENT)
    message = compose(connection, urls.parse(text), {"Accept": "text/plain"}, "test/1", **options)  # type: ignore[arg-type]
    assert connection.our_state is h11.DONE
    return message


def test_a_get() -> None:
    assert composed() == (
        b"GET /v2/acme/os/manifests/1?a=b HTTP/1.1\r\nHost: registry.test:5000\r\n"
        b"User-Agent: test/1\r\nAccept-Encoding: identity\r\nAccept: text/plain\r\n\r\n"
    )


def test_a_form() -> None:
    head, _, body = composed(method=post(b"grant=1")).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v2/acme")
    assert b"\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 7" in head
    assert body == b"grant=1"


def test_through_a_proxy_that_forwards() -> None:
    url = "http://registry.test/v2/"
    chosen = proxy.choose(urls.parse(url), {"http_proxy": "http://user:word@proxy.test:3128"})
    message = composed(url, proxy=chosen)
    assert message.startswith(b"GET http://registry.test/v2/ HTTP/1.1\r\nHost: registry.test\r\n")
    assert b"\r\nProxy-Authorization: Basic " in message


def test_the_program_names_itself_with_its_version() -> None:
    assert USER_AGENT.startswith("imgproxy/")
    assert USER_AGENT.removeprefix("imgproxy/")[0].isdecimal()


def test_what_would_be_two_requests_is_refused() -> None:
    with pytest.raises(h11.LocalProtocolError):
        compose(h11.Connection(h11.CLIENT), URL, {"Accept": "x\r\nX: y"}, "test/1")


def test_what_is_secret_in_a_request() -> None:
    """In its `Authorization`, in its query, and in its form; a proxy's is found with the proxy."""
    url = urls.parse("https://registry.test/x?sig=signature&a=b")
    found = secrets(
        url, {"Accept": "x", "Authorization": "Bearer token"}, b"refresh_token=identity"
    )
    assert set(found) == {"token", "signature", "identity"}
    assert not set(secrets(urls.parse("https://registry.test/x"), {}, None)) - {""}
