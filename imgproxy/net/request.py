"""The bytes of a request to a registry: RFC 9112 section 3, written by h11.

It is a module of its own because `preconnect` sends a request before there is an event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import h11

from imgproxy import __version__
from imgproxy.specs.http.secrets import of_authorization, of_query

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imgproxy.specs.http.proxy import Proxy
    from imgproxy.specs.http.url import Url

# The value of the field that names this program to registries.
USER_AGENT = f"imgproxy/{__version__}"


class Method(NamedTuple):
    """The method of a request, and the form that is its body, None for no body."""

    name: str
    form: bytes | None = None


GET = Method("GET")
HEAD = Method("HEAD")


def post(form: bytes) -> Method:
    """Return the method that sends a form."""
    return Method("POST", form)


def compose(
    connection: h11.Connection,
    url: Url,
    headers: Mapping[str, str],
    user_agent: str,
    *,
    method: Method = GET,
    proxy: Proxy | None = None,
) -> bytes:
    """Return the bytes of a request.

    `connection` must not have sent anything. For a `proxy` that forwards the request, the target is
    in absolute form: RFC 9112 section 3.2.2.
    """
    target, fields = proxy.forward(url) if proxy else (url.target, [("Host", url.authority)])
    fields += [("User-Agent", user_agent), ("Accept-Encoding", "identity"), *headers.items()]
    if method.form is not None:
        fields += [
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Content-Length", str(len(method.form))),
        ]
    head = h11.Request(method=method.name, target=target, headers=fields)
    body = [] if method.form is None else [h11.Data(data=method.form)]
    return b"".join(connection.send(each) or b"" for each in (head, *body, h11.EndOfMessage()))


def secrets(url: Url, headers: Mapping[str, str], form: bytes | None) -> Iterator[str]:
    """Yield what is secret in a request, apart from what is for a proxy."""
    yield from of_authorization(headers.get("Authorization", ""))
    yield from of_query(url.target.partition("?")[2])
    yield from of_query((form or b"").decode())
