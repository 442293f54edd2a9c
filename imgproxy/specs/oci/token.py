"""Bearer tokens: the distribution project's token and OAuth2 specifications, RFC 6750.

A registry names a realm in its challenge; the token that is had there lets its bearer pull from
one repository for a while.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlencode

from imgproxy.errors import BadUpstreamError
from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, Fields
from imgproxy.specs.http import url as urls
from imgproxy.specs.oci import distribution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.errors import Failure
    from imgproxy.specs.http.challenge import Challenge
    from imgproxy.specs.http.credentials import Credentials
    from imgproxy.specs.http.url import Url

MAX_REPLY_SIZE = 1024 * 1024

# A token without a lifetime has this one, and none is taken for shorter.
MIN_LIFETIME = 60.0

# RFC 6750 section 2.1: what a bearer token is made of. Anything else must not reach a header.
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*")

# What the token specification calls a client; registries only log it.
_CLIENT = "imgproxy"


class Request(NamedTuple):
    """How a token is asked for: a GET with this `Authorization` if any, or a POST of the form."""

    url: Url
    authorization: str
    form: bytes | None


class Token(NamedTuple):
    """A bearer token; `lifetime` is in seconds."""

    value: str
    lifetime: float

    def __repr__(self) -> str:
        return "<a token>"


def is_usable(text: str) -> bool:
    """Whether the text can be a bearer token."""
    return _TOKEN68.fullmatch(text) is not None


def request(
    url: Url,
    challenge: Challenge,
    scopes: Sequence[str],
    credentials: Credentials | None,
    *,
    allow_http: bool,
) -> Request:
    """Give how to ask for the token that the answer of `url` demanded.

    An identity token is exchanged by POST; user and password go along with a GET. Raises
    `BadUpstreamError` for a realm that is missing or unusable.
    """
    where = _realm(url, challenge, allow_http=allow_http)
    service = challenge.parameters.get("service")
    query = [("service", service)] if service is not None else []
    if credentials is not None and credentials.identity_token:
        form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", credentials.identity_token),
            ("client_id", _CLIENT),
            *query,
            ("scope", " ".join(scopes)),
        ]
        return Request(where, "", urlencode(form).encode())
    if credentials is not None and credentials.username:
        query.insert(0, ("account", credentials.username))
    query += [("scope", scope) for scope in scopes]
    joint = "&" if "?" in where.target else "?"
    target = f"{where.target}{joint}{urlencode(query, quote_via=quote)}"
    has_both = credentials is not None and credentials.username and credentials.password
    authorization = credentials.basic if credentials is not None and has_both else ""
    return Request(where._replace(target=target), authorization, None)


def _realm(url: Url, challenge: Challenge, *, allow_http: bool) -> Url:
    realm = challenge.parameters.get("realm", "")
    try:
        where = urls.parse(realm)
    except ValueError as error:
        raise BadUpstreamError(
            f"GET {url}: the registry asks for a token from an unusable realm"
            f' "{urls.redacted(realm)}": {error}'
        ) from None
    if where.scheme == "http" and url.scheme == "https" and not allow_http:
        raise BadUpstreamError(
            f"GET {url}: the registry asks for a token over plain http from {where}, which is"
            " refused (--tls-verify=false would allow it)"
        )
    return where


def parse(body: bytes, url: Url) -> Token:
    """Give what a token server's reply holds, as `token` or `access_token`.

    Raises `BadUpstreamError` where there is none that may stand in a header.
    """
    try:
        fields = Fields(strict_json.loads(body))
        value = fields.optional_text("token") or fields.optional_text("access_token") or ""
        lifetime = fields.optional_integer("expires_in") or 0
    except strict_json.JsonError as error:
        raise BadUpstreamError(f"GET {url}: the token server's reply: {error}") from None
    except FieldError:  # whose words quote what may be a secret
        value, lifetime = "", 0
    if not is_usable(value):
        raise BadUpstreamError(f"GET {url}: the token server's reply holds no usable token")
    return Token(value, max(float(min(lifetime, 2**31)), MIN_LIFETIME))


def failure(
    url: Url, status: int, body: bytes, source: str, *, retry_after: float | None = None
) -> Failure:
    """Give what a token server's reply other than 200 means.

    `source` says where the credentials came from that were shown to it, empty for none;
    `retry_after` is in seconds, None if unspecified.
    """
    _, words = distribution.said(body)
    shown = f" to the credentials from {source}" if source else ""
    message = f"asking for a token: {url}: {status}{shown}" + (f" ({words})" if words else "")
    return distribution.refusal(message, status, retry_after=retry_after)
