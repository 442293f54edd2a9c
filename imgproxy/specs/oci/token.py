"""Bearer tokens: the distribution project's token and OAuth2 specifications, RFC 6750.

A registry's challenge names a realm, the URL of a token server; a token from there permits pulls
from one repository for a limited time.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlencode

from imgproxy.errors import BadUpstreamError
from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, PrivateFields
from imgproxy.specs.http import url as urls
from imgproxy.specs.oci import distribution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.errors import Failure
    from imgproxy.specs.http.challenge import Challenge
    from imgproxy.specs.http.credentials import Credentials
    from imgproxy.specs.http.url import Url

MAX_REPLY_SIZE = 1024 * 1024

# In seconds: the lifetime of a token that has none, and the least that a stated one counts as.
MIN_LIFETIME = 60.0

# The grammar of a bearer token, RFC 6750 section 2.1. Nothing else may be sent in a field.
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*")

# The `client_id` of the token specification; registries only log it.
_CLIENT = "imgproxy"


class Request(NamedTuple):
    """A request for a token: a GET with this `Authorization` if any, or a POST of the form."""

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
    """Return whether the text matches the grammar of a bearer token."""
    return _TOKEN68.fullmatch(text) is not None


def request(
    url: Url,
    challenge: Challenge,
    scopes: Sequence[str],
    credentials: Credentials | None,
    *,
    allow_http: bool,
) -> Request:
    """Return the request for the token that a challenge from `url` requires.

    An identity token is exchanged by POST; user and password are sent with a GET. Raises
    `BadUpstreamError` for a realm that is missing or unusable.
    """
    realm = _realm(url, challenge, allow_http=allow_http)
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
        return Request(realm, "", urlencode(form).encode())
    if credentials is not None and credentials.username:
        query.insert(0, ("account", credentials.username))
    query += [("scope", scope) for scope in scopes]
    joint = "&" if "?" in realm.target else "?"
    target = f"{realm.target}{joint}{urlencode(query, quote_via=quote)}"
    has_both = credentials is not None and credentials.username and credentials.password
    authorization = credentials.basic if credentials is not None and has_both else ""
    return Request(realm._replace(target=target), authorization, None)


def _realm(url: Url, challenge: Challenge, *, allow_http: bool) -> Url:
    text = challenge.parameters.get("realm", "")
    try:
        realm = urls.parse(text)
    except ValueError as error:
        raise BadUpstreamError(
            f"GET {url}: the registry asks for a token from an unusable realm"
            f' "{urls.redacted(text)}": {error}'
        ) from None
    if realm.scheme == "http" and url.scheme == "https" and not allow_http:
        raise BadUpstreamError(
            f"GET {url}: the registry asks for a token over plain http from {realm}, which is"
            " refused (--tls-verify=false would allow it)"
        )
    return realm


def parse(body: bytes, url: Url) -> Token:
    """Return the token in a token server's reply, from `token` or `access_token`.

    Raises `BadUpstreamError` where there is none that may be sent in a field.
    """
    try:
        fields = PrivateFields(strict_json.loads(body, PrivateFields.shown_key))
        value = fields.optional_text("token") or fields.optional_text("access_token") or ""
        lifetime = _lifetime(fields)
    except strict_json.JsonError as error:
        raise BadUpstreamError(f"GET {url}: the token server's reply: {error}") from None
    except FieldError:  # its message may quote a secret
        value, lifetime = "", 0
    if not is_usable(value):
        raise BadUpstreamError(f"GET {url}: the token server's reply holds no usable token")
    return Token(value, max(float(min(lifetime, 2**31)), MIN_LIFETIME))


def _lifetime(fields: PrivateFields) -> int:
    """Return `expires_in` in seconds, 0 where it says nothing; some servers write it as text."""
    with suppress(FieldError):
        return fields.optional_whole_number("expires_in") or 0
    with suppress(FieldError, ValueError):
        return int(fields.text("expires_in"))
    return 0


def failure(
    url: Url, status: int, body: bytes, source: str, *, retry_after: float | None = None
) -> Failure:
    """Return the failure that a token server's reply other than 200 means.

    `source` is the origin of the credentials that were sent to it, empty for none;
    `retry_after` is in seconds, None if unspecified.
    """
    from imgproxy.specs.http import refusal_body

    words = refusal_body.parse(body).summary
    shown = f" to the credentials from {source}" if source else ""
    message = f"asking for a token: {url}: {status}{shown}" + (f" ({words})" if words else "")
    if source and status in (401, 403):
        message += f"; {distribution.WITHOUT_LOGIN}"
    return distribution.refusal(message, status, retry_after=retry_after)
