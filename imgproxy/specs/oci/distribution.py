"""The client's side of the OCI distribution specification 1.1, limited to pulls.

URLs of requests, and the interpretation of replies: pure decisions, on which `transports.registry`
acts.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote, urljoin

from imgproxy.errors import (
    AbsentError,
    BadUpstreamError,
    DeniedError,
    Failure,
    NotFoundError,
    UnavailableError,
)
from imgproxy.specs.http import retry
from imgproxy.specs.http import url as urls
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import media_type as types

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.specs.http.url import Url
    from imgproxy.specs.oci.digest import Digest

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

# What is left as it is in a `Location`: all of ASCII that may be in a field but the blank.
_PRINTABLE = bytes(range(0x21, 0x7F))

# A URL whose scheme is not followed by a host, such as `http:user:password@host/`.
_WITHOUT_HOST = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*:(?!//)")

# The way out where a login is refused: one that is out of date spoils pulls of public images.
WITHOUT_LOGIN = "--no-creds asks without a login, which is enough for a public image"

REDIRECTS = frozenset({301, 302, 303, 307, 308})

# What a redirect to a store may end with because the signed URL has expired on the way. A request
# that begins anew gets another one.
STORE_REFUSALS = frozenset({400, 403})

# The signature in a query that authorizes by itself: S3's `X-Amz-Signature`, Google's, CloudFront's
# `Signature`, Azure's `sig`.
_SIGNATURE = re.compile(r"(?i)[?&](?:[a-z0-9]+-)*sig(?:nature)?=")

_BLOB = re.compile(r"/v2/.+/blobs/[^/]+")
_REPOSITORY = re.compile(r"/v2/(.+)/(?:manifests|blobs|referrers)/[^/]+")


class BasePath(NamedTuple):
    """The root of the API; its response tells which extensions the registry supports."""

    def below(self, _: str) -> str:
        """Return the path, which is that of all repositories."""
        return "v2/"

    def __str__(self) -> str:
        return "base"


class ManifestPath(NamedTuple):
    """A manifest or an index in a repository, by a tag or a digest."""

    name: str

    def below(self, repository: str) -> str:
        """Return the path for a repository."""
        return f"v2/{repository}/manifests/{self.name}"

    def __str__(self) -> str:
        return f"manifest {self.name}"


class BlobPath(NamedTuple):
    """A blob in a repository."""

    digest: Digest

    def below(self, repository: str) -> str:
        """Return the path for a repository."""
        return f"v2/{repository}/blobs/{self.digest}"

    def __str__(self) -> str:
        return f"blob {self.digest}"


class ReferrersPath(NamedTuple):
    """The list of the manifests that refer to a digest, new in version 1.1.

    `query` filters the list, or selects one page of it.
    """

    digest: Digest
    query: str

    def below(self, repository: str) -> str:
        """Return the path for a repository."""
        return f"v2/{repository}/referrers/{self.digest}?{self.query}"

    def __str__(self) -> str:
        return f"referrers {self.digest}?{self.query}"


class TagsPath(NamedTuple):
    """The list of the tags of a repository, or the page of it that `query` selects."""

    query: str

    def below(self, repository: str) -> str:
        """Return the path for a repository."""
        return f"v2/{repository}/tags/list{self.query and '?'}{self.query}"

    def __str__(self) -> str:
        return f"tags {self.query}".rstrip()


class SignaturesPath(NamedTuple):
    """The signatures of a manifest in the extension of OpenShift's registry."""

    digest: Digest

    def below(self, repository: str) -> str:
        """Return the path for a repository."""
        return f"extensions/v2/{repository}/signatures/{self.digest}"

    def __str__(self) -> str:
        return f"signatures {self.digest}"


# What a registry is asked for. The text of a path describes it in messages.
ApiPath = BasePath | ManifestPath | BlobPath | ReferrersPath | TagsPath | SignaturesPath


def registry_url(scheme: str, registry: str, repository: str, path: ApiPath) -> Url:
    """Return the URL of something in a repository of a registry."""
    # Docker Hub's name is not the host that serves it.
    host = "registry-1.docker.io" if registry == "docker.io" else registry
    return urls.parse(f"{scheme}://{host}/{path.below(repository)}")


def is_blob(url: Url) -> bool:
    """Return whether a URL of a registry's API is that of a blob."""
    return _BLOB.fullmatch(url.target) is not None


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


def is_authorized(url: Url, first: Url) -> bool:
    """Return whether `url`, where redirects from `first` led, gets the same `Authorization`.

    It stays at its origin, and in a registry's API. A signed URL authorizes by itself, and stores
    refuse one that is authorized in two ways.
    """
    if url == first:
        return True
    is_in_api = _is_in_api(url) or not _is_in_api(first)
    return url.origin == first.origin and is_in_api and _SIGNATURE.search(url.target) is None


def _is_in_api(url: Url) -> bool:
    path = unquote(url.target.partition("?")[0])
    return path.startswith("/v2/") and ".." not in path.split("/")


def repository_of(url: Url) -> str:
    """Return the repository at another registry that a redirect led to, empty if it is none."""
    match = _REPOSITORY.fullmatch(url.target.partition("?")[0])
    return match[1] if match and _SIGNATURE.search(url.target) is None else ""


def _resolve(url: Url, location: str) -> str:
    """Return a `Location` as an absolute URL: RFC 9110 section 10.2.2.

    What may not be in a URL and has one meaning there all the same, blanks and bytes beyond ASCII,
    is percent-encoded. Raises `ValueError` for one that has a scheme but no host, which `urljoin`
    takes for a path.
    """
    if _WITHOUT_HOST.match(location):
        raise ValueError("it has a scheme, and no host")
    written = quote(location.strip().encode("latin-1"), safe=_PRINTABLE)
    try:
        return urljoin(f"{url.scheme}://{url.authority}{url.target}", written)
    except ValueError:  # its message may quote a secret
        raise ValueError("its host or port is malformed") from None


def content_digests(fields: Sequence[str]) -> tuple[Digest, ...]:
    """Return the digests that `Docker-Content-Digest` names, each of which the content must have.

    It helps where it is right: quoted, in upper case or given twice it still names a digest, and
    what names none, or by an algorithm that is not available, is as if it were not there.
    """
    found = []
    for text in ",".join(fields).split(","):
        with suppress(ValueError):
            found.append(digests.parse(text.strip(' \t"').lower()))
    return tuple(digest for digest in dict.fromkeys(found) if digests.is_available(digest))


def failure(
    url: Url, status: int, body: bytes, asked: ApiPath | str, *, retry_after: float | None = None
) -> Failure:
    """Return the failure that a response other than the wanted 200 stands for.

    `asked` is what was asked for; the message begins with it, and quotes what the registry says.
    `retry_after` is in seconds, None if unspecified.
    """
    from imgproxy.specs.http import refusal_body

    codes, words = refusal_body.parse(body)
    message = f"{asked}: GET {url}: {status}" + (f" ({words})" if words else "")
    if status == 404:
        default = "BLOB_UNKNOWN" if isinstance(asked, BlobPath) else "MANIFEST_UNKNOWN"
        code = "NAME_UNKNOWN" if "NAME_UNKNOWN" in codes else default
        # The page of some other server does not know what there is.
        kind = AbsentError if code in codes and code == "MANIFEST_UNKNOWN" else NotFoundError
        return kind(message, code=code, retry_after=retry_after)
    return refusal(message, status, retry_after=retry_after)


def refusal(message: str, status: int, *, retry_after: float | None = None) -> Failure:
    """Return the failure that a status other than success stands for, whatever was asked for."""
    if status == 401:
        return DeniedError(message, code="UNAUTHORIZED", retry_after=retry_after)
    if status == 403:
        return DeniedError(message, retry_after=retry_after)
    if not retry.is_transient_status(status):
        return BadUpstreamError(message, retry_after=retry_after)
    will_wait = not retry.is_too_long(retry_after)
    if not will_wait:
        message += f"; it may be asked again in {retry_after:.0f} s, which is too long to wait"
    if status == 429:
        return UnavailableError(
            message, code="TOOMANYREQUESTS", is_transient=will_wait, retry_after=retry_after
        )
    return UnavailableError(message, is_transient=will_wait, retry_after=retry_after)
