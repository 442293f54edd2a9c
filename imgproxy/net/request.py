"""The bytes of a request to a registry: RFC 9112 section 3, written by h11.

It is a module of its own because `preconnect` sends a request before there is an event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11

from imgproxy import __version__
from imgproxy.specs.http.secrets import of_authorization, of_query

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imgproxy.specs.http.proxy import Proxy
    from imgproxy.specs.http.url import Url

# The value of the field that names this program to registries.
USER_AGENT = f"imgproxy/{__version__}"


def compose(
    connection: h11.Connection,
    url: Url,
    headers: Mapping[str, str],
    user_agent: str,
    *,
    form: bytes | None = None,
    proxy: Proxy | None = None,
) -> bytes:
    """Return the bytes of a GET, or with a `form` of a POST of that.

    `connection` must not have sent anything. For a `proxy` that forwards the request, the target is
    in absolute form: RFC 9112 section 3.2.2.
    """
    target, fields = proxy.forward(url) if proxy else (url.target, [("Host", url.authority)])
    fields += [("User-Agent", user_agent), ("Accept-Encoding", "identity"), *headers.items()]
    if form is not None:
        fields += [
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Content-Length", str(len(form))),
        ]
    method = "GET" if form is None else "POST"
    head = h11.Request(method=method, target=target, headers=fields)
    body = [] if form is None else [h11.Data(data=form)]
    return b"".join(connection.send(each) or b"" for each in (head, *body, h11.EndOfMessage()))


def secrets(url: Url, headers: Mapping[str, str], form: bytes | None) -> Iterator[str]:
    """Yield what is secret in a request, apart from what is for a proxy."""
    yield from of_authorization(headers.get("Authorization", ""))
    yield from of_query(url.target.partition("?")[2])
    yield from of_query((form or b"").decode())
