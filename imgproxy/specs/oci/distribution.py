"""The client's side of the OCI distribution specification 1.1, limited to pulls.

URLs of requests, and the interpretation of replies: pure decisions, on which `transports.registry`
acts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urljoin

from imgproxy.errors import (
    BadUpstreamError,
    DeniedError,
    Failure,
    NotFoundError,
    UnavailableError,
    clean,
)
from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, Fields
from imgproxy.specs.http import retry
from imgproxy.specs.http import url as urls
from imgproxy.specs.oci import media_type as types

if TYPE_CHECKING:
    from imgproxy.specs.http.url import Url
    from imgproxy.specs.oci.reference import Reference

# The media types that a manifest request accepts. Schema 1 is unsupported and so not among them: a
# registry that has nothing else reports that, or sends it all the same, which has its own message.
ACCEPT_MANIFESTS = (
    f"{types.OCI_INDEX}, {types.OCI_MANIFEST}, {types.DOCKER_LIST}, {types.DOCKER_MANIFEST}"
)

# Error bodies are small, and only parts of them are quoted.
MAX_ERROR_SIZE = 64 * 1024

# The longest chain seen in practice is registry, object store, its regional host. Go stops at ten
# as well.
MAX_REDIRECTS = 10

REDIRECTS = frozenset({301, 302, 303, 307, 308})


# Where there is something of a kind, by its name. Signatures are an extension of OpenShift's
# registry, which its reply to the `base` announces; referrers were added in version 1.1 of the
# specification.
_PATHS = {
    "base": "v2/",
    "manifest": "v2/{repository}/manifests/{name}",
    "blob": "v2/{repository}/blobs/{name}",
    "referrer": "v2/{repository}/referrers/{name}",
    "signature": "extensions/v2/{repository}/signatures/{name}",
}


def registry_url(scheme: str, reference: Reference, kind: str, name: str) -> Url:
    """Give the URL of something of a kind at a registry."""
    # Docker Hub's name is not the host that serves it.
    host = "registry-1.docker.io" if reference.registry == "docker.io" else reference.registry
    path = _PATHS[kind].format(repository=reference.repository, name=name)
    return urls.parse(f"{scheme}://{host}/{path}")


def redirect(url: Url, location: str, *, allow_http: bool) -> Url:
    """Return the target of a redirect.

    Raises `BadUpstreamError` for a `Location` that is not an http(s) URL, and for a downgrade from
    https to http unless `allow_http`.
    """
    if not location:
        raise BadUpstreamError(f"GET {url}: redirected without a Location")
    try:
        target = urls.parse(_resolve(url, location))
    except ValueError as error:
        raise BadUpstreamError(
            f"GET {url}: redirected to an unusable URL ({error}): {urls.redacted(location)}"
        ) from None
    if target.scheme == "http" and url.scheme == "https" and not allow_http:
        raise BadUpstreamError(
            f"GET {url}: redirected from https to {target}, which is refused"
            " (--tls-verify=false would allow it)"
        )
    return target


def _resolve(url: Url, location: str) -> str:
    """Return a `Location` as an absolute URL: RFC 9110 section 10.2.2."""
    try:
        return urljoin(f"{url.scheme}://{url.authority}{url.target}", location)
    except ValueError:  # its message may quote a secret
        raise ValueError("its host or port is malformed") from None


def failure(url: Url, status: int, body: bytes, kind: str, name: str) -> Failure:
    """Give what a reply other than the wanted 200 means.

    `kind` and `name` say what was asked for, such as a `blob`, and which. The registry's own
    words are quoted when it sent the specification's error body.
    """
    codes, words = parse_error_body(body)
    message = f"{kind} {name}: GET {url}: {status}" + (f" ({words})" if words else "")
    if status == 404:
        default = "BLOB_UNKNOWN" if kind == "blob" else "MANIFEST_UNKNOWN"
        code = "NAME_UNKNOWN" if "NAME_UNKNOWN" in codes else default
        return NotFoundError(message, code=code)
    return refusal(message, status)


def refusal(message: str, status: int) -> Failure:
    """Give what a status that is no success means, whatever was asked."""
    if status == 401:
        return DeniedError(message, code="UNAUTHORIZED")
    if status == 403:
        return DeniedError(message)
    if status == 429:
        return UnavailableError(message, code="TOOMANYREQUESTS")
    passing = retry.is_transient_status(status)
    return UnavailableError(message) if passing else BadUpstreamError(message)


def parse_error_body(body: bytes) -> tuple[list[str], str]:
    """Return the codes of the specification's error body, and a summary for messages.

    Both are empty for any other body.
    """
    try:
        errors = Fields(strict_json.loads(body)).objects("errors")
        codes = [error.optional_text("code") or "" for error in errors]
        messages = [error.optional_text("message") or "" for error in errors]
    except (strict_json.JsonError, FieldError):
        return [], ""
    return codes, clean(
        "; ".join(f"{code}: {text}" for code, text in zip(codes, messages, strict=True))
    )
