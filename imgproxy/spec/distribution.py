"""The OCI distribution specification 1.1, as a client that only reads sees it.

What to ask, how to read the answers, and what they mean: pure decisions; `transports.registry`
acts on them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlencode, urljoin, urlsplit

from imgproxy import strict_json
from imgproxy.errors import (
    BadUpstreamError,
    DeniedError,
    Failure,
    NotFoundError,
    UnavailableError,
    clean,
)
from imgproxy.fields import FieldError, Fields
from imgproxy.spec import media_type as types

if TYPE_CHECKING:
    from imgproxy.spec.challenge import Challenge
    from imgproxy.spec.reference import Reference

# What a manifest request accepts. Schema 1 is not read and so not asked for: a registry that has
# nothing else says so, or sends it all the same and gets its own message.
ACCEPT_MANIFESTS = (
    f"{types.OCI_INDEX}, {types.OCI_MANIFEST}, {types.DOCKER_LIST}, {types.DOCKER_MANIFEST}"
)

# Error bodies and token replies are small; both are read whole.
MAX_ERROR_SIZE = 64 * 1024
MAX_TOKEN_SIZE = 1024 * 1024

# The longest chain met in the field is registry, object store, its regional host. Go gives up at
# ten as well.
MAX_REDIRECTS = 10

REDIRECTS = frozenset({301, 302, 303, 307, 308})

# RFC 6750 section 2.1: what a bearer token is made of. Anything else must not reach a header.
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*")


class Url(NamedTuple):
    """An absolute http or https URL: where to dial, and what to ask there."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """What credentials and connections belong to: scheme, host and port."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """The `Host` field: the port is said where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        """Give the URL without its query, which may hold a signature or a token."""
        path, query, _ = self.target.partition("?")
        return clean(f"{self.scheme}://{self.authority}{path}") + ("?…" if query else "")


_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?|\[[0-9a-f:.]+\]")
_SHOWN = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]{0,15})://(?:[^/?#\\]*@)?([A-Za-z0-9._-]{1,255})(?=[:/]|$)"
)


def parse_url(text: str) -> Url:
    """Give the URL that `text` spells.

    Raises `ValueError` for anything but an http or https URL of printable ASCII without userinfo.
    """
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("not a URL of printable ASCII")
    try:
        parts = urlsplit(text)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
    except ValueError:  # whose words quote what may be a secret
        raise ValueError("its host or port is malformed") from None
    if scheme not in _PORTS:
        raise ValueError("neither http nor https")
    written = f"[{host}]" if "[" in parts.netloc else host
    if parts.username is not None or _HOST.fullmatch(written) is None:
        raise ValueError("its host is malformed")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(scheme, host, _PORTS[scheme] if port is None else port, target)


def redacted(text: str) -> str:
    """Give what may be shown of something like a URL: its scheme and host, if it has such."""
    match = _SHOWN.match(text)
    return f"{match[1]}://{match[2]}/…" if match else "(not shown)"


def registry_url(scheme: str, reference: Reference, kind: str, name: str) -> Url:
    """Give the URL of `/v2/<repository>/<kind>s/<name>`; the kind is `manifest` or `blob`."""
    # Docker Hub's name is not the host that serves it.
    host = "registry-1.docker.io" if reference.registry == "docker.io" else reference.registry
    return parse_url(f"{scheme}://{host}/v2/{reference.repository}/{kind}s/{name}")


def redirect(url: Url, location: str, *, allow_http: bool) -> Url:
    """Give where a redirect leads.

    Raises `BadUpstreamError` for a `Location` that is no http(s) URL, and for a step down from
    https to http unless `allow_http`.
    """
    if not location:
        raise BadUpstreamError(f"GET {url}: redirected without saying where")
    try:
        target = parse_url(_joined(url, location))
    except ValueError as error:
        raise BadUpstreamError(
            f"GET {url}: redirected to somewhere unusable ({error}): {redacted(location)}"
        ) from None
    if target.scheme == "http" and url.scheme == "https" and not allow_http:
        raise BadUpstreamError(
            f"GET {url}: redirected from https to {target}, which is refused"
            " (--tls-verify=false would allow it)"
        )
    return target


def _joined(url: Url, location: str) -> str:
    """Give a `Location` as an absolute URL: RFC 9110 section 10.2.2."""
    try:
        return urljoin(f"{url.scheme}://{url.authority}{url.target}", location)
    except ValueError:  # whose words quote what may be a secret
        raise ValueError("its host or port is malformed") from None


def token_url(url: Url, challenge: Challenge, reference: Reference, *, allow_http: bool) -> Url:
    """Give where a token for pulling is had: the distribution project's token specification.

    Raises `BadUpstreamError` for a realm that is missing or unusable.
    """
    realm = challenge.parameters.get("realm", "")
    try:
        where = parse_url(realm)
    except ValueError as error:
        raise BadUpstreamError(
            f"GET {url}: the registry asks for a token from an unusable realm"
            f' "{redacted(realm)}": {error}'
        ) from None
    if where.scheme == "http" and url.scheme == "https" and not allow_http:
        raise BadUpstreamError(
            f"GET {url}: the registry asks for a token over plain http from {where}, which is"
            " refused (--tls-verify=false would allow it)"
        )
    query = [("scope", f"repository:{reference.repository}:pull")]
    service = challenge.parameters.get("service")
    if service is not None:
        query.append(("service", service))
    joint = "&" if "?" in where.target else "?"
    return where._replace(target=f"{where.target}{joint}{urlencode(query, quote_via=quote)}")


def parse_token(body: bytes, url: Url) -> str:
    """Give the bearer token of a token server's reply, `token` or `access_token`.

    Raises `BadUpstreamError` where there is none that may stand in a header.
    """
    try:
        fields = Fields(strict_json.loads(body))
        token = fields.optional_text("token") or fields.optional_text("access_token") or ""
    except strict_json.JsonError as error:
        raise BadUpstreamError(f"GET {url}: the token server's reply: {error}") from None
    except FieldError:  # whose words quote what may be a secret
        token = ""
    if _TOKEN68.fullmatch(token) is None:
        raise BadUpstreamError(f"GET {url}: the token server's reply holds no usable token")
    return token


def failure(url: Url, status: int, body: bytes, kind: str, name: str) -> Failure:
    """Give what a reply other than the wanted 200 means.

    `kind` and `name` say what was asked for: `manifest` or `blob`, and which. The registry's own
    words are quoted when it sent the specification's error body.
    """
    codes, words = _said(body)
    message = f"{kind} {name}: GET {url}: {status}" + (f" ({words})" if words else "")
    if status == 404:
        default = "BLOB_UNKNOWN" if kind == "blob" else "MANIFEST_UNKNOWN"
        code = "NAME_UNKNOWN" if "NAME_UNKNOWN" in codes else default
        return NotFoundError(message, code=code)
    if status == 401:
        return DeniedError(
            f"{message}: the registry wants credentials, and anonymous access is all there is",
            code="UNAUTHORIZED",
        )
    if status == 403:
        return DeniedError(message)
    if status == 429:
        return UnavailableError(message, code="TOOMANYREQUESTS")
    if status >= 500:
        return UnavailableError(message)
    return BadUpstreamError(message)


def token_failure(url: Url, status: int, body: bytes) -> Failure:
    """Give what a token server's reply other than 200 means."""
    _, words = _said(body)
    message = f"asking for a token: GET {url}: {status}" + (f" ({words})" if words else "")
    if status in (401, 403):
        return DeniedError(message, code="UNAUTHORIZED")
    if status == 429 or status >= 500:
        return UnavailableError(message)
    return BadUpstreamError(message)


def _said(body: bytes) -> tuple[list[str], str]:
    """Give the codes and the words of the specification's error body, nothing for any other."""
    try:
        errors = Fields(strict_json.loads(body)).objects("errors")
        codes = [error.optional_text("code") or "" for error in errors]
        words = [error.optional_text("message") or "" for error in errors]
    except (strict_json.JsonError, FieldError):
        return [], ""
    return codes, clean(
        "; ".join(f"{code}: {word}" for code, word in zip(codes, words, strict=True))
    )
