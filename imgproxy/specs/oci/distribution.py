"""The OCI distribution specification 1.1, as a client that only reads sees it.

What to ask, how to read the answers, and what they mean: pure decisions; `transports.registry`
acts on them.
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

# What a manifest request accepts. Schema 1 is not read and so not asked for: a registry that has
# nothing else says so, or sends it all the same and gets its own message.
ACCEPT_MANIFESTS = (
    f"{types.OCI_INDEX}, {types.OCI_MANIFEST}, {types.DOCKER_LIST}, {types.DOCKER_MANIFEST}"
)

# Error bodies are small, and quoted in part.
MAX_ERROR_SIZE = 64 * 1024

# The longest chain met in the field is registry, object store, its regional host. Go gives up at
# ten as well.
MAX_REDIRECTS = 10

REDIRECTS = frozenset({301, 302, 303, 307, 308})


# Where there is something of a kind, by its name. Signatures are an extension of OpenShift's
# registry, which the `base` tells of; referrers came with version 1.1 of the specification.
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
    """Give where a redirect leads.

    Raises `BadUpstreamError` for a `Location` that is no http(s) URL, and for a step down from
    https to http unless `allow_http`.
    """
    if not location:
        raise BadUpstreamError(f"GET {url}: redirected without saying where")
    try:
        target = urls.parse(_joined(url, location))
    except ValueError as error:
        raise BadUpstreamError(
            f"GET {url}: redirected to somewhere unusable ({error}): {urls.redacted(location)}"
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


def failure(url: Url, status: int, body: bytes, kind: str, name: str) -> Failure:
    """Give what a reply other than the wanted 200 means.

    `kind` and `name` say what was asked for, such as a `blob`, and which. The registry's own
    words are quoted when it sent the specification's error body.
    """
    codes, words = said(body)
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


def said(body: bytes) -> tuple[list[str], str]:
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
